"""2-norms of operators: honest brackets for certificates, and a differentiable value for cells.

A bracket is proved whatever the eigenvalue routine returns: a computed singular value
decomposition is only a hint, whose defect is measured and added. The symbol of a convolution is
summed from tables of cosines and sines, so that no fast Fourier transform is trusted either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import ceil, gcd, inf, log2, pi, prod, sqrt
from typing import Any, final

import torch
from torch import Tensor

from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.peel import forward_mode, transforming
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import NotCertifiableError

_TABLE_ERROR = 32 * UNIT  # of a cosine of a reduced angle below 2 pi, computed in float64
_BLOCK = 1 << 21  # complex numbers of symbols held at a time
_POWER_STEPS = 12


@final
@dataclass(frozen=True)
class Bracket:
    """``lower <= ||M||_2 <= upper``, both proved in float64 with rounding.

    Args:
        lower: From a vector that is stretched so far.
        upper: From a decomposition whose defect was measured.
    """

    lower: float
    upper: float


@singledispatch
def two_norm_bracket(operator: Operator) -> Bracket:
    """Bounds of the 2-norm of a linear operator, from both sides.

    Matrices and circular convolutions: both within 1e-10 of the norm. A convolution padded with
    zeros is a compression of the circular one on every grid of at least ``n + k // 2`` pixels a
    side [1]: that is its upper bound, usually a few parts in a thousand above; its lower bound
    comes from a few steps of the power method. Any other operator: Schur's bound
    ``sqrt(||M||_1 ||M||_inf)``.

    Raises:
        NotCertifiableError: A weight is not finite.

    References:
        [1] Sedghi, Gupta, Long. The singular values of convolutional layers. ICLR 2019, for the
        circular case; the compression follows from extending images by zeros.
    """
    size = _double(operator).absolute()
    ones = torch.ones(1, *size.in_shape, dtype=torch.float64, device=size.weight.device)
    rows = outward(size.apply(ones), prod(size.in_shape))
    ones = torch.ones(1, *size.out_shape, dtype=torch.float64, device=size.weight.device)
    columns = outward(size.adjoint(ones), prod(size.out_shape))
    upper = sqrt(float(rows.amax()) * float(columns.amax())) * (1 + 8 * UNIT)
    return Bracket(stretched(_double(operator)), upper)


@two_norm_bracket.register
def _dense(operator: Dense) -> Bracket:
    return matrix_bracket(operator.matrix.detach().double())


@two_norm_bracket.register
def _convolution(operator: Convolution) -> Bracket:
    kernel, stride = operator.kernel.detach().double(), operator.stride
    zeros = operator.padding == "zeros"
    grid = padded_grid(operator)
    lower, upper = 0.0, 0.0
    # every entry of a symbol is a sum of as many products as there are taps
    taps = kernel.abs().sum((2, 3))
    wrong = outward((_TABLE_ERROR + 2 * rounding(prod(kernel.shape[2:]) + 4)) * taps, taps.numel())
    error = float(torch.linalg.matrix_norm(wrong)) * (1 + 1e-12)  # stride^2 blocks, each / stride
    step = max(1, _BLOCK // max(1, stride**2 * kernel.shape[0] * kernel.shape[1]))
    for rows in torch.arange(_frequencies(grid, stride)).split(step):
        found = matrix_bracket(symbols(kernel, grid, stride, rows), error)
        lower, upper = max(lower, found.lower), max(upper, found.upper)
    return Bracket(stretched(operator) if zeros else lower, upper)


@torch.no_grad()
def matrix_bracket(matrices: Tensor, error: float = 0.0) -> Bracket:
    """Bounds of the largest 2-norm of a batch of real or complex matrices.

    With any ``U, s, V``: ``||M|| <= sqrt(||U^H U|| ||V^H V||) max(s) + ||M - U [s] V^H||_F``, and
    ``||U^H U|| <= 1 + ||U^H U - I||_F``; all of it is computed with bounds of its rounding.

    Args:
        matrices: Shape (..., p, q), float64 or complex128.
        error: Bound of the 2-norm of what each matrix leaves out.

    Raises:
        NotCertifiableError: An entry is not finite.
    """
    held = matrices.detach()
    if held.dtype not in (torch.float64, torch.complex128):
        held = held.to(torch.complex128 if held.is_complex() else torch.float64)
    if not bool(torch.isfinite(torch.view_as_real(held) if held.is_complex() else held).all()):
        raise NotCertifiableError(
            "The weights hold NaN or infinity; no norm can be bounded.",
            hint="training diverged; certify a checkpoint with finite weights.",
        )
    if not held.numel():
        return Bracket(0.0, error)
    scale = float(held.abs().amax())
    if scale == 0:
        return Bracket(0.0, error)
    exponent = 2.0 ** min(max(round(-log2(scale)), -1000), 1000)
    held = held * exponent  # a power of two: exact, and nothing below overflows
    U, s, Vh = torch.linalg.svd(held, full_matrices=False)
    # complex products, in any order and with any fusing: normwise, a generous constant
    unit = 8 * rounding(max(held.shape[-2:]) + 8)
    both = _frobenius(U) * s.amax(-1) * _frobenius(Vh)
    defect = _frobenius(held - (U * s[..., None, :]) @ Vh) + unit * (both + _frobenius(held))
    turn = (1 + _skew(U, unit)) * (1 + _skew(Vh.mH, unit))
    bound = (turn.sqrt() * s.amax(-1) + defect) * (1 + 16 * UNIT)
    v = Vh[..., 0, :, None].conj()
    reach = _frobenius(held @ v) - unit * _frobenius(held) * _frobenius(v)
    least = (reach / (_frobenius(v) * (1 + 32 * UNIT))).clamp(min=0) * (1 - 32 * UNIT)
    upper = float(bound.nan_to_num(inf, inf).amax()) / exponent + error
    lower = float(least.nan_to_num(0.0).amax()) / exponent - error
    return Bracket(max(lower * (1 - 4 * UNIT), 0.0), upper * (1 + 4 * UNIT))


@torch.no_grad()
def stretched(operator: Operator, steps: int = _POWER_STEPS) -> float:
    """A proved lower bound of ``||M||_2``: how far one vector is stretched, rounded down.

    The vector comes from the power method on ``M^T M``, in the precision of the weights; it is
    judged in float64.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(4, *operator.in_shape, generator=generator).to(operator.weight)
    work = operator.detach()
    for _ in range(steps):
        v = work.adjoint(work.apply(v))
        size = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp(min=1e-30)
        v = v / size.reshape(-1, *[1] * (v.ndim - 1))
    exact, v = _double(operator), v.double()
    terms = exact.terms + 4
    image = exact.apply(v).flatten(1)
    slack = 2 * rounding(terms) * exact.absolute().apply(v.abs()).flatten(1)
    size = torch.linalg.vector_norm(image, dim=1)
    wrong = torch.linalg.vector_norm(slack, dim=1)
    length = torch.linalg.vector_norm(v.flatten(1), dim=1)
    width = rounding(v[0].numel() + image.shape[1] + 16)
    best = ((size - wrong * (1 + width)) / length * (1 - 4 * width)).nan_to_num(0.0).amax()
    return max(float(best), 0.0)


