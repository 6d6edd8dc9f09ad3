"""Linear equations ``u = M u + rhs``: the adjoint and tangent equations of a fixed point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.linear_maps import LinearMap
from wellposed.core.maps import Map
from wellposed.errors import ConfigError
from wellposed.solvers.anderson import History, accelerate, check_window
from wellposed.solvers.auto import STRIDE, observe
from wellposed.solvers.base import Solution, Solver, Stopping, solve
from wellposed.solvers.picard import Picard

FIRST = 6
"""No rate is looked at before this evaluation."""


class LinearSolver(ABC):
    """A frozen value that solves ``u = M u + rhs`` for every sample."""

    @abstractmethod
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        """Solve from ``u = rhs``; the residual is ``rms(M u + rhs - u)``."""


@final
@dataclass(frozen=True)
class Stationary(LinearSolver):
    """Plain iteration ``u <- M u + rhs``; samples that converge slowly are handed to GMRES.

    For max-norm cells in canonical form plain iteration is the transposed Jacobi iteration, and
    contracts at the rate of the forward solve. GMRES continues from the current iterate.

    Args:
        rate: Rate of convergence, in (0, 1), above which a sample is handed over.
        limit: Longest history of GMRES; 2 `limit` states of memory if progress is very poor.
    """

    rate: float = 0.6
    limit: int = 160
    _method: _Residual = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"`rate` must lie in (0, 1), got {self.rate}.")
        check_window("limit", self.limit)
        object.__setattr__(self, "_method", _Residual(10, self.limit, self.rate))

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        return solve(map_, map_.rhs, self._method, stopping)


@final
@dataclass(frozen=True)
class GMRES(LinearSolver):
    """GMRES with a short history, in its fixed-point form [1], [2].

    Anderson's method on a linear equation is GMRES followed by one plain step; every evaluation
    gives the true residual. The history is cut, not restarted: on symmetric equations nothing is
    lost by that. It doubles up to `limit` while progress is poor.

    Args:
        window: Length of the history; 2 `window` states of memory.
        limit: Longest history.

    References:
        [1] Saad, Schultz. GMRES: a generalized minimal residual algorithm. SIAM J. Sci. Stat.
        Comput. 7(3), 1986.
        [2] Walker, Ni. Anderson acceleration for fixed-point iterations. SIAM J. Numer. Anal.
        49(4), 2011, theorem 2.2.
    """

    window: int = 20
    limit: int = 160

    def __post_init__(self) -> None:
        check_window("window", self.window)
        check_window("limit", self.limit)

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        return solve(map_, map_.rhs, _Residual(self.window, self.limit, None), stopping)


@final
@dataclass(frozen=True)
class Iterate(LinearSolver):
    """Any fixed-point solver on ``u -> M u + rhs``.

    Args:
        solver: Proposes iterates.
    """

    solver: Solver = field(default_factory=Picard)

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        return solve(map_, map_.rhs, self.solver, stopping)


class _Relay(NamedTuple):
    level: Tensor | None
    slow: Tensor | None
    history: History | None
    seen: int


@final
@dataclass(frozen=True)
class _Residual(Solver):
    """Minimal-residual steps, for all samples or (with a `rate`) for the slow ones."""

    window: int
    limit: int
    rate: float | None

    @override
    def init(self, map_: Map, z: Tensor) -> _Relay:
        return _Relay(None, None, None, 0)

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: _Relay) -> tuple[Tensor, _Relay]:
        level, slow, history, seen = state
        seen += 1
        if self.rate is not None:
            if seen >= FIRST and seen % STRIDE == 0:
                level, slow = observe(z, fz, level, slow, self.rate**STRIDE)
            if slow is None:
                return fz, _Relay(level, None, None, seen)
        out, history = accelerate(z, fz, history, self.window, limit=self.limit)
        if slow is not None:
            out = torch.where(slow.reshape(-1, *[1] * (z.ndim - 1)), out, fz)
        return out, _Relay(level, slow, history, seen)

    @override
    def advance(self, map_: Map, z: Tensor, state: _Relay, times: int) -> tuple[Tensor, _Relay]:
        if self.rate is None or state.seen + times >= FIRST:
            return super().advance(map_, z, state, times)
        return map_.repeated(z, times), state._replace(seen=state.seen + times)
