"""BiCGSTAB: short recurrences for linear equations whose history would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.linear_maps import LinearMap
from wellposed.core.peel import plain
from wellposed.solvers.base import Solution, Status, Stopping, Tally
from wellposed.solvers.krylov import LinearSolver

RESTARTS = 20
"""How often the method starts again from a residual that was computed anew."""


@final
@dataclass(frozen=True)
class BiCGSTAB(LinearSolver):
    """BiCGSTAB on ``(I - M) u = rhs``, every sample with its own coefficients [1].

    Two products an iteration and eight states of memory whatever their number. Before a sample
    counts as converged its residual is computed anew; one that was wrong, or whose recurrence
    broke down, starts again from there.

    References:
        [1] van der Vorst. Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG. SIAM J. Sci.
        Stat. Comput. 13(2), 1992.
    """

    @override
    @torch.no_grad()
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        map_ = map_.detach()
        rtol, atol = stopping.tolerances(map_.rhs.dtype)
        shape = map_.rhs.shape
        rhs = map_.rhs.flatten(1)
        if not len(rhs):
            return Solution(map_.rhs, Tally.unmeasured(rhs, 0), map_)

        def product(v: Tensor) -> Tensor:
            return v - map_.matvec(v.reshape(shape)).flatten(1)

        def above(r: Tensor, u: Tensor, part: float = 1.0) -> Tensor:
            return _rms(r) > part * (rtol * _rms(u + r) + atol)

        u = rhs
        r = rhs - product(u)
        spent, budget = torch.ones_like(r[:, 0]), stopping.max_evaluations - 1
        live = above(r, u)
        for _ in range(RESTARTS):
            if budget < 3 or not bool(plain(live).any()):
                break
            u, cost, budget = _cycle(product, above, u, r, live=live, budget=budget - 1)
            r = torch.where(live[:, None], rhs - product(u), r)
            spent = spent + cost + live
            live = live & above(r, u)
        residual = _rms(r)
        code = torch.where(live, Status.BUDGET, Status.CONVERGED)
        code = torch.where(torch.isfinite(residual), code, Status.NONFINITE).to(torch.int8)
        return Solution(u.reshape(shape), Tally(residual, spent.long(), code), map_)


def _cycle(
    product: Callable[[Tensor], Tensor],
    above: Callable[[Tensor, Tensor, float], Tensor],
    u: Tensor,
    r: Tensor,
    *,
    live: Tensor,
    budget: int,
) -> tuple[Tensor, Tensor, int]:
    """Iterate from the residual `r` until the recurrence says that every live sample is done."""
    shadow = p = r
    power = _dot(shadow, r)
    running, cost = live, torch.zeros_like(power)
    while budget >= 2 and bool(plain(running).any()):
        image = product(p)
        alpha = _divide(power, _dot(shadow, image))
        s = r - alpha[:, None] * image
        t = product(s)
        omega = _divide(_dot(t, s), _dot(t, t))
        budget -= 2
        cost = cost + 2 * running
        column = running[:, None]
        u = torch.where(column, u + alpha[:, None] * p + omega[:, None] * s, u)
        r = torch.where(column, s - omega[:, None] * t, r)
        following = _dot(shadow, r)
        beta = _divide(following, power) * _divide(alpha, omega)
        p = r + beta[:, None] * (p - omega[:, None] * image)
        power = following
        sound = (beta != 0) & torch.isfinite(_dot(r, r))
        running = running & sound & above(r, u, 0.5)
    return u, cost, budget


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, y)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``, and 0 where that is no number: the recurrence has broken down."""
    quotient = x / torch.where(y == 0, 1.0, y)
    return torch.where((y == 0) | ~torch.isfinite(quotient), 0.0, quotient)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1) * max(x.shape[1], 1) ** -0.5
