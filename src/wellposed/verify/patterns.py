"""The largest value of a function of the derivative over the phase patterns of a region."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.core.sets import Box
from wellposed.core.spectra import outward, rounding
from wellposed.errors import ShapeError
from wellposed.verify.derivatives import Derivatives, derivatives
from wellposed.verify.exact import Programme
from wellposed.verify.extreme import Inputs
from wellposed.verify.problem import Problem
from wellposed.verify.reduced import Reduced


@final
@dataclass(frozen=True)
class Bracket:
    """A number between two proved ones.

    Args:
        lower: It is at least this.
        upper: It is at most this.
    """

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """How much is left open."""
        return self.upper - self.lower


@final
@dataclass(frozen=True)
class Measure:
    """A function of the derivative that is maximised over patterns.

    Args:
        above: Proved upper bounds.
        below: Proved lower bounds.
        share: What each undecided neuron has of it, (N, d, n) to (N, n).
        goal: The search ends once the largest value is known to be at most this, or above it.
    """

    above: Callable[[Derivatives], Tensor]
    below: Callable[[Derivatives], Tensor]
    share: Callable[[Tensor], Tensor]
    goal: float | None = None


def check_one(row: Rows) -> None:
    """Refuse anything but one row."""
    if len(row.offset) != 1:
        raise ShapeError(f"One row was expected, got {len(row.offset)}.")


@final
class Patterns:
    """Best-first search for the largest value of a function of the derivative over patterns.

    Args:
        problem: The network on its region.
        row: One row.
        measure: The function.
    """

    def __init__(self, problem: Problem, row: Rows, measure: Measure) -> None:
        check_one(row)
        self.problem, self.measure = problem, measure
        self.state = row.state[0]
        none = torch.zeros(problem.network.d, dtype=torch.float64)
        self.direct = none if row.input is None else row.input[0]
        scope = problem.scope
        self.reduced = Reduced.of(problem.network, Box(scope.lower[0], scope.upper[0]))
        region = scope.region
        self.programme = (
            Programme(self.reduced, Box(region.lower[0], region.upper[0]))
            if isinstance(region, Box) and self.reduced.k
            else None
        )

    def run(self, tolerance: float, seconds: float, inputs: int, seed: int) -> Bracket:
        """The bracket when the ends meet or the time is over."""
        start = perf_counter()
        lower = self._sampled(inputs, seed)
        heap: list[tuple[float, int, list[int], int]] = []
        count = 0
        phases = [[0] * self.reduced.k]
        while True:
            tensor = torch.tensor(phases, dtype=torch.int8).reshape(len(phases), self.reduced.k)
            for pattern, (value, choice) in zip(phases, self._bound(tensor), strict=True):
                heapq.heappush(heap, (-value, count, pattern, choice))
                count += 1
            phases = []
            while heap and not phases:
                value, _, pattern, choice = heap[0]
                upper = max(-value, lower)
                if perf_counter() - start > seconds or self._over(lower, upper, tolerance):
                    return Bracket(lower, upper)
                occurs, point = self._occurs(pattern)
                if occurs and point is not None:
                    lower = max(lower, self._at(point[None]))
                if occurs and choice < 0:
                    return Bracket(lower, max(upper, lower))
                heapq.heappop(heap)
                if occurs:
                    phases = [[*pattern[:choice], side, *pattern[choice + 1 :]] for side in (-1, 1)]
            if not phases:
                return Bracket(lower, lower)

    def _over(self, lower: float, upper: float, tolerance: float) -> bool:
        goal = self.measure.goal
        if goal is not None:
            return upper <= goal or lower > goal
        return upper < inf and upper - lower <= tolerance * abs(upper)

    def _bound(self, phases: Tensor) -> list[tuple[float, int]]:
        """Upper bounds of nodes, and the neuron to divide next."""
        scope, s, keep = self.problem.scope, self.problem.network.slope, self.reduced.keep
        low = torch.where(scope.lower[0] >= 0, 1.0, s).expand(len(phases), -1).clone()
        high = torch.where(scope.upper[0] <= 0, s, 1.0).expand(len(phases), -1).clone()
        low[:, keep] = torch.where(phases > 0, 1.0, low[:, keep])
        high[:, keep] = torch.where(phases < 0, s[keep], high[:, keep])
        found = derivatives(self.problem.network, self.state, self.direct, low, high)
        value = self.measure.above(found)
        if not self.reduced.k:
            return [(float(v), -1) for v in value]
        share = self.measure.share(found.part)[:, keep].nan_to_num(0.0, posinf=0.0)
        # without a bound every undecided neuron is as good as any other
        share = torch.where(phases == 0, share + 1e-300, -1.0)
        top, choice = share.max(1)
        choice = torch.where(top > 0, choice, -1)
        return [(float(v), int(c)) for v, c in zip(value, choice, strict=True)]

    def _occurs(self, pattern: list[int]) -> tuple[bool, Tensor | None]:
        """False if a multiplier proves that no input has these phases; else an input to try."""
        if self.programme is None or not any(pattern):
            return True, None
        phases = torch.tensor(pattern, dtype=torch.int8)
        n, d = self.problem.network.n, self.problem.network.d
        zero = Rows(torch.zeros(1, n).double(), torch.zeros(1, d).double(), torch.zeros(1).double())
        found = self.programme.relax(zero, phases)
        if found.value < inf or found.excess <= 0:
            return True, self.programme.interior(phases)
        scope = self.problem.scope
        lower, upper, keep = scope.lower.clone(), scope.upper.clone(), self.reduced.keep
        lower[0, keep] = torch.where(phases > 0, 0.0, lower[0, keep])
        upper[0, keep] = torch.where(phases < 0, 0.0, upper[0, keep])
        p = self.reduced.expand(zero.state, found.p[None] / found.excess)
        proved = dual_bound(self.problem.system, scope.within(lower, upper), zero, p)
        return not float(proved[0]) > 0, None

    def _sampled(self, count: int, seed: int) -> float:
        """The largest proved value at random inputs."""
        region = self.problem.scope.region
        draw = torch.Generator().manual_seed(seed)
        inputs = Inputs(region)
        part = torch.rand(count, self.problem.network.d, generator=draw, dtype=torch.float64)
        x = inputs.clip(inputs.lower + part * (inputs.upper - inputs.lower))
        return self._at(x) if count else -inf

    def _at(self, x: Tensor) -> float:
        """The largest lower bound of the function at inputs whose phases are certain."""
        network = self.problem.network
        index = torch.zeros(len(x), dtype=torch.long)
        x = x[self.problem.scope.region.select(index).contains(x)]
        if not len(x):
            return -inf
        z, error = equilibrium(network, x, self.problem.wellposed)
        v = network.preactivation(z, x)
        size = z.abs() @ network.W.abs().mT + x.abs() @ network.U.abs().mT + network.b.abs()
        slack = outward(error @ network.W.abs().mT, network.n + 4)
        slack = slack + outward(3 * rounding(network.n + network.d + 8) * size, 4)
        sure = ((v.abs() > slack) | (network.slope == 1)).all(1)
        slope = torch.where(v > 0, 1.0, network.slope)[sure]
        if not len(slope):
            return -inf
        found = derivatives(network, self.state, self.direct, slope, slope)
        return float(self.measure.below(found).amax())
