"""Every convolution compared with one on a torus, where frequencies do not see each other."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd, prod, sqrt
from typing import final

import torch
from torch import Tensor

from wellposed.core.convolutions import GeneralConvolution
from wellposed.core.matrix_norm import frobenius
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.core.symbols import Grid


@final
@dataclass(frozen=True, eq=False)
class Torus:
    """Circular convolutions, one a group, whose largest 2-norm times a factor bounds another.

    Args:
        kernels: Shape (groups, out, in, ...), without stride or dilation.
        grid: Sides of the torus.
        factor: What the norm is multiplied with, rounded up.
        exact: Whether that is the other norm, and not merely a bound.
        reason: What is compared with what.
        error: Bound of the 2-norm of what adding up taps on one pixel has rounded away.
    """

    kernels: Tensor
    grid: Grid
    factor: float
    exact: bool
    reason: str
    error: float


@final
@dataclass(frozen=True)
class _Axis:
    side: int
    stride: int
    dilation: int
    copies: int
    exact: bool


def torus(operator: GeneralConvolution) -> Torus:
    """The circular convolution that is, or bounds, a convolution; differentiable in its kernel.

    Zeros outside: the compression of a circular one on every torus of at least
    ``n + max(overhang)`` pixels a side, where no window reads a pixel that it should not. A
    stride ``s`` that divides the torus makes ``s`` channels of each (its polyphase components),
    and a dilation without stride falls apart into smaller images. Circular: as it is; where the
    stride does not divide the image, the one without stride is a bound. Reflected and replicated:
    the convolution without padding after a map ``P`` that copies pixels; ``||P||^2`` is the
    largest number of copies. Groups are blocks of one matrix, and the largest counts.
    """
    axes = [_axis(operator, axis) for axis in range(len(operator.image))]
    where = " x ".join(str(a.side) for a in axes)
    copies = prod(a.copies for a in axes)
    if all(a.exact for a in axes):
        reason = f"circular on {where}"
    elif operator.outside == "zeros":
        reason = f"circular on {where}, which zero padding compresses"
    elif operator.outside == "circular":
        reason = f"circular on {where}, with rows that the stride leaves out"
    else:
        reason = f"circular on {where}, whose pixels are copies"
    if copies > 1:
        reason = f"{reason}; times sqrt({copies})"
    kernels = _polyphase(operator.kernel, axes).unflatten(0, (operator.groups, -1))
    grid = zip(kernels.shape[3:], axes, strict=True)
    return Torus(
        kernels,
        # along an axis of one tap all frequencies are alike
        tuple(1 if k == 1 else a.side // a.stride for k, a in grid),
        1.0 if copies == 1 else sqrt(copies) * (1 + 4 * UNIT),
        all(a.exact for a in axes),
        reason,
        _merged(operator, axes),
    )


def _axis(operator: GeneralConvolution, axis: int) -> _Axis:
    n, (before, after) = operator.image[axis], operator.margin[axis]
    k, s, d = operator.kernel.shape[axis + 2], operator.stride[axis], operator.dilation[axis]
    count, reach = operator.out_shape[axis + 1], d * (k - 1)
    if operator.outside == "circular":
        rows = n // gcd(s, n)  # after so many results they repeat
        exact = n % s == 0 and count % rows == 0
        if n % s:
            s = 1
        if s == 1:
            n, d = n // gcd(d, n), 1
        return _Axis(n, s, d, ceil(count / rows), exact)
    copies = 1
    if operator.outside != "zeros" and (before, after) != (0, 0):
        copies = int(operator.sources()[axis].bincount().amax())
        n, before = n + before + after, 0
    over = max(before, s * (count - 1) + reach - before - (n - 1), 0)
    whole = copies == 1 and before == over == 0 and s * count == n and (d == 1 or k == 1)
    over = min(over, reach)  # windows that lie outside altogether are rows of zeros
    if s == 1:
        n, over, count, reach, d = ceil(n / d), ceil(over / d), ceil(count / d), k - 1, 1
    side = max(n + over, min(s * (count - 1) + 1, n + reach))
    return _Axis(s * ceil(side / s), s, d, copies, whole)


def _merged(operator: GeneralConvolution, axes: list[_Axis]) -> float:
    """Bound of the rounding of sums of taps that stand on one pixel."""
    taps = operator.kernel.shape[2:]
    if all(k <= a.side // gcd(a.dilation, a.side) for k, a in zip(taps, axes, strict=True)):
        return 0.0
    mass = operator.kernel.detach().abs().double().flatten(2).sum(2)
    size = float(frobenius(outward(mass, prod(taps)).unflatten(0, (operator.groups, -1))).amax())
    return 2 * rounding(prod(taps) + 4) * size


def _polyphase(kernel: Tensor, axes: list[_Axis]) -> Tensor:
    """Taps at ``q s + a`` become tap ``q`` of phase ``a``, a channel; taps that meet are added."""
    for axis, a in enumerate(axes, 2):
        k = kernel.shape[axis]
        if a.stride == a.dilation == 1 and k <= a.side:
            continue
        at = torch.arange(k, device=kernel.device) * a.dilation % a.side
        shape = list(kernel.shape)
        shape[axis] = a.stride * (int(at.max()) // a.stride + 1)
        kernel = kernel.new_zeros(shape).index_add(axis, at, kernel)
    if all(a.stride == 1 for a in axes):
        return kernel
    for axis, a in enumerate(axes):
        kernel = kernel.unflatten(2 + 2 * axis, (-1, a.stride))
    count = len(axes)
    order = [0, 1, *range(3, 2 * count + 2, 2), *range(2, 2 * count + 2, 2)]
    return kernel.permute(order).flatten(1, 1 + count)
