"""2-norms of convolutions, proved at every frequency of a torus.

A few candidates are found by the power method; a Cholesky factorisation at each of the other
frequencies then *proves* that nothing larger is there. No eigenvalue is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, pi, prod, sqrt
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from wellposed.core.brackets import NormBracket, bracket, check_finite, shifted
from wellposed.core.convolutions import GeneralConvolution
from wellposed.core.matrix_norm import frobenius, matrix_bracket, stretched
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.core.symbols import (
    TABLE_ERROR,
    Grid,
    at_phases,
    frequencies,
    half_spectrum,
    phases,
    symbols,
)
from wellposed.core.tori import Torus, torus

_BLOCK = 1 << 18  # complex numbers of matrices held at a time, as a cache holds them
_WIDE = 1 << 25  # the same on an accelerator
_STEPS, _GUESSES, _ROUNDS = 4, 4, 4
_CORRELATE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@final
@dataclass(frozen=True, eq=False)
class Gram:
    """``D(w) D(w)^H`` of circular convolutions at some frequencies, one matrix a group.

    Args:
        rows: Numbers of the frequencies in the half spectrum.
        matrices: Shape (frequencies, groups, n, n), complex128; only the lower triangle counts.
        error: Bound of the Frobenius norm of what each matrix is off.
    """

    rows: Tensor
    matrices: Tensor
    error: float


@final
@dataclass(frozen=True)
class Top:
    """The largest 2-norm on a torus, and where it is.

    Args:
        bracket: Bounds of it.
        row: Number of the frequency in the half spectrum.
        group: Number of the group.
    """

    bracket: NormBracket
    row: int
    group: int


@torch.no_grad()
def convolution_bracket(operator: GeneralConvolution) -> NormBracket:
    """Bounds of the 2-norm of a convolution, from both sides.

    Raises:
        NotCertifiableError: A weight is not finite.
    """
    kernel = operator.kernel.detach().double()
    on = torus(operator.with_weight(kernel))
    best = top(on.kernels, on.grid)
    found = best.bracket
    if on.exact:
        return stated(on, found.lower, found.upper, f"{on.reason}, half of the frequencies")
    start = _wave(operator, on, best)
    lower = stretched(operator) if start is None else stretched(operator, start, _STEPS)
    return bracket(lower, stated(on, 0.0, found.upper, "").upper, on.reason)


def stated(on: Torus, lower: float, upper: float, method: str) -> NormBracket:
    """The bracket of a convolution, given that of the torus that it is compared with."""
    low = (lower - on.error) * on.factor * (1 - 16 * UNIT)
    return bracket(low, (upper + on.error) * on.factor * (1 + 8 * UNIT), method)


def convolution_norm(operator: GeneralConvolution) -> Tensor:
    """The same upper bound as a differentiable number in float64; no certificate.

    Derivatives of every order are those of the largest singular value, where it is simple.
    """
    on = torus(operator.with_weight(operator.kernel.double()))
    best = top(on.kernels.detach(), on.grid)
    matrix = symbols(on.kernels[best.group], on.grid, rows=torch.tensor([best.row]))[0]
    return on.factor * torch.linalg.svdvals(matrix)[0]


@torch.no_grad()
def top(kernels: Tensor, grid: Grid) -> Top:
    """The largest 2-norm of circular convolutions, with a proof.

    ``s I - D D^H`` has a Cholesky factorisation only if ``s`` is at least the largest eigenvalue,
    up to the rounding of the factorisation [1]. Where it fails, the frequency held something
    larger; its eigenvalues are computed, ``s`` grows, and the proof is tried again there.

    Args:
        kernels: Shape (groups, out, in, ...), float64.
        grid: Sides of the torus.

    Raises:
        NotCertifiableError: A weight is not finite.

    References:
        [1] Rump, Verification of positive definiteness. BIT 2006.
    """
    size = float(kernels.abs().amax())
    check_finite(size)
    if size == 0:
        return Top(bracket(0.0, 0.0, "zero"), 0, 0)
    exponent = frexp(size)[1]
    kernels = torch.ldexp(kernels, torch.tensor(-exponent, device=kernels.device))
    shift, over, wrong, place = 0.0, 0.0, 0.0, (0, 0)
    n, groups = min(kernels.shape[1:3]), len(kernels)
    for gram in grams(kernels, grid):
        left = gram.matrices.flatten(0, 1)
        at = torch.arange(len(left), device=left.device)
        look = _candidates(left)
        for _ in range(_ROUNDS):
            eigen = torch.linalg.eigvalsh(left[look])[:, -1]
            best = int(eigen.argmax())
            if float(eigen[best]) > shift:
                # room for the rounding of the factorisation
                shift = float(eigen[best]) * (1 + 1e-11)
                winner = int(at[look[best]])
                place = int(gram.rows[winner // groups]), winner % groups
            failed = torch.linalg.cholesky_ex(_room(shift, left))[1] != 0
            left, at = left[failed], at[failed]
            if not len(left):
                break
            look = torch.arange(len(left), device=left.device)
        else:
            over = max(over, float(frobenius(left).amax()))
        wrong = max(wrong, gram.error)
    # what is factorised has a trace of at most n times the shift, and its rounding
    upper = max(shift * (1 + 8 * rounding(n + 8) * (n + 1)), over) + wrong
    row, group = place
    matrix = symbols(kernels[group], grid, rows=torch.tensor([row]))
    lower = matrix_bracket(matrix, symbol_error(kernels)).lower
    found = bracket(lower, sqrt(upper) * (1 + 8 * UNIT), "frequencies")
    return Top(shifted(found, exponent), row, group)


def grams(kernels: Tensor, grid: Grid) -> Iterator[Gram]:
    """``D D^H`` at half of the frequencies, or ``D^H D`` where that is smaller.

    It is the symbol of the correlation of the kernel with itself, which is formed once, where that
    costs less than a product at each frequency.

    Args:
        kernels: Shape (groups, out, in, ...), float64, of moderate size.
        grid: Sides of the torus.
    """
    if kernels.shape[1] > kernels.shape[2]:
        kernels = kernels.transpose(1, 2)
    groups, n, m = kernels.shape[:3]
    taps = tuple(kernels.shape[3:])
    count, wide = half_spectrum(grid), tuple(2 * t - 1 for t in taps)
    # every error is one of an entry, relative to the sum of all absolute products in it
    mass = kernels.abs().flatten(3).sum(3)
    size = float(frobenius(outward(mass @ mass.mT, m * prod(taps))).amax())
    unit = TABLE_ERROR + rounding(prod(wide) + 8) + rounding(m * prod(taps) + 8)
    once = n * m * prod(taps) * prod(wide) + 2 * count * prod(wide) * n
    each = 2 * count * m * (prod(taps) + 4 * n)
    if once <= each:
        spread = kernels.transpose(0, 1).flatten(1, 2)
        source = _CORRELATE[len(taps)](
            spread, kernels.flatten(0, 1), padding=[t - 1 for t in taps], groups=groups
        )
        source = source.unflatten(1, (groups, n)).transpose(0, 1).flatten(0, 1)
        first = tuple(1 - t for t in taps)
    else:
        source, wide, first = kernels.flatten(0, 1), taps, (0,) * len(taps)
    block = _WIDE if kernels.is_cuda else _BLOCK
    for rows in torch.arange(count).split(max(1, block // (groups * n * n))):
        found = at_phases(source, phases(frequencies(grid, rows), wide, grid, first))
        found = found.unflatten(1, (groups, n))
        yield Gram(rows, found if once <= each else found @ found.mH, 8 * unit * size)


def symbol_error(kernels: Tensor) -> float:
    """Bound of the 2-norm of the error of any symbol of circular convolutions."""
    mass = kernels.abs().flatten(3).sum(3)
    taps = prod(kernels.shape[3:])
    unit = TABLE_ERROR + 2 * rounding(taps + 4)
    return float(frobenius(outward(unit * mass, taps)).amax()) * (1 + 1e-12)


def _candidates(H: Tensor) -> Tensor:
    """Where the power method sees the largest eigenvalues, in single precision."""
    rough = H.to(torch.complex64)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(H), H.shape[-1], 1, generator=generator).to(rough)
    for _ in range(_STEPS):
        v = rough @ v
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-30)
    stretch = torch.linalg.vector_norm(rough @ v, dim=(1, 2))
    return stretch.topk(min(_GUESSES, len(H))).indices


def _wave(operator: GeneralConvolution, on: Torus, best: Top) -> Tensor | None:
    """The plane wave that the torus stretches most, faded out towards the edges of the image.

    `None` where a stride or a dilation has rearranged the pixels.
    """
    if set(operator.stride) | set(operator.dilation) != {1}:
        return None
    row = torch.tensor([best.row])
    symbol = symbols(on.kernels[best.group], on.grid, rows=row)[0]
    wave = torch.linalg.svd(symbol, full_matrices=False)[2][0].conj()
    for u, side, n in zip(frequencies(on.grid, row), on.grid, operator.image, strict=True):
        at = torch.arange(n, dtype=torch.float64, device=wave.device)
        fade = torch.sin(pi * (at + 1) / (n + 1))
        turn = torch.polar(fade, at * (-2 * pi * int(u) / side))
        wave = wave[..., None] * turn
    start = torch.zeros(2, *operator.in_shape, dtype=torch.float64, device=wave.device)
    channels = slice(best.group * len(wave), (best.group + 1) * len(wave))
    start[:, channels] = torch.stack([wave.real, wave.imag])
    return start


def _room(shift: float, H: Tensor) -> Tensor:
    below = -H
    below.diagonal(dim1=-2, dim2=-1).add_(shift)
    return below
