"""The convolutional Lipschitz-bounded cell: input, state and output kernels tied to each other."""

from __future__ import annotations

from math import isfinite, isqrt, sqrt
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
from wellposed.cells.kernels import cogram, gram, plus, rounded, size_bound, skew
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Padding
from wellposed.errors import ConfigError
from wellposed.solvers.base import Solver
from wellposed.solvers.splitting import PeacemanRachford

_SPARE = 512  # units of float64 for the rounding of whoever measures the inequality


@final
class LbenConv2d(AffineCell):
    """Convolutional cell that makes ``y = C z`` `gamma`-Lipschitz in the 2-norm, pixels to pixels.

    With ``Lam = [k]^2``, one number a channel, ``K = [k]`` and free convolutions ``F, S, U`` and a
    free matrix ``C`` of the channels,

        W = I - K^-1 H K,
        H = F^T F + (margin + r) I + S - S^T + ( K^-1 C^T C K^-1 + K U U^T K ) / (2 gamma),

    which is the parametrisation of `LBENCell` [1] with convolutions for matrices: compositions of
    few-tap kernels are few-tap kernels, and no pass meets a Fourier transform. ``r >= 0`` absorbs
    the rounding of the weights. A strided ``U`` folds the frequencies that alias into one, which
    ``U U^T`` does by itself: it is a convolution on the state's grid without a stride. Then for
    ``Z = 2 Lam - Lam W - W^T Lam``

        Z - ( C^T C + Lam U U^T Lam ) / gamma  >=  2 margin Lam                               (1)

    at every frequency, and slopes in [0, 1] give ``||y - y'|| <= gamma ||x - x'||``. Padded with
    zeros, ``W`` and ``U`` are compressions of the circular convolutions on a larger torus, ``C``
    commutes with the compression, and (1) is inherited. Without `gamma` the last term of ``H`` is
    absent and the network is well posed only.

    The whole network is `LBENConv`. Whether (1) holds is measured on the explicit weights by
    `wellposed.certify`, never taken from here.

    Args:
        c_in: Channels of the input image.
        c_state: Channels of the state.
        c_out: Channels of ``y``; `None` bounds the gain to the state itself, ``C = I``.
        image: Height and width of the input.
        gamma: Bound of the Lipschitz constant from ``x`` to ``y``, positive; `None` for none.
        kernel: Odd side of ``F`` and ``S``.
        inject: Odd side of the input kernel; by default `kernel`.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the input convolution: the state lives on the coarser grid.
        margin: Modulus of strong monotonicity in the metric ``Lam``, positive.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: `gamma` or `margin` is not positive and finite, a kernel is even, or the
            activation leaves the cone.
        ShapeError: A kernel is larger than its image, or the stride does not fit.

    References:
        [1] Revay, Wang, Manchester. Lipschitz bounded equilibrium networks. arXiv 2010.01732,
        theorems 2 and 4 (dense).
    """

    preferred: ClassVar[Solver | None] = PeacemanRachford()

    def __init__(
        self,
        c_in: int,
        c_state: int,
        c_out: int | None = None,
        *,
        image: tuple[int, int],
        gamma: float | None,
        kernel: int = 3,
        inject: int | None = None,
        padding: Padding = "circular",
        stride: int = 1,
        margin: float = 0.1,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        side = kernel if inject is None else inject
        check_sizes(
            c_in=c_in, c_state=c_state, c_out=1 if c_out is None else c_out,
            kernel=kernel, inject=side, stride=stride,
        )  # fmt: skip
        check_odd(kernel=kernel, inject=side)
        if gamma is not None and not (gamma > 0 and isfinite(gamma)):
            raise ConfigError(
                f"`gamma` must be positive and finite, got {gamma}: it bounds a gain.",
                hint="None asks for a well-posed network without a bound.",
            )
        self.gamma = None if gamma is None else float(gamma)
        self.margin = check_modulus(margin)
        self.activation = check_cone(activation or ReLU())
        self.image, self.stride = (int(image[0]), int(image[1])), stride
        self.padding: Padding = check_padding(padding)
        self.inject = nn.Parameter(torch.empty(c_state, c_in, side, side, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.F = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        self.S = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.readout = None if c_out is None else nn.Conv2d(c_state, c_out, 1, dtype=dtype)
        for weight in (self.inject, self.F, self.S):
            limit = 1 / sqrt(weight[0].numel())
            nn.init.uniform_(weight, -limit, limit)
        height, width = Convolution(self.inject, image, padding, stride).out_shape[1:]
        self.grid = (height, width)
        check_kernel(side, image, "input")
        check_kernel(kernel, self.grid, "state")

    @property
    def metric(self) -> Tensor:
        """``Lam``, one positive number a channel, as it is rounded to the weights' precision."""
        # `asinh` is a logarithm: neither this nor its inverse overflows
        return torch.asinh(self.log_scale.double()).mul(2).exp().to(self.log_scale.dtype)

    @override
    def explicit(self) -> Affine:
        # mixed precision would lower the products, and with them the bound
        with torch.autocast(self.F.device.type, enabled=False):
            lam = self.metric
            A = Convolution(self._kernel(lam.double().sqrt()), self.grid, self.padding)
        B = Convolution(self.inject, self.image, self.padding, self.stride)
        return Affine(
            A, B, self.bias[:, None, None], self.activation, metric=lam[:, None, None]
        )  # fmt: skip

    def _kernel(self, k: Tensor) -> Tensor:
        """The kernel of ``W`` from that of ``I - H``, composed in float64."""
        wide = self.F.double()
        product, size, terms = gram(wide), size_bound(wide).square(), wide[:, 0].numel()
        if self.gamma is not None:
            share = 1 / (2 * self.gamma)
            U = k[:, None, None, None] * self.inject.double()
            C = torch.diag(1 / k) if self.readout is None else self._readout() / k
            product = plus(product, share * cogram(U, self.stride))
            product = plus(product, share * (C.mT @ C)[:, :, None, None])
            size = size + share * (size_bound(U).square() + C.detach().square().sum())
            terms += U[0].numel() + len(C)
        kernel = plus(skew(self.S.double()), -product)
        ratio = (k / k[:, None])[:, :, None, None]
        # whoever measures has the errors of row sums, which are sqrt(c) times those of norms
        spare = _SPARE * (isqrt(len(k)) + 1)
        return rounded(kernel, self.margin, self.F.dtype, terms + spare, size, ratio=ratio)

    def _readout(self) -> Tensor:
        assert self.readout is not None
        return self.readout.weight[:, :, 0, 0].double()

    @override
    def extra_repr(self) -> str:
        c_state, c_in, inject, _ = self.inject.shape
        c_out = None if self.readout is None else self.readout.out_channels
        return (
            f"{c_in}, {c_state}, {c_out}, image={self.image}, gamma={self.gamma}, "
            f"kernel={self.F.shape[2]}, inject={inject}, padding={self.padding!r}, "
            f"stride={self.stride}, margin={self.margin}, {self.activation.name}"
        )
