"""Kernels of compositions of convolutions, for cells whose state operator is monotone.

The composition of two convolutions with centred kernels is a convolution with a centred kernel; the
adjoint of one has the transposed, point-reflected kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gram(kernel: Tensor) -> Tensor:
    """The kernel of ``F^T F``: ``G_d = sum_e F_e^T F_{e + d}``.

    Args:
        kernel: Of ``F``, shape (r, c, k, l), odd sides.

    Returns:
        Shape (c, c, 2k - 1, 2l - 1), in the precision of `kernel`.
    """
    r, c, tall, wide = kernel.shape
    # one product of all pairs of taps; pairs of equal distance lie on diagonals, which are summed
    flat = kernel.permute(1, 2, 3, 0).reshape(c * tall * wide, r)
    pairs = (flat @ flat.mT).reshape(c, tall, wide, c, tall, wide)
    down = _diagonals(pairs.permute(0, 3, 2, 5, 1, 4))  # (c, c, wide, wide, 2 tall - 1)
    return _diagonals(down.permute(0, 1, 4, 2, 3))


def skew(kernel: Tensor) -> Tensor:
    """The kernel of ``S - S^T``."""
    return kernel - kernel.transpose(0, 1).flip((2, 3))


def by_phase(kernel: Tensor, stride: int) -> Tensor:
    """A strided convolution as one without stride: squares of pixels are channels of its argument.

    Pixel ``s q + f`` of the argument is pixel ``q`` of phase ``f``, ordered as `F.pixel_unshuffle`
    does: tap ``d`` of the kernel is tap ``e`` of phase ``f`` with ``d = s e + f``.

    Args:
        kernel: Shape (out, in, height, width), odd sides.
        stride: ``s``.

    Returns:
        Shape (out, in s^2, 2 a + 1, 2 b + 1); the reach ``a`` is ``height // 2`` over ``s``,
        rounded up.
    """
    out, into, height, width = kernel.shape
    tall, wide = (-(-(side // 2) // stride) for side in (height, width))
    rest = stride - 1
    # taps -s r .. s r + s - 1, so that blocks of s of them are the phases
    padded = F.pad(
        kernel,
        (stride * wide - width // 2, stride * wide + rest - width // 2,
         stride * tall - height // 2, stride * tall + rest - height // 2),
    )  # fmt: skip
    parts = padded.reshape(out, into, 2 * tall + 1, stride, 2 * wide + 1, stride)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(
        out, into * stride**2, 2 * tall + 1, 2 * wide + 1
    )


def cogram(kernel: Tensor, stride: int = 1) -> Tensor:
    """The kernel of ``U U^T`` for a convolution ``U`` with a stride.

    Frequencies of the argument that alias are folded together: it acts on results, and has no
    stride itself.

    Args:
        kernel: Of ``U``, shape (c, r, k, l), odd sides.
        stride: ``s``.

    Returns:
        Shape (c, c, 2a + 1, 2b + 1) with ``a = (k - 1) // s`` and ``b = (l - 1) // s``.
    """
    whole = by_phase(kernel, stride)
    # the adjoint of U gathers what U spreads; beyond that reach no two pixels share an input
    full = gram(whole.transpose(0, 1).flip((2, 3)))
    sides = [2 * ((side - 1) // stride) + 1 for side in kernel.shape[2:]]
    (up, left) = ((a - b) // 2 for a, b in zip(full.shape[2:], sides, strict=True))
    return full[:, :, up : up + sides[0], left : left + sides[1]]


def widened(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    """The same kernel with zeros around it, up to odd sides."""
    up, left = ((a - b) // 2 for a, b in zip(sides, kernel.shape[2:], strict=True))
    return F.pad(kernel, (left, left, up, up))


def plus(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two kernels of different sides."""
    sides = max(first.shape[2], second.shape[2]), max(first.shape[3], second.shape[3])
    return widened(first, sides) + widened(second, sides)


def size_bound(kernel: Tensor) -> Tensor:
    """The sum of the Frobenius norms of the taps, which bounds the 2-norm; detached."""
    return torch.linalg.matrix_norm(kernel.detach(), dim=(0, 1)).sum()


def identity(kernel: Tensor) -> Tensor:
    """The kernel of the identity, of the shape and precision of a square one."""
    one = torch.zeros_like(kernel)
    one[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = torch.eye(
        len(kernel), dtype=kernel.dtype, device=kernel.device
    )
    return one


def rounded(
    kernel: Tensor,
    margin: float,
    dtype: torch.dtype,
    terms: int,
    size: Tensor,
    *,
    ratio: Tensor | None = None,
) -> Tensor:
    """``ratio (kernel + (1 - margin - r) I)`` in another precision; ``r`` covers all rounding.

    In the 2-norm a convolution is at most the sum of the Frobenius norms of its taps; rounding to
    the precision of the weights changes each entry by half of its `eps` at most, and the entries
    themselves are sums of `terms` products in float64.

    Args:
        kernel: Skew part less Gram matrix, float64.
        margin: Modulus that the result keeps.
        dtype: Of the weights.
        terms: Products in an entry of the kernel.
        size: Bound of the 2-norm of the same sums with all terms positive.
        ratio: Of the scales of columns to those of rows, if the metric has any: the bound is
            about the kernel before it, since relative errors stay what they are.
    """
    with torch.no_grad():
        taps = size_bound(kernel)
        unit = torch.finfo(torch.float64).eps * (terms + 16)
        slack = torch.finfo(dtype).eps * (taps + abs(1 - margin) + 1e-30) + unit * (size + taps)
    whole = kernel + ((1 - margin) - slack) * identity(kernel)
    return (whole if ratio is None else whole * ratio).to(dtype)


def _diagonals(x: Tensor) -> Tensor:
    """``y[..., d] = sum_e x[..., e, e + d - (n - 1)]`` for a last pair of dimensions (n, n)."""
    n = x.shape[-1]
    wide = F.pad(x, (n - 1, n - 1))
    # entry d of row e is entry e + d of the padded row
    rows = [wide[..., e, e : e + 2 * n - 1] for e in range(n)]
    return torch.stack(rows).sum(0)
