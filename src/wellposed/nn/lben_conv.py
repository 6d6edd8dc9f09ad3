"""The convolutional Lipschitz-bounded equilibrium network as one layer of images."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.lben_conv import LbenConv2d
from wellposed.core.activations import Activation
from wellposed.core.operators import Padding
from wellposed.gradients.base import Gradient
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Solver, Stopping


@final
class LBENConv(nn.Module):
    """``y = C z + c`` at ``z = phi(W z + U x + b)`` on images: ``gamma``-Lipschitz by construction.

    Input, state and output kernels are tied to each other (`LbenConv2d`), which is why one module
    owns them all. The statement is about its own inputs and outputs: a `Normalise` in front divides
    the bound by the standard deviation, an average over squares of ``p x p`` pixels behind it
    divides it by ``p``, a linear layer with orthonormal rows (`stiefel`) keeps it. Whether it holds
    is measured on the weights by `wellposed.lipschitz`, never taken from here.

    Args:
        c_in: Channels of the input image.
        c_state: Channels of the state.
        c_out: Channels of ``y``.
        image: Height and width of the input.
        gamma: Bound of the Lipschitz constant in the 2-norm, positive; `None` for a network that
            is well posed only.
        kernel: Odd side of the free state kernels.
        inject: Odd side of the input kernel; by default `kernel`.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the input convolution.
        margin: Of strong monotonicity in the metric, positive.
        activation: Slopes in [0, 1]; ReLU by default.
        solver: Peaceman-Rachford splitting by default, which converges for all parameters.
        gradient: Implicit by default; the adjoint equation is solved by the same splitting.
        stopping: In training mode, as in `Equilibrium`.
        eval_stopping: In evaluation mode, as in `Equilibrium`.
        dtype: Of the parameters.

    Raises:
        ConfigError: `gamma` or `margin` is not positive, or a kernel is even.
        ShapeError: A kernel is larger than its image, or the stride does not fit.
    """

    def __init__(
        self,
        c_in: int,
        c_state: int,
        c_out: int,
        *,
        image: tuple[int, int],
        gamma: float | None,
        kernel: int = 3,
        inject: int | None = None,
        padding: Padding = "circular",
        stride: int = 1,
        margin: float = 0.1,
        activation: Activation | None = None,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        stopping: Stopping | None = None,
        eval_stopping: Stopping | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        cell = LbenConv2d(
            c_in,
            c_state,
            c_out,
            image=image,
            gamma=gamma,
            kernel=kernel,
            inject=inject,
            padding=padding,
            stride=stride,
            margin=margin,
            activation=activation,
            dtype=dtype,
        )
        # in a tuple it is no second child; an attack may put an explicit cell into the layer
        self._owner = (cell,)
        self.layer = Equilibrium(
            cell,
            solver=solver,
            gradient=gradient,
            stopping=stopping,
            eval_stopping=eval_stopping,
        )

    @property
    def cell(self) -> LbenConv2d:
        """The cell, which owns all weights."""
        return self._owner[0]

    @property
    def readout(self) -> nn.Conv2d:
        """``C`` and ``c``, a convolution of side 1 that the cell owns."""
        readout = self.cell.readout
        assert readout is not None
        return readout

    @property
    def gamma(self) -> float | None:
        """The bound that was asked for."""
        return self.cell.gamma

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x))
