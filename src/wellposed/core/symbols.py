"""Circular convolutions by frequency: the matrices that they are there, on half of the spectrum.

Symbols are summed from tables of cosines and sines of exact angles, so that no fast Fourier
transform is trusted.
"""

from __future__ import annotations

from math import lcm, pi, prod

import torch
from torch import Tensor

from wellposed.core.spectra import UNIT

TABLE_ERROR = 32 * UNIT  # of a cosine of a reduced angle below 2 pi, computed in float64

Grid = tuple[int, ...]


def symbols(kernel: Tensor, grid: Grid, stride: int = 1, rows: Tensor | None = None) -> Tensor:
    """The matrices that a circular convolution is at each frequency, half of the spectrum.

    ``D(w) = sum_t K_t exp(-i <w, t>)``; with a stride, ``[D(w + 2 pi a / s)]_a / s`` side by side
    over the frequencies that alias. Real kernels have ``D(-w) = conj(D(w))``, so that half of the
    frequencies has all singular values.

    Args:
        kernel: Shape (out, in, ...), real; differentiable.
        grid: Sides of the image; `stride` divides them.
        stride: Of the result, on two-dimensional images only.
        rows: Which frequencies, as numbers below those of the half spectrum; all by default.

    Returns:
        Shape (frequencies, out, stride^2 in), complex.
    """
    coarse = tuple(side // stride for side in grid)
    rows = torch.arange(half_spectrum(coarse)) if rows is None else rows.cpu()
    u = frequencies(coarse, rows)
    if stride == 1:
        return at_phases(kernel, phases(u, tuple(kernel.shape[2:]), grid))
    blocks = [
        at_phases(
            kernel,
            phases([u[0] + a * coarse[0], u[1] + b * coarse[1]], tuple(kernel.shape[2:]), grid),
        )
        for a in range(stride)
        for b in range(stride)
    ]
    return torch.cat(blocks, -1) / stride


def half_spectrum(grid: Grid) -> int:
    """How many frequencies have the singular values of all of them, for a real kernel."""
    return prod(grid[:-1]) * (grid[-1] // 2 + 1)


def frequencies(grid: Grid, rows: Tensor) -> list[Tensor]:
    """Whole-numbered frequencies along each axis, of given numbers in the half spectrum."""
    sides = [*grid[:-1], grid[-1] // 2 + 1]
    found: list[Tensor] = []
    for side in reversed(sides):
        found.append(rows % side)
        rows = rows // side
    return found[::-1]


def phases(u: list[Tensor], taps: Grid, grid: Grid, first: Grid | None = None) -> Tensor:
    """``exp(-i <w, t>)`` as (real part, imaginary part), for all taps of a kernel.

    Angles are whole numbers of parts of a turn until the very end; not even the product of two
    phases adds an error.

    Args:
        u: Frequencies along each axis, ``w = 2 pi u / grid``.
        taps: Sides of the kernel.
        grid: Sides of the torus.
        first: Where the first tap of each axis stands; at zero by default.

    Returns:
        Shape (2, frequencies, prod(taps)), float64.
    """
    common = lcm(*grid)
    angle = torch.zeros(len(u[0]), 1, dtype=torch.int64)
    starts = (0,) * len(grid) if first is None else first
    for frequency, start, count, side in zip(u, starts, taps, grid, strict=True):
        one = frequency[:, None] * torch.arange(start, start + count) % side * (common // side)
        angle = (angle[:, :, None] + one[:, None, :]).flatten(1) % common
    turn = angle.double() * (2 * pi / common)
    return torch.stack([turn.cos(), -turn.sin()])


def at_phases(kernel: Tensor, phase: Tensor) -> Tensor:
    """``sum_t K_t phase_t``, shape (frequencies, out, in), complex."""
    # taps behind channels as they lie in memory; the product leaves matrices in one piece
    flat = kernel.flatten(2).permute(2, 0, 1).flatten(1)
    parts = phase.to(kernel).flatten(0, 1) @ flat
    both = parts.reshape(2, -1, *kernel.shape[:2])
    return torch.complex(both[0], both[1])
