"""Row scales of matrices and kernels correlated with themselves: norms on images of any size."""

from __future__ import annotations

from math import frexp, prod, sqrt

import torch
from torch import Tensor

from wellposed.core.convolution_norm import symbol_error
from wellposed.core.matrix_norm import frobenius
from wellposed.core.spectra import TINY, UNIT, rounding
from wellposed.core.symbols import TABLE_ERROR, at_phases, frequencies, half_spectrum, phases


def row_scales(weight: Tensor, steps: int) -> Tensor:
    """``t_i = (sum_j |P_ij|)^(2^-T)`` with ``P = (W W^T)^(2^(T-1))``: then ``W W^T <= [t]^2`` [1].

    ``P <= [sum_j |P_ij|]`` in the order of symmetric matrices, and roots keep that order. For a
    convolution `P` is the kernel correlated with itself `T` times, and sums run over its taps: the
    statement holds on images of any size with zeros outside, and on circular ones. That kernel is
    found by frequency, on the smallest torus that it fits. What rounding takes away is added.

    Args:
        weight: Shape (out, in) or, of a convolution, (out, in, ...); not zero altogether.
        steps: ``T``, at least one.

    Returns:
        Shape (out,), float64; differentiable.

    References:
        [1] Delattre, Barthelemy, Allauzen. Spectral norm of convolutional layers with circular and
        zero paddings. 2024, arXiv 2402.00240.
    """
    grid = tuple(2**steps * (k - 1) + 1 for k in weight.shape[2:])
    shift = frexp(float(weight.detach().abs().amax()))[1]
    # a subnormal largest weight has no power of two of its own
    shift = max(shift, -1000)
    kernel = weight.double() * 2.0**-shift
    rows = frequencies(grid, torch.arange(half_spectrum(grid))) if grid else []
    if grid:
        square = at_phases(kernel, phases(rows, tuple(kernel.shape[2:]), grid))
        wrong = symbol_error(kernel.detach()[None])
    else:
        square, wrong = kernel[None], 0.0
    exponent = shift * 2**steps
    for step in range(steps):
        size = float(frobenius(square.detach()).amax())
        unit = 8 * rounding(square.shape[-1] + 8)
        wrong = 2 * size * wrong + wrong**2 + unit * size**2
        square = square @ square.mH
        even = frexp(size)[1] * 2 - 2
        square, wrong = square * 2.0**-even, wrong * 2.0**-even * (1 + 8 * UNIT) + TINY
        exponent += even * 2 ** (steps - 1 - step)
    sums, wrong = _row_sums(square, grid, wrong)
    return _root(sums + wrong, exponent, steps)


def _row_sums(square: Tensor, grid: tuple[int, ...], wrong: float) -> tuple[Tensor, float]:
    """Sums of absolute taps in each row of the kernel with given symbols, and their error."""
    n = square.shape[-1]
    if not grid:
        return square[0].abs().sum(1), sqrt(n) * wrong + 2 * rounding(n + 8) * n
    count = half_spectrum(grid)
    taps = phases(frequencies(grid, torch.arange(count)), grid, grid).to(square.real)
    # frequencies without an opposite on this half count once
    twice = torch.full((count,), 2.0, dtype=torch.float64, device=square.device)
    last = torch.arange(count) % (grid[-1] // 2 + 1)
    twice[last == 0] = 1
    if grid[-1] % 2 == 0:
        twice[last == grid[-1] // 2] = 1
    table = (taps * (twice / prod(grid))[:, None]).flatten(0, 1)
    # the opposite turn: conj(exp) times the symbol, of which only the real part is left
    parts = torch.cat([square.real, square.imag]).flatten(1)
    kernel = (table.mT @ parts).reshape(-1, n, n)
    sums = kernel.abs().sum((0, 2))
    size = float(frobenius(square.detach()).amax())
    # of an entry: all symbols together have at most `size`; of a row: all its entries
    unit = 2 * (TABLE_ERROR + rounding(2 * count + 8)) * 2 + 2 * rounding(n * prod(grid) + 8)
    return sums, sqrt(n * prod(grid)) * wrong + unit * size * n * prod(grid)


def _root(sums: Tensor, exponent: int, steps: int) -> Tensor:
    """``(2^exponent sums)^(2^-steps)``, rounded up."""
    whole, rest = divmod(exponent, 2**steps)
    t = sums * 2.0**rest
    for _ in range(steps):
        t = t.sqrt()
    return t * (2.0**whole * (1 + 8 * steps * UNIT))
