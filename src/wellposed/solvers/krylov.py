"""Linear equations ``u = M u + rhs``: the adjoint and tangent equations of a fixed point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from wellposed.core.maps import LinearMap
from wellposed.solvers.base import Solution, Stopping, solve
from wellposed.solvers.picard import Picard


class LinearSolver(ABC):
    """A frozen value that solves ``u = M u + rhs`` for every sample."""

    @abstractmethod
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        """Solve from ``u = rhs``; the residual is ``rms(M u + rhs - u)``."""


@final
@dataclass(frozen=True)
class Stationary(LinearSolver):
    """Plain iteration (placeholder)."""

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        return solve(map_, map_.rhs, Picard(), stopping)
