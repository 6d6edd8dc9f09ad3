"""NEMON: affine cells with a logarithmic max norm bounded by construction, dense and convolution."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.core.activations import Activation, ReLU, resolvent_range
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Dense, Padding
from wellposed.errors import ConfigError, ShapeError


@final
class NemonCell(AffineCell):
    """Dense cell whose ``A`` has logarithmic max norm at most `margin` for any parameters [1].

    ``A = [eta] offdiag(T) [eta]^-1 + diag( margin - sum_{j != i} |T_ij| - softplus(d_i) )`` with
    ``eta = exp(s)`` and ``T, s, d`` free, so that row i has measure
    ``margin - softplus(d_i) < margin`` in the ``eta``-weighted max norm. The diagonal of ``T`` is
    unused; the published form loses the gradient of a positive ``T_ii``, this one does not.

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
        _check_sizes(n_in=n_in, n_state=n_state)
        self.n_in, self.n_state = n_in, n_state
        self.margin = _check_margin(margin)
        self.activation = _check_cone(activation or ReLU())
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.T = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.log_eta = nn.Parameter(torch.zeros(n_state, dtype=dtype))
        self.damping = nn.Parameter(torch.full((n_state,), -3.0, dtype=dtype))
        nn.init.uniform_(self.T, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        off = self.T - torch.diag_embed(torch.diagonal(self.T))
        diagonal = self.margin - off.abs().sum(1) - F.softplus(self.damping)
        eta = self.log_eta.exp()
        A = off * (eta[:, None] / eta) + torch.diag_embed(diagonal)
        return Affine(
            Dense(A), Dense(self.inject.weight), self.inject.bias, self.activation, witness=eta
        )

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, margin={self.margin}, {self.activation.name}"


@final
class NemonConv2d(AffineCell):
    """Convolutional cell whose ``A`` has logarithmic max norm at most `margin` for any kernel.

    With a free kernel ``K`` whose centre taps ``K[o, o, c, c]`` are unused, one shift a channel:
    ``A = [eta] K [eta]^-1 + diag_o( margin - S_o - softplus(d_o) )``,
    ``S_o = sum_{i, k, l} |K[o, i, k, l]|``. Every row of channel ``o`` then has measure at most
    ``margin - softplus(d_o)``, with equality at every pixel for circular padding and away from the
    border for zeros. (A shift by the largest entry instead of the sum, as published code has it,
    bounds nothing.)

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
        _check_sizes(c_in=c_in, c_state=c_state, kernel=kernel, stride=stride)
        if kernel % 2 == 0:
            raise ConfigError(f"`kernel` must be odd, got {kernel}.")
        if padding not in ("zeros", "circular"):
            raise ConfigError(f'`padding` must be "zeros" or "circular", got {padding!r}.')
        self.margin = _check_margin(margin)
        self.activation = _check_cone(activation or ReLU())
        self.image, self.padding, self.stride = image, padding, stride
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
        shift = self.margin - off.abs().sum((1, 2, 3)) - F.softplus(self.damping)
        eta = self.log_eta.exp()[:, None, None, None]
        kernel = off * (eta / eta.squeeze(1)[None]) + self.centre * shift[:, None, None, None]
        B = self._operator(self.inject, self.image, self.stride)
        A = self._operator(kernel, (B.out_shape[1], B.out_shape[2]))
        return Affine(
            A, B, self.bias[:, None, None], self.activation, witness=eta.reshape(-1, 1, 1)
        )

    @override
    def extra_repr(self) -> str:
        c_state, c_in, kernel, _ = self.inject.shape
        return (
            f"{c_in}, {c_state}, image={self.image}, kernel={kernel}, padding={self.padding!r}, "
            f"stride={self.stride}, margin={self.margin}, {self.activation.name}"
        )


def _check_margin(margin: float) -> float:
    if not margin < 1:
        raise ConfigError(
            f"`margin` must be below 1, got {margin}: it bounds the logarithmic norm of A, and the "
            "equilibrium is only proved to exist below 1.",
            hint="0 is the published choice; 0.9 is already slow to solve.",
        )
    return float(margin)


def _check_cone(activation: Activation) -> Activation:
    low, high = activation.slopes
    if low < 0 or high > 1:
        raise ConfigError(
            f"{activation.name} has slopes in [{low}, {high}]; this cell is only well posed for "
            "slopes in [0, 1].",
            hint="use ReLU, leaky ReLU, tanh, sigmoid, softplus or ELU, or an `InfNormCell` with "
            f"`bound` below {1 / activation.steepest:.3f}.",
        )
    if not resolvent_range(activation)[1] >= 1:
        raise ConfigError(f"{activation.name} is too steep for this cell.")
    return activation


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"`{name}` must be at least 1, got {size}.")
