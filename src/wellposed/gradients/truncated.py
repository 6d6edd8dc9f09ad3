"""Cheap, inexact gradients: one step, a truncated Neumann series, phantom gradients.

With ``J = df/dz`` at the fixed point and ``g`` the cotangent, the exact gradient is
``(df/dtheta)^T (I - J^T)^-1 g``. These replace the inverse by a few terms. Their error falls like
``rho(J)^k`` at best; where ``rho(J)`` is near 1 they may point far away from the gradient. They
act on the canonical form of an affine map, whose ``rho(J)`` is the smallest known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.linear_maps import LinearMap
from wellposed.core.peel import plain
from wellposed.errors import ConfigError
from wellposed.gradients.base import Gradient, Problem, steady_precision
from wellposed.gradients.closure import attach_closure, captures
from wellposed.gradients.function import Adjoint, attach_equation
from wellposed.solvers.base import Solution, Status, Stopping, Tally, first_iterate
from wellposed.solvers.krylov import LinearSolver


@final
@dataclass(frozen=True)
class Neumann(Gradient):
    """``u = sum_{i < k} (J^T)^i g``: the first `k` terms of the series of the implicit gradient.

    Inexact by ``(J^T)^k (I - J^T)^-1 g``. Derivatives of higher order are truncated alike.

    Args:
        k: Number of terms; `k` - 1 vector-Jacobian products beyond those of one step.
    """

    k: int = 5

    def __post_init__(self) -> None:
        _check_steps("k", self.k)

    @override
    def attach(self, problem: Problem) -> Solution:
        return _attach_series(problem, self.k)


@final
@dataclass(frozen=True)
class OneStep(Gradient):
    """``u = g``: the gradient of one application of the map at the fixed point (JFB) [1].

    Inexact: it neglects ``J`` altogether. A descent direction under the conditions of the source,
    which ask for ``rho(J)`` well below 1.

    References:
        [1] Fung et al. JFB: Jacobian-free backpropagation for implicit networks. AAAI 2022.
        arXiv 2103.12803, theorem 3.1.
    """

    @override
    def attach(self, problem: Problem) -> Solution:
        return _attach_series(problem, 1)


@final
@dataclass(frozen=True)
class Phantom(Gradient):
    """`k` damped steps ``z <- tau f(z) + (1 - tau) z`` from the fixed point, on the tape [1].

    At the fixed point ``u = tau sum_{i < k} (tau J^T + (1 - tau) I)^i g``: inexact. ``k = 1,
    tau = 1`` is `OneStep`. The tape holds `k` applications of the map.

    Args:
        k: Number of steps.
        tau: Damping in (0, 1].

    References:
        [1] Geng et al. On training implicit models. NeurIPS 2021. The unrolled form (UPG).
    """

    k: int = 5
    tau: float = 0.5

    def __post_init__(self) -> None:
        _check_steps("k", self.k)
        if not 0 < self.tau <= 1:
            raise ConfigError(f"`tau` must lie in (0, 1], got {self.tau}.")

    @override
    def attach(self, problem: Problem) -> Solution:
        solution = problem.run()
        if not (problem.differentiable or captures(problem)):
            return solution
        map_, z = problem.map_.canonical(), solution.value.detach()
        with steady_precision(map_):
            for _ in range(self.k):
                z = torch.lerp(z, map_(z), self.tau)
        # the steps give the gradient, the solve the value: it is the one that was reported on
        return replace(solution, value=solution.value.detach() + (z - z.detach()))


@final
@dataclass(frozen=True)
class Unrolled(Gradient):
    """Plain iteration from the start, on the tape: the gradient of the computation itself.

    Of the iterates, not of the fixed point: exact only in the limit, where it is the implicit one.
    The solver of the layer is not used: iterated is the canonical form. Memory grows with the
    number of steps.

    Args:
        steps: Number of applications of the map.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)

    @override
    def attach(self, problem: Problem) -> Solution:
        map_ = problem.map_.canonical()
        with steady_precision(map_):
            z = first_iterate(map_, problem.start)
            for _ in range(self.steps):
                z = map_(z)
            return _measure(replace(problem, map_=map_), z, self.steps)


def _measure(problem: Problem, z: Tensor, steps: int) -> Solution:
    """How far an iterate is from solving its equation: one evaluation off the tape."""
    map_ = problem.map_.detach()
    with torch.no_grad():
        here = z.detach()
        rtol, atol = problem.stopping.tolerances(here.dtype)
        fz = map_(here)
        width = max(here[0].numel() if len(here) else 1, 1) ** 0.5
        residual = torch.linalg.vector_norm((fz - here).flatten(1), dim=1) / width
        size = torch.linalg.vector_norm(fz.flatten(1), dim=1) / width
    residual, size = plain(residual), plain(size)
    status = torch.where(residual <= atol + rtol * size, Status.CONVERGED, Status.BUDGET)
    status = torch.where(residual < torch.inf, status, Status.NONFINITE).to(torch.int8)
    count = torch.full_like(status, steps + 1, dtype=torch.long)
    return Solution(z, Tally(residual, count, status), map_)


def _attach_series(problem: Problem, terms: int) -> Solution:
    adjoint = Adjoint(_Series(terms), report=False)
    if captures(problem):
        return attach_closure(problem, adjoint)
    return attach_equation(problem, adjoint) if problem.differentiable else problem.run()


@final
@dataclass(frozen=True)
class _Series(LinearSolver):
    """``sum_{i < terms} M^i rhs``, whatever the tolerance."""

    terms: int

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        with torch.no_grad():
            map_ = map_.detach()
            u = map_.rhs
            for _ in range(self.terms - 1):
                u = map_(u)
        return Solution(u, Tally.unmeasured(u, self.terms))


def _check_steps(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"`{name}` must be at least 1, got {value}.")
