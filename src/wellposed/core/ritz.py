"""Bounds of the largest eigenvalue from a few vectors, and from a power of the matrix without them.

Squaring a matrix separates its largest eigenvalue from those nearby only slowly: all of them are in
the Frobenius norm of the power. A block of vectors takes the largest few out; what is then left of
the power bounds the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellposed.core.matrix_norm import frobenius
from wellposed.core.spectra import TINY, UNIT, outward, rounding

_BLOCK = 8


@torch.no_grad()
def ritz_bounds(
    M: Tensor, wrong: Tensor, power: Tensor, back: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """``lower <= lambda_1 <= upper`` of semidefinite matrices, by a block from a power of each.

    Let ``Q`` be an orthonormal basis of the block, ``P = I - Q Q^H``, ``theta_i`` the Ritz values
    and ``b_i = ||P M q_i||``. Split ``x = Q alpha + w``; then

    ``x^H M x <= sum_i theta_i |alpha_i|^2 + 2 sum_i b_i |alpha_i| |w| + ||M P|| |w|^2``,

    so that ``lambda_1`` lies between ``theta_1`` and the largest eigenvalue of the arrow matrix of
    ``theta``, ``b`` and ``||M P||``. And ``||S P||^2 <= ||S^H S P||``: what bounds ``||M||``
    through its squares bounds ``||M P||`` through theirs, applied to ``P``. Equal eigenvalues
    cost nothing as long as they fit into the block.

    Args:
        M: Computed, shape (batch, n, n), n at least 2, float64 or complex128.
        wrong: Bound of the Frobenius norm of the error of each, shape (batch,).
        power: What repeated squaring made of `M`, of its shape.
        back: From a bound of ``||power P||`` as computed to one of ``||M P||``, errors included.

    Returns:
        Lower and upper bounds, rounding included, shape (batch,).
    """
    n = M.shape[-1]
    p = min(_BLOCK, n // 2)
    unit = 8 * rounding(n + 8)
    size = frobenius(M)
    V = _rotated(M, power, p)
    MV = M @ V
    theta = (V.conj() * MV).sum(-2).real
    eye = torch.eye(p, dtype=M.dtype, device=M.device)
    # the block is orthonormal up to delta: the basis Q = V (V^H V)^(-1/2) is as close to it
    delta = frobenius(V.mH @ V - eye) + unit * (p + frobenius(V).square())
    form = frobenius(V.mH @ MV - torch.diag_embed(theta).to(M.dtype))
    slack = form + (4 * unit * p + 4 * delta) * size + wrong + TINY
    stray = torch.linalg.vector_norm(MV - theta[:, None, :] * V, dim=-2)
    stray = outward(stray, n) + ((2 * delta + 4 * unit) * size + wrong)[:, None]
    # (power - Y V^H) P = power P for any Y, whatever it was rounded to
    Y = power @ V
    left = frobenius(power - Y @ V.mH) + unit * (frobenius(Y) * frobenius(V) + frobenius(power))
    rest = back(left)
    upper = _arrow(theta, stray, rest) + slack
    fit = delta < 0.5
    upper = torch.where(fit & upper.isfinite(), upper * (1 + 4 * UNIT), torch.inf)
    lower = torch.where(fit, theta.amax(-1) - slack, 0).clamp(min=0) * (1 - 4 * UNIT)
    return lower, upper


def _rotated(M: Tensor, power: Tensor, p: int) -> Tensor:
    """Ritz vectors of `M` in the image of some fixed vectors under `power`."""
    draw = torch.Generator().manual_seed(0)
    probe = torch.randn(M.shape[-1], p, generator=draw, dtype=torch.float64)
    V = torch.linalg.qr(power @ probe.to(power))[0]
    return V @ torch.linalg.eigh(V.mH @ (M @ V))[1]


def _arrow(theta: Tensor, b: Tensor, rest: Tensor) -> Tensor:
    """Upper bound of the largest eigenvalue of ``[[diag(theta), b], [b^T, rest]]``; inf if none.

    ``x`` above all ``theta`` is one if ``x - rest >= sum_i b_i^2 / (x - theta_i)``, a Schur
    complement: the computed eigenvalue is raised a little and tested so.
    """
    p = theta.shape[-1]
    matrix = torch.diag_embed(torch.cat([theta, rest[:, None]], -1))
    matrix[:, :p, p] = matrix[:, p, :p] = b
    computed = torch.linalg.eigvalsh(matrix.nan_to_num(0.0, 0.0, 0.0))[:, -1]
    found = torch.full_like(rest, torch.inf)
    for above in (1e-6, 1e-9, 1e-12):
        x = computed * (1 + above) + TINY
        room = x[:, None] - theta
        pulls = outward(b.square() / (room * (1 - 4 * UNIT)), 4).sum(-1)
        proved = (room > 0).all(-1) & (outward(pulls, p) <= (x - rest) * (1 - 4 * UNIT))
        found = torch.where(proved, x, found)
    return found