def padded_grid(operator: Convolution) -> tuple[int, int]:
    """The grid of the circular convolution whose norm bounds that of `operator`."""
    if operator.padding == "circular":
        return operator.image
    s, sides = operator.stride, operator.kernel.shape[2:]
    height, width = (s * ceil((n + k // 2) / s) for n, k in zip(operator.image, sides, strict=True))
    return height, width


def symbols(
    kernel: Tensor, grid: tuple[int, int], stride: int = 1, rows: Tensor | None = None
) -> Tensor:
    """The matrices that a circular convolution is at each frequency, half of the spectrum.

    ``D(w) = sum_t K_t exp(-i <w, t>)``; with a stride, ``[D(w + 2 pi a / s)]_a / s`` side by side
    over the ``s^2`` frequencies that alias. Real kernels have ``D(-w) = conj(D(w))``, so that half
    of the frequencies has all singular values.

    Args:
        kernel: Shape (out, in, height, width), real; differentiable.
        grid: Height and width of the image; `stride` divides both.
        stride: Of the result.
        rows: Which frequencies, as numbers below those of the half spectrum; all by default.

    Returns:
        Shape (frequencies, out, stride^2 in), complex.
    """
    coarse = tuple(side // stride for side in grid)
    half = coarse[1] // 2 + 1
    rows = torch.arange(coarse[0] * half) if rows is None else rows.cpu()
    u, v = rows // half, rows % half
    blocks = [
        _symbol(kernel, grid, u + a * coarse[0], v + b * coarse[1])
        for a in range(stride)
        for b in range(stride)
    ]
    return blocks[0] if stride == 1 else torch.cat(blocks, -1) / stride


def _symbol(kernel: Tensor, grid: tuple[int, int], u: Tensor, v: Tensor) -> Tensor:
    tall = _table(u, kernel.shape[2], grid[0]).to(kernel.device)
    wide = _table(v, kernel.shape[3], grid[1]).to(kernel.device)
    # one table for both: the product of two phases would cost rounding of its own
    angle = tall[:, :, None] * (_common(grid) // grid[0])
    angle = angle + wide[:, None, :] * (_common(grid) // grid[1])
    turn = (angle % _common(grid)).double() * (2 * pi / _common(grid))
    phase = torch.stack([turn.cos(), -turn.sin()]).to(kernel.dtype)
    flat = kernel.flatten(2)
    parts = torch.einsum("oit,pft->pfoi", flat, phase.flatten(2))
    return torch.complex(parts[0], parts[1])


def _table(frequency: Tensor, taps: int, side: int) -> Tensor:
    """``frequency * tap mod side``, whole numbers: no angle loses a digit."""
    return frequency[:, None] * torch.arange(taps) % side


def _common(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1] // gcd(*grid)


def _frequencies(grid: tuple[int, int], stride: int) -> int:
    return (grid[0] // stride) * (grid[1] // stride // 2 + 1)


@singledispatch
def two_norm(operator: Operator) -> Tensor:
    """The 2-norm as a differentiable number in float64, for a parametrisation; no certificate.

    Exact up to rounding for matrices and circular convolutions, and for those padded with zeros
    the bound by the larger circular one. Derivatives of every order are those of the largest
    singular value, where it is simple.

    Raises:
        NotCertifiableError: The operator is of another kind.
    """
    raise NotCertifiableError(
        f"{type(operator).__name__} has no differentiable 2-norm here.",
        hint="register one with `@wellposed.core.spectral.two_norm.register`.",
    )


@two_norm.register
def _dense_norm(operator: Dense) -> Tensor:
    matrix = operator.matrix.double()
    if transforming() or forward_mode():
        return torch.linalg.svdvals(matrix)[0]
    return _Largest.apply(matrix)  # pyright: ignore


class _Largest(torch.autograd.Function):
    """The largest singular value of a matrix, at less than half the cost of a decomposition."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:  # pyright: ignore
        tall = matrix.shape[0] > matrix.shape[1]
        gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
        one = torch.linalg.eigh(gram)[1][:, -1]
        other = matrix @ one if tall else one @ matrix
        # an error of the vector counts twice only
        norm = torch.linalg.vector_norm(other)
        other = other / norm.clamp(min=1e-300)
        ctx.save_for_backward(matrix, *((other, one) if tall else (one, other)))
        return norm

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        matrix, left, right = ctx.saved_tensors
        if torch.is_grad_enabled():
            # whoever differentiates this needs more than one pair of vectors
            norm = torch.linalg.svdvals(matrix)[0]
            (row,) = torch.autograd.grad(norm, matrix, g, create_graph=True)
            return row
        return g * torch.outer(left, right)


@two_norm.register
def _convolution_norm(operator: Convolution) -> Tensor:
    kernel, grid = operator.kernel, padded_grid(operator)
    with torch.no_grad():
        # which frequency wins is looked up in single precision; its norm is then taken in double
        rough = kernel.detach().double()
        rough = (rough / rough.abs().amax().clamp(min=1e-300)).float()
        gram = symbols(rough, grid, operator.stride)
        gram = gram @ gram.mH if gram.shape[-2] <= gram.shape[-1] else gram.mH @ gram
        top = torch.linalg.eigvalsh(gram)[:, -1].argmax()
    matrix = symbols(kernel.double(), grid, operator.stride, top[None])[0]
    return torch.linalg.svdvals(matrix)[0]


def _double(operator: Operator) -> Operator:
    return operator.detach().to(torch.float64)


def _frobenius(M: Tensor) -> Tensor:
    """Upper bound of the Frobenius norm."""
    size = torch.linalg.matrix_norm(M)
    return size * (1 + 2 * rounding(M.shape[-2] * M.shape[-1] + 8)) + 1e-300


def _skew(U: Tensor, unit: float) -> Tensor:
    """Upper bound of ``||U^H U - I||_F``."""
    eye = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
    return _frobenius(U.mH @ U - eye) + unit * (_frobenius(U).square() + 1)
