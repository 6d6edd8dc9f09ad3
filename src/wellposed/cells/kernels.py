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


def widened(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    """The same kernel with zeros around it, up to odd sides."""
    up, left = ((a - b) // 2 for a, b in zip(sides, kernel.shape[2:], strict=True))
    return F.pad(kernel, (left, left, up, up))


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
        taps = torch.linalg.matrix_norm(kernel, dim=(0, 1)).sum()
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
