"""The Lipschitz-bounded equilibrium network as one layer from inputs to outputs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.lben import LBENCell
from wellposed.core.activations import Activation
from wellposed.gradients.base import Gradient
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Solver, Stopping
from wellposed.solvers.splitting import PeacemanRachford


@final
class LBEN(nn.Module):
    """``y = C z + D x + c`` at ``z = phi(W z + U x + b)``: ``gamma``-Lipschitz by construction.

    Input, state and output weights are tied to each other (`LBENCell`), which is why one module
    owns them all. The statement is about its own inputs: a `Normalise` in front divides the bound
    by the standard deviation. Whether the inequality holds is measured on the weights by
    `wellposed.lipschitz`, never taken from here.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        n_out: Length of the output.
        gamma: Bound of the Lipschitz constant in the 2-norm, positive; `None` for a network that
            is well posed only.
        margin: Of strong monotonicity, positive.
        skip: Whether there is a path ``D x``.
        activation: Slopes in [0, 1]; ReLU by default.
        solver: Peaceman-Rachford splitting by default, which converges for all parameters.
        gradient: Implicit by default; the adjoint equation is solved by the same splitting.
        stopping: In training mode, as in `Equilibrium`.
        eval_stopping: In evaluation mode, as in `Equilibrium`.
        dtype: Of the parameters.

    Raises:
        ConfigError: `gamma` or `margin` is not positive.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        n_out: int,
        *,
        gamma: float | None,
        margin: float = 0.1,
        skip: bool = False,
        activation: Activation | None = None,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        stopping: Stopping | None = None,
        eval_stopping: Stopping | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        cell = LBENCell(
            n_in,
            n_state,
            n_out,
            gamma=gamma,
            margin=margin,
            skip=skip,
            activation=activation,
            dtype=dtype,
        )
        # in a tuple it is no second child; an attack may put an explicit cell into the layer
        self._owner = (cell,)
        self.layer = Equilibrium(
            cell,
            solver=solver or PeacemanRachford(),
            gradient=gradient or Implicit(),
            stopping=stopping,
            eval_stopping=eval_stopping,
        )

    @property
    def cell(self) -> LBENCell:
        """The cell, which owns all weights."""
        return self._owner[0]

    @property
    def gamma(self) -> float | None:
        """The bound that was asked for."""
        return self.cell.gamma

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.cell.readout(self.layer(x))
        D = self.cell.direct()
        return y if D is None else y + x @ D.mT
