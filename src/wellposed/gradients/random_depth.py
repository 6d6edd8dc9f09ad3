"""Random-depth gradients: a random number of terms of the series of the implicit gradient."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.linear_maps import LinearMap
from wellposed.errors import ConfigError
from wellposed.gradients.base import Gradient, Problem
from wellposed.gradients.closure import attach_closure, captures
from wellposed.gradients.function import Adjoint, attach_equation
from wellposed.solvers.base import Solution, Stopping, Tally
from wellposed.solvers.krylov import LinearSolver


@final
@dataclass(frozen=True)
class RandomDepth(Gradient):
    """One step of the series and a geometric number ``k`` of further ones, drawn anew a pass [1].

    With ``v_j = sum_{i < j} (J^T)^i g`` and ``P(k) = (1 - p)^k p``, ``k = 0, 1, ...``: the plain
    estimator is ``v_{k + 1}``, whose mean is ``sum_i ((1 - p) J^T)^i g``; the debiased one is
    ``v_1 + (v_{k + 2} - v_{k + 1}) / P(k)``, whose mean is the exact gradient if the series
    converges. Its variance is finite for ``||J||^2 < 1 - p`` only, and large near that.

    The depth is drawn from PyTorch's global generator when the layer is passed; a second backward
    pass through the same graph takes the same depth.

    Args:
        p: Probability of stopping at each step, in (0, 1).
        debiased: Which of the two.
        limit: Largest depth; beyond it the series is cut.

    References:
        [1] Rhee, Glynn. Unbiased estimation with square root convergence for SDE models. Operations
        Research 63(5), 2015: the single-term estimator, which is the debiased form.
    """

    p: float = 0.5
    debiased: bool = False
    limit: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ConfigError(f"`p` must lie in (0, 1), got {self.p}.")
        if self.limit < 1:
            raise ConfigError(f"`limit` must be at least 1, got {self.limit}.")

    @override
    def attach(self, problem: Problem) -> Solution:
        further = self._draw()
        weight = 1 / ((1 - self.p) ** further * self.p) if self.debiased else None
        adjoint = Adjoint(_RandomSeries(further, weight), report=False)
        if captures(problem):
            return attach_closure(problem, adjoint)
        return attach_equation(problem, adjoint) if problem.differentiable else problem.run()

    def _draw(self) -> int:
        chance = float(torch.rand((), dtype=torch.float64))  # in [0, 1)
        return min(int(log1p(-chance) / log(1 - self.p)), self.limit)


@final
@dataclass(frozen=True)
class _RandomSeries(LinearSolver):
    """``v_{k + 1}``, or ``v_1 + weight M^{k + 1} rhs``, whatever the tolerance."""

    further: int
    weight: float | None

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        with torch.no_grad():
            map_ = map_.detach()
            u: Tensor = map_.rhs
            count = self.further + 1
            if self.weight is None:
                for _ in range(self.further):
                    u = map_(u)
            else:
                for _ in range(count):
                    u = map_.matvec(u)
                u, count = map_.rhs + self.weight * u, count + 1
        return Solution(u, Tally.unmeasured(u, count))
