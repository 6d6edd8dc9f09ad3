"""2-norms of matrices from both sides, whatever the eigenvalue routine returns.

A computed singular value decomposition is only a hint, whose defect is measured and added.
"""

from __future__ import annotations

from math import inf, log2

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket, check_finite
from wellposed.core.operators import Operator
from wellposed.core.spectra import UNIT, rounding

_POWER_STEPS = 12


@torch.no_grad()
def matrix_bracket(matrices: Tensor, error: float = 0.0) -> NormBracket:
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
    if not held.numel():
        return bracket(0.0, error, "zero")
    parts = torch.view_as_real(held) if held.is_complex() else held
    scale = float(parts.abs().amax())
    check_finite(scale)
    if scale == 0:
        return bracket(0.0, error, "zero")
    exponent = 2.0 ** min(max(round(-log2(scale)), -1000), 1000)
    held = held * exponent  # a power of two: exact, and nothing below overflows
    U, s, Vh = torch.linalg.svd(held, full_matrices=False)
    # complex products, in any order and with any fusing: normwise, a generous constant
    unit = 8 * rounding(max(held.shape[-2:]) + 8)
    both = frobenius(U) * s.amax(-1) * frobenius(Vh)
    defect = frobenius(held - (U * s[..., None, :]) @ Vh) + unit * (both + frobenius(held))
    turn = (1 + _skew(U, unit)) * (1 + _skew(Vh.mH, unit))
    bound = (turn.sqrt() * s.amax(-1) + defect) * (1 + 16 * UNIT)
    v = Vh[..., 0, :, None].conj()
    reach = frobenius(held @ v) - unit * frobenius(held) * frobenius(v)
    least = (reach / (frobenius(v) * (1 + 32 * UNIT))).clamp(min=0) * (1 - 32 * UNIT)
    upper = float(bound.nan_to_num(inf, inf).amax()) / exponent + error
    lower = float(least.nan_to_num(0.0).amax()) / exponent - error
    return bracket(lower * (1 - 4 * UNIT), upper * (1 + 4 * UNIT), "singular values")


@torch.no_grad()
def stretched(operator: Operator, start: Tensor | None = None, steps: int = _POWER_STEPS) -> float:
    """A proved lower bound of ``||M||_2``: how far one vector is stretched, rounded down.

    The vector comes from the power method on ``M^T M``, in the precision of the weights; it is
    judged in float64.

    Args:
        operator: ``M``.
        start: First vectors, a batch; random ones by default.
        steps: Of the power method.
    """
    generator = torch.Generator().manual_seed(0)
    if start is None:
        start = torch.randn(4, *operator.in_shape, generator=generator)
    v = start.to(operator.weight)
    work = operator.detach()
    for _ in range(steps):
        v = work.adjoint(work.apply(v))
        size = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp(min=1e-30)
        v = v / size.reshape(-1, *[1] * (v.ndim - 1))
    exact, v = operator.detach().to(torch.float64), v.double()
    terms = exact.terms + 4
    image = exact.apply(v).flatten(1)
    slack = 2 * rounding(terms) * exact.absolute().apply(v.abs()).flatten(1)
    size = torch.linalg.vector_norm(image, dim=1)
    wrong = torch.linalg.vector_norm(slack, dim=1)
    length = torch.linalg.vector_norm(v.flatten(1), dim=1)
    width = rounding(v[0].numel() + image.shape[1] + 16)
    best = ((size - wrong * (1 + width)) / length * (1 - 4 * width)).nan_to_num(0.0).amax()
    return max(float(best), 0.0)


def frobenius(M: Tensor) -> Tensor:
    """Upper bound of the Frobenius norm."""
    size = torch.linalg.matrix_norm(M)
    return size * (1 + 2 * rounding(M.shape[-2] * M.shape[-1] + 8)) + 1e-300


def _skew(U: Tensor, unit: float) -> Tensor:
    """Upper bound of ``||U^H U - I||_F``."""
    eye = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
    return frobenius(U.mH @ U - eye) + unit * (frobenius(U).square() + 1)
