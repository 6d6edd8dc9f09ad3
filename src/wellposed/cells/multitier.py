"""The multi-tier monotone cell: states at several resolutions, coupled by strided convolutions."""

from __future__ import annotations

from math import prod, sqrt
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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
from wellposed.cells.kernels import by_phase, gram, plus, rounded, size_bound, skew, widened
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Padding
from wellposed.errors import ShapeError
from wellposed.solvers.base import Solver
from wellposed.solvers.splitting import PeacemanRachford


@final
class MultiTierCell(AffineCell):
    """States at resolutions 1, 1/2, 1/4, ... with ``I - A`` strongly monotone by construction [1].

    With ``F`` block lower bidiagonal, ``F_ii`` convolutions and ``F_{i+1,i}`` of stride 2,
    ``sym(I - A) = (margin + r) I + F^T F``, and ``A`` is block lower bidiagonal itself:
    ``A_ii = (1 - margin - r) I - F_ii^T F_ii - F_{i+1,i}^T F_{i+1,i} + S_ii - S_ii^T`` (the last
    tier without the third term), ``A_{i+1,i} = -2 F_{i+1,i+1}^T F_{i+1,i}``.

    Pixels of a finer tier that belong to one pixel of the coarsest are stored as channels, so that
    the whole of ``A`` is one convolution on the coarsest grid: exact, certified and solved like
    any other. The state has ``C = sum_i 4^(T-1-i) c_i`` channels there (`tiers` takes it apart). A
    step of Peaceman-Rachford costs ``4 C^2`` products for each of the ``h (w // 2 + 1)``
    frequencies of that small grid. (Blocks above the diagonal of ``A`` are zero, and so are those
    of the inverse; that is not made use of.)

    Args:
        c_in: Channels of the input image.
        c_state: Channels of each tier, finest first.
        image: Height and width of the input.
        kernel: Odd side of the kernels of ``F`` and ``S``.
        inject: Odd side of the input kernels; by default `kernel`. Every tier sees the input.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the finest tier's input convolution; that of the others is 2, 4, ... times it.
        margin: Modulus of strong monotonicity, positive.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: The margin is not positive, a kernel is even, or the activation leaves the
            cone.
        ShapeError: The finest tier cannot be halved often enough, or a kernel is larger than the
            image of its tier.

    References:
        [1] Winston, Kolter. Monotone operator equilibrium networks. NeurIPS 2020. arXiv 2006.08591,
        section on multi-tier networks.
    """

    preferred: ClassVar[Solver | None] = PeacemanRachford()

    def __init__(
        self,
        c_in: int,
        c_state: tuple[int, ...],
        *,
        image: tuple[int, int],
        kernel: int = 3,
        inject: int | None = None,
        padding: Padding = "zeros",
        stride: int = 1,
        margin: float = 1.0,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        side = kernel if inject is None else inject
        if not c_state:
            raise ShapeError("`c_state` must name the channels of at least one tier, got none.")
        check_sizes(c_in=c_in, c_state=min(c_state), kernel=kernel, inject=side, stride=stride)
        check_odd(kernel=kernel, inject=side)
        self.margin = check_modulus(margin)
        self.activation = check_cone(activation or ReLU())
        self.channels, self.stride = tuple(c_state), stride
        self.image = (int(image[0]), int(image[1]))
        self.padding: Padding = check_padding(padding)
        self.grids = self._shapes(kernel, side)

        def weights(shapes: list[tuple[int, ...]]) -> nn.ParameterList:
            made = nn.ParameterList(nn.Parameter(torch.empty(s, dtype=dtype)) for s in shapes)
            for weight in made:
                limit = 1 / sqrt(prod(weight.shape[1:]))
                nn.init.uniform_(weight, -limit, limit)
            return made

        taps = (kernel, kernel)
        pairs = list(zip(c_state[1:], c_state[:-1], strict=True))
        self.inject = weights([(c, c_in, side, side) for c in c_state])
        self.F = weights([(c, c, *taps) for c in c_state])
        self.S = weights([(c, c, *taps) for c in c_state])
        self.down = weights([(after, before, *taps) for after, before in pairs])
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(c, dtype=dtype)) for c in c_state)

    def _shapes(self, kernel: int, inject: int) -> tuple[tuple[int, int], ...]:
        """Height and width of each tier; refuses what does not fit."""
        halvings = 2 ** (len(self.channels) - 1)
        whole = self.stride * halvings
        height, width = ((side - 1) // self.stride + 1 for side in self.image)
        if height % halvings or width % halvings:
            raise ShapeError(
                f"The finest tier has {height} x {width} pixels, which {len(self.channels)} tiers "
                f"do not halve {len(self.channels) - 1} times.",
                hint=f"pad the image to sides that {whole} divides, or use fewer tiers.",
            )
        if self.padding == "circular" and any(side % whole for side in self.image):
            raise ShapeError(f"A circular image of {self.image} needs sides that {whole} divides.")
        grids = tuple((height >> i, width >> i) for i in range(len(self.channels)))
        for name, side, sides in (("input", inject, self.image), ("state", kernel, grids[-1])):
            check_kernel(side, sides, name)
        return grids

    @property
    def whole(self) -> int:
        """Channels of the state on the coarsest grid."""
        last = len(self.channels) - 1
        return sum(c * 4 ** (last - i) for i, c in enumerate(self.channels))

    def tiers(self, z: Tensor) -> list[Tensor]:
        """The states of the tiers, finest first, from a state of the whole cell.

        Args:
            z: Shape (batch, C, height, width) of the coarsest grid.
        """
        out: list[Tensor] = []
        for c in reversed(self.channels[1:]):
            out.append(z[:, -c:])
            z = F.pixel_shuffle(z[:, :-c], 2)
        return [z, *reversed(out)]

    @override
    def explicit(self) -> Affine:
        # mixed precision would lower the products, and with them the bound
        with torch.autocast(self.F[0].device.type, enabled=False):
            A = Convolution(self._kernel(), self.grids[-1], self.padding)
        stride = self.stride * 2 ** (len(self.channels) - 1)
        B = Convolution(self._inject(), self.image, self.padding, stride)
        bias = self.bias[0]
        for later in list(self.bias)[1:]:
            bias = torch.cat([bias.repeat_interleave(4), later])
        return Affine(A, B, bias[:, None, None], self.activation)

    def _kernel(self) -> Tensor:
        factors = [weight.double() for weight in self.F]
        kernel = plus(skew(self.S[0].double()), -gram(factors[0]))
        size = size_bound(factors[0]).square()
        terms = factors[0][:, 0].numel()
        for i, down in enumerate(self.down, 1):
            across = by_phase(down.double(), 2)
            c = len(factors[i])
            row = torch.cat([across, _shaped(factors[i], across)], 1)
            product = gram(row)
            own = across.shape[1]
            # below the diagonal twice, above it nothing: the symmetric part is that of F^T F
            product = torch.cat(
                [
                    torch.cat([product[:own, :own], torch.zeros_like(product[:own, own:])], 1),
                    torch.cat([2 * product[own:, :own], product[own:, own:]], 1),
                ]
            )
            finer = _unshuffled(kernel)
            # tiers before the last but one do not meet this one
            front = len(finer) - own
            kernel = plus(
                _placed(finer, 0, len(finer) + c),
                plus(
                    _placed(-product, front, len(finer) + c),
                    _placed(skew(self.S[i].double()), len(finer), len(finer) + c),
                ),
            )
            size, terms = size + 2 * size_bound(row).square(), terms + row[:, 0].numel()
        return rounded(kernel, self.margin, self.F[0].dtype, terms, size)

    def _inject(self) -> Tensor:
        """Input kernels of all tiers as one, on the coarsest grid."""
        kernel = self.inject[0]
        for i, own in enumerate(list(self.inject)[1:]):
            fine = _by_phase_out(kernel, self.stride * 2**i)
            kernel = torch.cat([fine, _shaped(own, fine)])
        return kernel

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.inject[0].shape[1]}, {self.channels}, image={self.image}, "
            f"kernel={self.F[0].shape[2]}, inject={self.inject[0].shape[2]}, "
            f"padding={self.padding!r}, stride={self.stride}, margin={self.margin}, "
            f"{self.activation.name}"
        )


def _shaped(kernel: Tensor, like: Tensor) -> Tensor:
    return widened(kernel, (like.shape[2], like.shape[3]))


def _placed(kernel: Tensor, at: int, size: int) -> Tensor:
    """A square kernel as a block of a larger one, from channel `at` on."""
    rest = size - at - len(kernel)
    return F.pad(kernel, (0, 0, 0, 0, at, rest, at, rest))


def _unshuffled(kernel: Tensor) -> Tensor:
    """A square kernel on images stored with 2 x 2 pixels as channels, both in and out."""
    return by_phase(_by_phase_out(kernel, 1), 2)


def _by_phase_out(kernel: Tensor, rate: int) -> Tensor:
    """The same convolution with stride twice as large, 2 x 2 pixels of the result as channels.

    Phase ``g`` of the result sees the argument ``rate g`` pixels further on.
    """
    out, into = kernel.shape[:2]
    blocks = [
        F.pad(kernel, (rate + rate * g, rate - rate * g, rate + rate * f, rate - rate * f))
        for f in (0, 1)
        for g in (0, 1)
    ]
    stacked = torch.stack(blocks, 1)
    return stacked.reshape(4 * out, into, *stacked.shape[3:])
