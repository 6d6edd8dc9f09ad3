"""Gram iteration: 2-norms from above by repeated squaring.

``A_0 = G``, ``A_(t+1) = A_t^H A_t`` has the singular values ``sigma^(2^t)``, so that every norm of
``A_t`` that dominates the 2-norm bounds ``sigma_1`` by its ``2^t``-th root. It needs products of
matrices only, which is what accelerators do best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import frexp
from typing import final

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket, check_finite, shifted
from wellposed.core.convolution_norm import grams, stated
from wellposed.core.convolutions import GeneralConvolution, general
from wellposed.core.matrix_norm import frobenius, stretched
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.ritz import ritz_bounds
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.core.tori import torus
from wellposed.core.transposed import Adjoint
from wellposed.errors import ConfigError, ShapeError

STEPS = 24  # enough for ties among the largest singular values, as orthogonal matrices have them
_RITZ = 4  # before, a power says too little about the largest few


@final
@dataclass(frozen=True)
class Eigenvalue:
    """``lower <= lambda_1 <= upper`` for the largest eigenvalue among a batch of matrices.

    Args:
        lower: Proved, with rounding.
        upper: Proved, with rounding.
        steps: How many products were formed, that which gave the matrices included.
    """

    lower: float
    upper: float
    steps: int


@torch.no_grad()
def gram_bracket(matrices: Tensor, steps: int = STEPS, tol: float = 1e-6) -> NormBracket:
    """Bounds of the largest 2-norm of a batch of matrices, by Gram iteration [1].

    The work is done in float64, on matrices scaled by powers of two; the rounding of every product
    is carried to the end. The input may be of any precision.

    Args:
        matrices: Shape (..., p, q), real or complex.
        steps: At most this many products.
        tol: Stop when ``upper <= (1 + tol) lower``.

    Raises:
        ConfigError: `steps` is not positive or `tol` is negative.
        ShapeError: There are fewer than two dimensions.
        NotCertifiableError: An entry is not finite.

    References:
        [1] Delattre, Barthelemy, Araujo, Allauzen. Efficient bound of Lipschitz constant for
        convolutional layers by Gram iteration. ICML 2023, arXiv 2305.16173.
    """
    check_steps(steps, tol)
    if matrices.ndim < 2:
        raise ShapeError(f"Gram iteration needs matrices, got shape {tuple(matrices.shape)}.")
    held = matrices.detach()
    held = held.to(torch.complex128 if held.is_complex() else torch.float64)
    if not held.numel():
        return bracket(0.0, 0.0, "zero")
    parts = torch.view_as_real(held) if held.is_complex() else held
    size = float(parts.abs().amax())
    check_finite(size)
    if size == 0:
        return bracket(0.0, 0.0, "zero")
    exponent = max(frexp(size)[1], -1000)
    held = held * 2.0**-exponent
    held = held.reshape(-1, *held.shape[-2:])
    if held.shape[-1] > held.shape[-2]:
        held = held.mH
    unit = 8 * rounding(held.shape[-2] + 8)
    wrong = unit * frobenius(held).square() + TINY
    found = largest_eigenvalue(held.mH @ held, wrong, steps, 2 * tol)
    return shifted(_rooted(found), exponent)


@torch.no_grad()
def largest_eigenvalue(square: Tensor, wrong: Tensor, steps: int, tol: float) -> Eigenvalue:
    """Bounds of the largest eigenvalue among positive semidefinite matrices, by squaring them.

    At each level the smaller of the Frobenius norm and the largest row sum bounds the 2-norm of
    ``P = S^H S`` from above, and ``||P||_F^2 / tr P`` from below; both are brought back
    through ``H = 2^k S``, ``||H|| = 2^k sqrt(||P||)``, with what each product may have been off.
    Row sums are exact for multiples of the identity; elsewhere the error of the Frobenius norm
    falls at a double exponential rate, once the power has told the largest eigenvalue from those
    nearby. From level 4 on, a few vectors of the power are taken out of it first (`ritz_bounds`).
    Matrices that cannot hold the largest are dropped.

    Args:
        square: Shape (batch, n, n), float64 or complex128; computed, not necessarily semidefinite.
        wrong: Bound of the Frobenius norm of the error of each, shape (batch,).
        steps: At most this many levels, that of `square` included.
        tol: Stop when ``upper <= (1 + tol) lower``.
    """
    n = square.shape[-1]
    unit = 8 * rounding(n + 8)
    up = torch.full((len(square),), torch.inf, dtype=torch.float64, device=square.device)
    down = torch.zeros_like(up)
    dropped, shifts, errors = 0.0, list[Tensor](), [wrong]
    first, step = square, 1

    def back(high: Tensor) -> Tensor:
        # of the last power as computed -> of the first matrix as it should be
        high = high + errors[-1]
        for k, error in zip(reversed(shifts), reversed(errors[:-1]), strict=True):
            high = torch.ldexp(high.sqrt(), k) * (1 + 4 * UNIT) + error
        return high * (1 + 4 * UNIT)

    while True:
        high, low = _level(square, errors[-1])
        for k, error in zip(reversed(shifts), reversed(errors[:-1]), strict=True):
            low = (torch.ldexp(low.sqrt(), k) * (1 - 4 * UNIT) - error).clamp(min=0)
        up, down = torch.minimum(up, back(high)), torch.maximum(down, low)
        best, worst = float(down.amax()), max(float(up.amax()), dropped)
        if step >= _RITZ and n > 1 and worst > (1 + tol) * best:
            low, high = ritz_bounds(first, errors[0], square, back)
            up, down = torch.minimum(up, high), torch.maximum(down, low)
            best, worst = float(down.amax()), max(float(up.amax()), dropped)
        if step >= steps or worst <= (1 + tol) * best:
            return Eigenvalue(best * (1 - 4 * UNIT), worst * (1 + 4 * UNIT), step)
        keep = up > best * (1 + tol)
        if not bool(keep.all()):
            dropped = max(dropped, best * (1 + tol))
            first, square, up, down = first[keep], square[keep], up[keep], down[keep]
        shifts = [k[keep] for k in shifts]
        errors = [e[keep] for e in errors]
        size = frobenius(square)
        shifts.append(torch.frexp(size).exponent)
        S = torch.ldexp(square, -shifts[-1][:, None, None])
        errors.append(unit * frobenius(S).square() + n * n * TINY)
        square, step = S.mH @ S, step + 1


@singledispatch
def gram_norm_bracket(operator: Operator, tol: float = 1e-6, steps: int = STEPS) -> NormBracket:
    """Bounds of the 2-norm of an operator by Gram iteration.

    Args:
        operator: A matrix, or a convolution: the iteration then runs at half of the frequencies of
            the torus that it is compared with, all in one batch.
        tol: Stop when ``upper <= (1 + tol) lower``, on the torus.
        steps: At most this many products.

    Raises:
        ConfigError: The operator is of another kind, or an option is out of range.
        NotCertifiableError: A weight is not finite.
    """
    del tol, steps
    raise ConfigError(
        f"Gram iteration does not know {type(operator).__name__}.",
        hint="leave `method` at 'auto'.",
    )


@gram_norm_bracket.register
def _dense(operator: Dense, tol: float = 1e-6, steps: int = STEPS) -> NormBracket:
    return gram_bracket(operator.matrix, steps, tol)


@gram_norm_bracket.register
def _general(operator: GeneralConvolution, tol: float = 1e-6, steps: int = STEPS) -> NormBracket:
    check_steps(steps, tol)
    on = torus(operator.with_weight(operator.kernel.detach().double()))
    size = float(on.kernels.abs().amax())
    check_finite(size)
    if size == 0:
        return bracket(0.0, 0.0, "zero")
    exponent = max(frexp(size)[1], -1000)
    lower, upper, used = 0.0, 0.0, 0
    for gram in grams(on.kernels * 2.0**-exponent, on.grid):
        H = gram.matrices.flatten(0, 1)
        wrong = H.new_full((len(H),), gram.error).real
        found = largest_eigenvalue(H, wrong, steps, 2 * tol)
        lower, upper = max(lower, found.lower), max(upper, found.upper)
        used = max(used, found.steps)
    found = shifted(_rooted(Eigenvalue(lower, upper, used)), exponent)
    name = f"{found.method}, {on.reason}"
    upper = stated(on, 0.0, found.upper, name).upper
    if on.exact:
        return stated(on, found.lower, found.upper, name)
    return bracket(stretched(operator), upper, name)


@gram_norm_bracket.register
def _convolution(operator: Convolution, tol: float = 1e-6, steps: int = STEPS) -> NormBracket:
    return gram_norm_bracket(general(operator), tol, steps)


@gram_norm_bracket.register
def _adjoint(operator: Adjoint, tol: float = 1e-6, steps: int = STEPS) -> NormBracket:
    return gram_norm_bracket(operator.of, tol, steps)


def check_steps(steps: int, tol: float = 0.0) -> None:
    """Refuse numbers of steps and tolerances that make no sense.

    Raises:
        ConfigError: `steps` is not positive, or `tol` is negative or not a number.
    """
    if steps < 1 or not tol >= 0:
        raise ConfigError(f"Gram iteration needs steps >= 1 and tol >= 0, got {steps} and {tol}.")


def _level(H: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the 2-norm: from above of `H`, from below of the semidefinite it was to be."""
    n, size = H.shape[-1], frobenius(H)
    mass = H.abs()
    rows = outward(torch.maximum(mass.sum(-1).amax(-1), mass.sum(-2).amax(-1)), n)
    high = torch.minimum(size, rows)
    trace = outward(H.diagonal(dim1=-2, dim2=-1).abs().sum(-1), n) + n**0.5 * wrong
    least = (torch.linalg.matrix_norm(H) * (1 - 2 * rounding(n * n + 8)) - wrong).clamp(min=0)
    return high, least.square() / trace * (1 - 8 * UNIT)


def _rooted(found: Eigenvalue) -> NormBracket:
    root = found.lower**0.5 * (1 - 4 * UNIT), found.upper**0.5 * (1 + 4 * UNIT)
    return bracket(*root, f"Gram iteration, {found.steps} steps")
