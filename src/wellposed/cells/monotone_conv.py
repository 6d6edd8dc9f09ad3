"""The convolutional monotone cell: a strongly monotone ``I - A`` by construction."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import (
    check_cone,
    check_kernel,
    check_modulus,
    check_odd,
    check_padding,
    check_sizes,
)
from wellposed.cells.kernels import gram, rounded, skew, widened
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Padding
from wellposed.solvers.base import Solver
from wellposed.solvers.splitting import PeacemanRachford


@final
class MonotoneConv2d(AffineCell):
    """Convolutional cell with ``(I - A) + (I - A)^T >= 2 margin I`` for any parameters [1].

    ``A = (1 - margin - r) I - F^T F + S - S^T`` with convolutions ``F`` and ``S`` and ``r >= 0``
    just large enough to absorb the rounding of the weights. ``A`` is itself a convolution, with a
    kernel of side ``2 kernel - 1``, composed once a pass in float64. Padded with zeros it is a
    compression ``P^T A' P`` of the circular ``A'`` on a larger torus, and so as monotone as that;
    published code gets the same effect from a border of pixels that is held at zero.

    With `scaled`, the kernel is ``d_i / d_o`` times that, ``d = exp(asinh(log_scale))`` free, one
    number a channel: ``Lam (I - A)`` is then strongly monotone for ``Lam = [d]^2``.

    Solved by `PeacemanRachford`, whose inverse is one complex matrix a frequency on half of the
    spectrum (`FourierInverse`).

    Args:
        c_in: Channels of the input image.
        c_state: Channels of the state.
        image: Height and width of the input.
        kernel: Odd side of ``F`` and ``S``.
        inject: Odd side of the input kernel; by default `kernel`.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the input convolution: the state lives on the coarser grid.
        margin: Modulus of strong monotonicity, positive.
        scaled: Whether the metric is free.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: The margin is not positive, a kernel is even, or the activation leaves the
            cone.
        ShapeError: A kernel is larger than its image, or the stride does not fit.

    References:
        [1] Winston, Kolter. Monotone operator equilibrium networks. NeurIPS 2020. arXiv 2006.08591,
        proposition 1 and section on convolutions.
    """

    preferred: ClassVar[Solver | None] = PeacemanRachford()

    def __init__(
        self,
        c_in: int,
        c_state: int,
        *,
        image: tuple[int, int],
        kernel: int = 3,
        inject: int | None = None,
        padding: Padding = "zeros",
        stride: int = 1,
        margin: float = 1.0,
        scaled: bool = False,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        side = kernel if inject is None else inject
        check_sizes(c_in=c_in, c_state=c_state, kernel=kernel, inject=side, stride=stride)
        check_odd(kernel=kernel, inject=side)
        self.margin = check_modulus(margin)
        self.activation = check_cone(activation or ReLU())
        self.image, self.stride = (int(image[0]), int(image[1])), stride
        self.padding: Padding = check_padding(padding)
        self.inject = nn.Parameter(torch.empty(c_state, c_in, side, side, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.F = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        self.S = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(c_state, dtype=dtype)) if scaled else None
        for weight in (self.inject, self.F, self.S):
            limit = 1 / sqrt(weight[0].numel())
            nn.init.uniform_(weight, -limit, limit)
        height, width = Convolution(self.inject, image, padding, stride).out_shape[1:]
        self.grid = (height, width)
        check_kernel(side, image, "input")
        check_kernel(kernel, self.grid, "state")

    @override
    def explicit(self) -> Affine:
        # mixed precision would lower the products, and with them the bound
        with torch.autocast(self.F.device.type, enabled=False):
            A = Convolution(self._kernel(), self.grid, self.padding)
        B = Convolution(self.inject, self.image, self.padding, self.stride)
        scale = self.log_scale
        metric = None if scale is None else torch.asinh(scale).exp().square()[:, None, None]
        return Affine(A, B, self.bias[:, None, None], self.activation, metric=metric)

    def _kernel(self) -> Tensor:
        wide, turn = self.F.double(), skew(self.S.double())
        product = gram(wide)
        sides = (product.shape[2], product.shape[3])
        norms = torch.linalg.matrix_norm(wide.detach(), dim=(0, 1)).sum().square()
        terms = wide[:, 0].numel()
        kernel = widened(turn, sides) - product
        ratio = None
        if self.log_scale is not None:
            d = torch.asinh(self.log_scale.double()).exp()
            ratio = (d / d[:, None])[:, :, None, None]
        return rounded(kernel, self.margin, self.F.dtype, terms, norms, ratio=ratio)

    @override
    def extra_repr(self) -> str:
        c_state, c_in, inject, _ = self.inject.shape
        return (
            f"{c_in}, {c_state}, image={self.image}, kernel={self.F.shape[2]}, inject={inject}, "
            f"padding={self.padding!r}, stride={self.stride}, margin={self.margin}, "
            f"{'' if self.log_scale is None else 'scaled, '}{self.activation.name}"
        )
