"""ECLipsE-Fast: multipliers in closed form, layer by layer, for the bound of `ellipsoid`.

The recursion runs in plain floating point and only proposes the ``D`` of every layer of slopes:
``D_j = r_j (r_j + |m_j|) T_j`` with a diagonal ``T >= P``, which for one neuron is the best there
is. ``T = lambda_max(P) I`` is ECLipsE-Fast [1] (for slopes in [0, b]), extended to any interval of
slopes a neuron; ``T = lambda [diag P]`` keeps the units of neurons apart. What is returned is
proved by `propagate`, which does not care where the multipliers come from.

References:
    [1] Xu, Sivaranjani. ECLipsE: efficient compositional Lipschitz constant estimation for deep
    neural networks. NeurIPS 2024, arXiv 2410.04375.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp, inf, isnan, ldexp, sqrt
from typing import final

import torch
from torch import Tensor

from wellposed.certify.ellipsoid import (
    Ellipsoid,
    Opaque,
    Slope,
    Step,
    Weights,
    middle_radius,
    propagate,
)

WIDEST = 1024  # neurons of a layer whose matrices are formed
LARGEST = 1 << 22  # entries of a weight matrix that is formed
_ROOM = 1 + 1e-9
_ROOMS = (1e-3, 0.03, 0.3)

Multipliers = tuple[Tensor | None, ...]
Cover = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Scaled:
    """A chain with weights of norm about one: slopes act alike in every unit.

    Args:
        size: Components of an input.
        steps: Weights were divided by powers of two, which costs no digit.
        exponents: Of two, taken out up to and including every step.
    """

    size: int
    steps: tuple[Step, ...]
    exponents: tuple[int, ...]

    @classmethod
    def of(cls, size: int, steps: tuple[Step, ...]) -> Scaled:
        """Scale a chain by the norms of its weights."""
        sizes = [
            float(torch.linalg.matrix_norm(step.matrix)) if isinstance(step, Weights) else 1.0
            for step in steps
        ]
        return cls(size, steps, (0,) * len(steps)).divided(sizes)

    def divided(self, sizes: list[float]) -> Scaled:
        """Divide weights by powers of two near `sizes`, further ones."""
        found: list[Step] = []
        taken: list[int] = []
        total = 0
        for step, size, before in zip(self.steps, sizes, self.exponents, strict=True):
            now = step
            if isinstance(step, Weights) and 0 < size < inf:
                shift = max(min(frexp(size)[1], 900), -900)
                factor = ldexp(1.0, -shift)
                error = None if step.error is None else step.error * factor
                now = Weights(step.matrix * factor, error)
                total += shift
            found.append(now)
            taken.append(before + total)
        return Scaled(self.size, tuple(found), tuple(taken))

    @torch.no_grad()
    def levelled(self, multipliers: Multipliers) -> Scaled:
        """Scale a chain further, so that ``P`` is of about one everywhere: solvers ask for it."""
        here = torch.ones(self.size, dtype=torch.float64)
        tops, sizes = [1.0], list[float]()
        for step, D in zip(self.steps, multipliers, strict=True):
            here = advance(here, step, D)
            tops.append(float(largest(here)))
            sizes.append(sqrt(tops[-1] / tops[-2]) if tops[-2] > 0 else 1.0)
        return self.divided(_gathered(self.steps, sizes))


@final
@dataclass(frozen=True, eq=False)
class Proof:
    """What was proved about a chain.

    Args:
        chain: The scaled chain.
        ellipsoids: What holds before the first and after every step; empty if nothing was proved.
    """

    chain: Scaled
    ellipsoids: tuple[Ellipsoid, ...]

    def two_norm(self, steps: int | None = None) -> float:
        """Bound of ``||dz||_2 / ||dx||_2`` after so many steps, all by default."""
        count = len(self.chain.steps) if steps is None else steps
        if not self.ellipsoids or not count:
            return inf
        return _unscaled(self.ellipsoids[count].two_norm, self.chain.exponents[count - 1])

    def row_norm(self, steps: int | None = None) -> float:
        """Bound of ``max_i |dz_i| / ||dx||_2`` after so many steps, all by default."""
        count = len(self.chain.steps) if steps is None else steps
        if not self.ellipsoids or not count:
            return inf
        top = float(self.ellipsoids[count].rows.amax())
        return _unscaled(top, self.chain.exponents[count - 1])


def _gathered(steps: tuple[Step, ...], sizes: list[float]) -> list[float]:
    """The sizes of all steps since the last weights, at the weights."""
    found = [1.0] * len(sizes)
    last = None
    for k, (step, size) in enumerate(zip(steps, sizes, strict=True)):
        if isinstance(step, Weights):
            last = k
            found[k] = size
        elif last is not None:
            found[last] *= size
    return found


def _unscaled(value: float, exponent: int) -> float:
    try:
        # the smallest number stands for a result that is no longer a normal one
        return ldexp(value, exponent) + 5e-324
    except OverflowError:
        return inf


def worthwhile(steps: tuple[Step, ...]) -> bool:
    """Whether a chain has two layers of known weights: less is a product of norms."""
    known = sum(isinstance(step, Weights) for step in steps)
    return known >= 2 and all(step.gain < inf for step in steps if isinstance(step, Opaque))


@torch.no_grad()
def best_proposal(chain: Scaled) -> Multipliers:
    """The best one of the proposals."""
    even = all(_even(step) for step in chain.steps if isinstance(step, Slope))
    proposals = [
        propose(chain, cover, room)
        for cover in (uniform, diagonal)
        for room in ((0.0,) if even else _ROOMS)
    ]
    return min(proposals, key=lambda proposal: proposal[0])[1]


def _even(step: Slope) -> bool:
    """Whether no slope interval is nearly symmetric: those leave others no room."""
    m, r, _ = middle_radius(step)
    open_ = r > 0
    return bool((m.abs() >= _ROOMS[-1] * r)[open_].all())


def prove(chain: Scaled, multipliers: Multipliers) -> Proof:
    """Propagate given multipliers of the scaled chain."""
    found = propagate(chain.size, chain.steps, multipliers)
    return Proof(chain, () if found is None else tuple(found))


def uniform(P: Tensor) -> Tensor:
    """``T = lambda_max(P) I``, as a vector."""
    return top_eigenvalue(P).expand(len(P))


def diagonal(P: Tensor) -> Tensor:
    """``T = lambda [diag P] >= P``, as a vector."""
    own = P.diagonal().clamp(min=0)
    own = (own + 1e-12 * own.amax()).clamp(min=1e-200)
    k = own.rsqrt()
    return top_eigenvalue(k[:, None] * P * k) * own


def propose(chain: Scaled, cover: Cover, room: float = 0.0) -> tuple[float, Multipliers]:
    """The multipliers of one cover, and roughly the square of the bound that they give.

    Args:
        chain: The scaled chain.
        cover: From ``P`` to a diagonal ``T >= P``, both hints.
        room: Least ``D_j / (r_j^2 T_j) - 1``.
    """
    here = torch.ones(chain.size, dtype=torch.float64)
    found: list[Tensor | None] = []
    for step in chain.steps:
        offered = None
        if isinstance(step, Slope):
            m, r, _ = middle_radius(step)
            if bool((r > 0).any()):
                own = uniform if step.tied else cover
                offered = multiplier(here, m, r, own, room, tied=step.tied)
        here = advance(here, step, offered)
        found.append(offered)
    value = float(largest(here))
    return (inf if isnan(value) else value), tuple(found)


def multiplier(P: Tensor, m: Tensor, r: Tensor, cover: Cover, room: float, *, tied: bool) -> Tensor:
    """``D_j = r_j (r_j + |m_j|) T_j`` with a ``T`` that covers ``P`` on the open components."""
    open_ = r > 0
    T = P[open_] if P.ndim == 1 else cover(P[open_][:, open_])
    D = torch.zeros_like(r)
    size = torch.maximum(m.abs(), room * r)[open_]
    if tied:
        size = size.amax().expand_as(size)
    D[open_] = r[open_] * (r[open_] + size) * T.clamp(min=1e-250) * _ROOM
    return D


def advance(P: Tensor, step: Step, D: Tensor | None) -> Tensor:
    """One step of the recursion without its rounding; differentiable in ``D``."""
    match step:
        case Weights():
            W = step.matrix
            return (W * P if P.ndim == 1 else W @ P) @ W.mT
        case Opaque():
            return (step.gain**2 * largest(P)).expand(step.size)
        case Slope():
            m, r, _ = middle_radius(step)
            if D is None:
                return P * m * m if P.ndim == 1 else m[:, None] * P * m
            Q = torch.diag(P) if P.ndim == 1 else P
            open_ = r > 0
            d, rho = D[open_], r[open_]
            B = rho[:, None] * Q[open_] * m
            N = torch.diag(d) - rho[:, None] * Q[open_][:, open_] * rho
            lift = torch.zeros_like(r).masked_scatter(open_, d)
            return m[:, None] * Q * m + B.mT @ torch.linalg.solve_ex(N, B)[0] + torch.diag(lift)


def largest(P: Tensor) -> Tensor:
    """The largest eigenvalue of a matrix or a vector of diagonal entries: a hint."""
    return P.amax() if P.ndim == 1 else top_eigenvalue(P)


def top_eigenvalue(P: Tensor) -> Tensor:
    """The largest eigenvalue, at least 0, or infinity: a hint."""
    if not bool(torch.isfinite(P).all()):
        return P.new_full((), inf)
    return torch.linalg.eigvalsh(P)[-1].clamp(min=0)
