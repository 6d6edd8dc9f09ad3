"""NEMON: affine cells with a logarithmic max norm that is bounded by construction."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import (
    check_cone,
    check_margin,
    check_odd,
    check_padding,
    check_sizes,
    strictly,
)
from wellposed.cells.skewed import skewed
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Dense, Padding


@final
class NemonCell(AffineCell):
    """Dense cell whose ``A`` has logarithmic max norm at most `margin` for any parameters [1].

    ``A = [eta] offdiag(T) [eta]^-1 + diag( margin - sum_{j != i} |T_ij| - softplus(d_i) )`` with
    ``eta = exp(asinh(s))`` and ``T, s, d`` free, so that row i has measure
    ``margin - softplus(d_i) < margin`` in the ``eta``-weighted max norm. The diagonal of ``T`` is
    unused; the published form loses the gradient of a positive ``T_ii``, this one does not. The
    published weights are ``exp(s)``: the same near 0, but they overflow where these stay finite.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    References:
        [1] Jafarpour, Davydov, Proskurnikov, Bullo. Robust implicit networks via non-Euclidean
        contractions. NeurIPS 2021. arXiv 2106.03194, section 5.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        margin: float = 0.0,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.n_in, self.n_state = n_in, n_state
        self.margin = check_margin(margin)
        self.activation = check_cone(activation or ReLU())
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.T = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.log_eta = nn.Parameter(torch.zeros(n_state, dtype=dtype))
        self.damping = nn.Parameter(torch.full((n_state,), -3.0, dtype=dtype))
        off = 1 - torch.eye(n_state, dtype=dtype)
        self.register_buffer("off_diagonal", off, persistent=False)
        self.off_diagonal: Tensor
        nn.init.uniform_(self.T, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        S, a, eta = skewed(self.T, self.log_eta, self.damping, self.off_diagonal, self.margin)
        A = Dense.of_parts(S, a)
        inject = self.inject
        return Affine(A, Dense(inject.weight), inject.bias, self.activation, witness=eta)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, margin={self.margin}, {self.activation.name}"


@final
class NemonConv2d(AffineCell):
    """Convolutional cell whose ``A`` has logarithmic max norm at most `margin` for any kernel.

    With a free kernel ``K`` whose centre taps ``K[o, o, c, c]`` are unused, one shift a channel:
    ``A = [eta] K [eta]^-1 + diag_o( margin - S_o - softplus(d_o) )``,
    ``S_o = sum_{i, k, l} |K[o, i, k, l]|`` and ``eta = exp(asinh(s))``. Every row
    of channel ``o`` then has measure at most ``margin - softplus(d_o)``, with equality at every
    pixel for circular padding and away from the border for zeros. (A shift by the largest entry
    instead of the sum, as published code has it, bounds nothing.)

    Args:
        c_in: Channels of the input image.
        c_state: Channels of the state.
        image: Height and width of the input.
        kernel: Odd side of both kernels.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the input convolution: the state lives on the coarser grid.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        c_in: int,
        c_state: int,
        *,
        image: tuple[int, int],
        kernel: int = 3,
        padding: Padding = "zeros",
        stride: int = 1,
        margin: float = 0.0,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(c_in=c_in, c_state=c_state, kernel=kernel, stride=stride)
        check_odd(kernel=kernel)
        self.margin = check_margin(margin)
        self.activation = check_cone(activation or ReLU())
        self.image, self.stride = image, stride
        self.padding: Padding = check_padding(padding)
        self.inject = nn.Parameter(torch.empty(c_state, c_in, kernel, kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.K = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        self.log_eta = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.damping = nn.Parameter(torch.full((c_state,), -3.0, dtype=dtype))
        centre = torch.zeros(c_state, c_state, kernel, kernel, dtype=dtype)
        centre[:, :, kernel // 2, kernel // 2] = torch.eye(c_state, dtype=dtype)
        self.register_buffer("centre", centre, persistent=False)
        self.centre: Tensor
        for weight in (self.inject, self.K):
            limit = 1 / sqrt(weight[0].numel())
            nn.init.uniform_(weight, -limit, limit)
        self._operator(self.inject, image, stride)  # shapes are checked here, not at first use

    def _operator(self, kernel: Tensor, image: tuple[int, int], stride: int = 1) -> Convolution:
        return Convolution(kernel, image, self.padding, stride)

    @override
    def explicit(self) -> Affine:
        off = self.K * (1 - self.centre)
        floor = self.margin - F.softplus(self.damping)
        size = torch.linalg.vector_norm(off.flatten(1), 1, dim=1)
        shift = torch.sub(floor, size, alpha=strictly(off))
        s = torch.asinh(self.log_eta)
        ratio = (s[:, None] - s).exp()[:, :, None, None]
        kernel = off * ratio + self.centre * shift[:, None, None, None]
        B = self._operator(self.inject, self.image, self.stride)
        A = self._operator(kernel, (B.out_shape[1], B.out_shape[2]))
        return Affine(
            A, B, self.bias[:, None, None], self.activation, witness=s.exp()[:, None, None]
        )

    @override
    def extra_repr(self) -> str:
        c_state, c_in, kernel, _ = self.inject.shape
        return (
            f"{c_in}, {c_state}, image={self.image}, kernel={kernel}, padding={self.padding!r}, "
            f"stride={self.stride}, margin={self.margin}, {self.activation.name}"
        )
