"""Adjoint equilibria ``p = sigma(lam)``, ``lam = row + W^T p``: two iterations for many rows.

Nothing that is proved depends on their accuracy: `dual_bound` holds for any multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import final

import torch
from torch import Tensor

from wellposed.core.spectra import TINY

STEPS, RTOL = 60, 1e-4


def jacobi(
    pull: Callable[[Tensor, Tensor], Tensor],
    own: Tensor,
    row: Tensor,
    below: Tensor,
    above: Tensor,
) -> Tensor:
    """``q = row + offdiag(W)^T p``, then ``p = s q / (1 - w_ii s)``, ``s`` the slope of its sign.

    It contracts if the canonical map does, in the dual norm.

    Args:
        pull: ``(p, row) -> offdiag(W)^T p + row``.
        own: ``w_ii``, shape (n,).
        row: Objectives, shape (N, n).
        below: Slope where ``lam >= 0``, in [0, 1].
        above: Slope where ``lam < 0``, in [0, 1].
    """
    low, high = below / (1 - own * below), above / (1 - own * above)
    p = torch.where(row >= 0, low, high) * row
    moving = torch.ones_like(row[:, :1]) > 0
    for count in range(STEPS):
        q = pull(p, row)
        last, p = p, torch.where(moving, torch.where(q >= 0, low, high) * q, p)
        if count % 4 == 3:
            moving &= ~settled(p, last)
            if not bool(moving.any()):
                break
    return p


@final
@dataclass(frozen=True, eq=False)
class PeacemanRachford:
    """The adjoint of a network whose ``M = [Lam](I - W)`` is strongly monotone.

    With ``p = [Lam] q`` the equation reads ``M^T q + (sigma^-1 - 1)([Lam] q) = row``: a strongly
    monotone linear map plus an increasing function of every component. Their resolvents are
    applied in turn.

    Args:
        step: ``alpha``.
        inverse: ``(I + alpha M)^-1``, for products with rows.
        metric: ``Lam``, shape (n,).
    """

    step: float
    inverse: Tensor
    metric: Tensor

    @classmethod
    def of(cls, W: Tensor, metric: Tensor | None = None) -> PeacemanRachford:
        """The iteration for a matrix; the metric is 1 if absent."""
        eye = torch.eye(len(W), dtype=torch.float64)
        metric = torch.ones(len(W), dtype=torch.float64) if metric is None else metric
        M = metric[:, None] * (eye - W)
        low = float(torch.linalg.eigvalsh((M + M.mT) / 2)[0])
        high = float(torch.linalg.matrix_norm(M, 2))
        alpha = 1 / sqrt(max(low, 1e-3 * high) * high)
        return cls(alpha, torch.linalg.inv(eye + alpha * M), metric)

    def __call__(self, row: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """Multipliers of shape (N, n); arguments as for `jacobi`."""
        low, high = (
            s / (s + self.step * self.metric * (1 - s)).clamp(min=TINY) for s in (below, above)
        )
        u = q = torch.zeros_like(row)
        moving = torch.ones_like(row[:, :1]) > 0
        for count in range(STEPS):
            half = (2 * q - u + self.step * row) @ self.inverse
            u = 2 * half - (2 * q - u)
            last, q = q, torch.where(moving, torch.where(u >= 0, low, high) * u, q)
            if count % 4 == 3:
                moving &= ~settled(q, last)
                if not bool(moving.any()):
                    break
        return self.metric * q


def settled(p: Tensor, last: Tensor) -> Tensor:
    """Which rows moved by no more than a small fraction of their size, shape (N, 1).

    They stay as they are from then on: a row does not depend on its batch mates.
    """
    return ((p - last).abs() <= RTOL * p.abs().amax(1, keepdim=True)).all(1, keepdim=True)


def contracts(own: Tensor, factor: Callable[[Tensor], float]) -> bool:
    """Whether the canonical map contracts for all slopes in [0, 1].

    Args:
        own: ``w_ii``.
        factor: Best max-norm factor of ``[g] |offdiag(W)|``, as a function of ``g``.
    """
    return bool((own < 1).all()) and factor(1 / (1 - own.clamp(min=0))) < 1
