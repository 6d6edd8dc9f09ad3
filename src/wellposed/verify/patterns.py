"""The largest value of a function of the derivative over the phase patterns of a region."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from time import perf_counter
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.fallback import lipschitz_box
from wellposed.core.sets import Box
from wellposed.core.spectra import outward, rounding
from wellposed.errors import ShapeError
from wellposed.verify.derivatives import Derivatives, derivatives
from wellposed.verify.extreme import Inputs
from wellposed.verify.problem import Problem
from wellposed.verify.reduced import Reduced
from wellposed.verify.tangent import Norm, Tangent


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
        dual: The norm of the derivative, where the function is one; rounded up.
    """

    above: Callable[[Derivatives], Tensor]
    below: Callable[[Derivatives], Tensor]
    share: Callable[[Tensor], Tensor]
    goal: float | None = None
    dual: Norm | None = None


BATCH = 16  # cases that are divided at a time


@final
@dataclass(frozen=True, order=True)
class _Node:
    """A case of phases: 1 on, -1 off, 0 undecided; sorted by minus its upper bound."""

    key: float
    count: int
    phases: list[int] = field(compare=False)
    choice: int = field(compare=False)
    moves: Tensor | None = field(compare=False)

    def divided(self) -> list[_Node]:
        """Both cases of the chosen neuron."""
        out: list[_Node] = []
        for side in (-1, 1):
            phases = [*self.phases]
            phases[self.choice] = side
            out.append(replace(self, phases=phases))
        return out


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
        scale: What the inputs were divided by before the network, shape (d,); the derivative is
            that with respect to the undivided ones.
    """

    def __init__(
        self, problem: Problem, row: Rows, measure: Measure, scale: Tensor | None = None
    ) -> None:
        from wellposed.verify.exact import Programme

        check_one(row)
        self.problem, self.measure, self.scale = problem, measure, scale
        self.state = row.state[0]
        none = torch.zeros(problem.network.d, dtype=torch.float64)
        self.direct = none if row.input is None else row.input[0]
        scope = problem.scope
        self.reduced = Reduced.of(problem.network, Box(scope.lower[0], scope.upper[0]))
        region = scope.region
        self.inputs = Inputs(region)
        self._divisor = torch.ones(problem.network.d).double() if scale is None else scale
        self._unit = problem.network.U / self._divisor
        self._seen = torch.zeros(0, self.reduced.k, dtype=torch.int8)
        self._most, self._count = -inf, 0
        self._best: Tensor | None = None
        self.programme = (
            Programme(self.reduced, Box(region.lower[0], region.upper[0]))
            if isinstance(region, Box) and self.reduced.k
            else None
        )

    def run(self, tolerance: float, seconds: float, inputs: int, seed: int) -> Bracket:
        """The bracket when the ends meet or the time is over."""
        start = perf_counter()
        draw = torch.Generator().manual_seed(seed)
        lower = self._look(self._random(inputs, draw))
        heap: list[_Node] = []
        done = -inf  # the largest value of a case that nothing divides
        self._push(heap, [_Node(0.0, 0, [0] * self.reduced.k, -1, self._start())])
        while heap:
            upper = max(-heap[0].key, done, lower)
            if perf_counter() - start > seconds or self._over(lower, upper, tolerance):
                return Bracket(lower, upper)
            if done >= -heap[0].key:
                return Bracket(lower, upper)
            cases: list[_Node] = []
            for _ in range(min(BATCH, len(heap))):
                node = heapq.heappop(heap)
                if self._met(node.phases):
                    occurs, point = True, None
                elif perf_counter() - start > seconds:
                    heapq.heappush(heap, node)
                    break
                else:
                    occurs, point = self._occurs(node.phases)
                if point is not None:
                    lower = max(lower, self._look(point[None]))
                if occurs and node.choice < 0:
                    done = max(done, -node.key)
                elif occurs:
                    cases += node.divided()
            self._push(heap, cases)
            lower = max(lower, self._look(self._bred(draw)))
        return Bracket(lower, max(lower, done))

    def _push(self, heap: list[_Node], nodes: list[_Node]) -> None:
        """Bound cases and put them where they belong."""
        if not nodes:
            return
        e = (
            None
            if nodes[0].moves is None
            else torch.stack([n.moves for n in nodes if n.moves is not None])
        )
        phases = torch.tensor([n.phases for n in nodes], dtype=torch.int8)
        values, choice, e = self._bound(phases.reshape(len(nodes), self.reduced.k), e)
        for i, node in enumerate(nodes):
            self._count += 1
            # what bounds a case bounds its parts
            value = values[i] if self._count == 1 else min(values[i], -node.key)
            own = None if e is None else e[i]
            heapq.heappush(heap, _Node(-value, self._count, node.phases, choice[i], own))

    def _over(self, lower: float, upper: float, tolerance: float) -> bool:
        goal = self.measure.goal
        if goal is not None:
            return upper <= goal or lower > goal
        return upper < inf and upper - lower <= tolerance * abs(upper)

    def _start(self) -> Tensor | None:
        """How far neurons move at most for a unit change of the inputs, whatever the phases."""
        if self.measure.dual is None:
            return None
        reach = torch.ones(1, self.problem.network.d, dtype=torch.float64) / self._divisor
        around = lipschitz_box(
            self.problem.network, Box.around(0 * reach, reach), self.problem.wellposed
        )
        return outward((around.upper - around.lower)[0] / 2, 4)

    def _bound(
        self, phases: Tensor, e: Tensor | None
    ) -> tuple[list[float], list[int], Tensor | None]:
        """Upper bounds of nodes, the neuron to divide next, and how far neurons move."""
        scope, s, keep = self.problem.scope, self.problem.network.slope, self.reduced.keep
        low = torch.where(scope.lower[0] >= 0, 1.0, s).expand(len(phases), -1).clone()
        high = torch.where(scope.upper[0] <= 0, s, 1.0).expand(len(phases), -1).clone()
        low[:, keep] = torch.where(phases > 0, 1.0, low[:, keep])
        high[:, keep] = torch.where(phases < 0, s[keep], high[:, keep])
        found = self._derivatives(low, high)
        value, share = self.measure.above(found), self.measure.share(found.part)
        if e is not None and self.measure.dual is not None:
            tangent = Tangent(self.problem.network, self._unit, self.measure.dual)
            e = tangent.moves(low, high, e)
            other, share = tangent.gains((self.state, self.direct / self._divisor), low, high, e)
            value = torch.minimum(value, other)
        if not self.reduced.k:
            return value.tolist(), [-1] * len(value), e
        share = share[:, keep].nan_to_num(0.0, posinf=0.0)
        # without a bound every undecided neuron is as good as any other
        share = torch.where(phases == 0, share + 1e-300, -1.0)
        top, choice = share.max(1)
        return value.tolist(), torch.where(top > 0, choice, -1).tolist(), e

    def _met(self, pattern: list[int]) -> bool:
        """Whether an input with these phases was met."""
        wanted = torch.tensor(pattern, dtype=torch.int8)
        return bool(((self._seen == wanted) | (wanted == 0)).all(1).any())

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

    def _random(self, count: int, draw: torch.Generator) -> Tensor:
        """Inputs of the region, half of them from its corners."""
        shape = (count, self.problem.network.d)
        part = torch.rand(shape, generator=draw, dtype=torch.float64)
        part[::2] = part[::2].round()
        return self.inputs.lower + part * (self.inputs.upper - self.inputs.lower)

    def _bred(self, draw: torch.Generator) -> Tensor:
        """The best input so far with some components drawn anew."""
        fresh = self._random(BATCH, draw)
        if self._best is None:
            return fresh
        share = torch.rand(len(fresh), 1, generator=draw, dtype=torch.float64).square()
        change = torch.rand(fresh.shape, generator=draw, dtype=torch.float64) < share
        return torch.where(change, fresh, self._best)

    def _look(self, x: Tensor) -> float:
        """The largest proved value at inputs; notes the best one and the phases that occur."""
        if not len(x):
            return -inf
        x = self.inputs.clip(x)
        values, phases = self._at(x)
        self._seen = torch.cat([self._seen, phases[values > -inf][:, self.reduced.keep]])
        top = int(values.argmax())
        if float(values[top]) > self._most:
            self._most, self._best = float(values[top]), x[top]
        return float(values[top])

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds of the function at inputs whose phases are certain, and these phases."""
        network = self.problem.network
        index = torch.zeros(len(x), dtype=torch.long)
        inside = self.problem.scope.region.select(index).contains(x)
        z, error = equilibrium(network, x, self.problem.wellposed)
        v = network.preactivation(z, x)
        size = z.abs() @ network.W.abs().mT + x.abs() @ network.U.abs().mT + network.b.abs()
        slack = outward(error @ network.W.abs().mT, network.n + 4)
        slack = slack + outward(3 * rounding(network.n + network.d + 8) * size, 4)
        sure = inside & ((v.abs() > slack) | (network.slope == 1)).all(1)
        slope = torch.where(v > 0, 1.0, network.slope)
        value = torch.full((len(x),), -inf, dtype=torch.float64)
        if bool(sure.any()):
            value[sure] = self.measure.below(self._derivatives(slope[sure], slope[sure]))
        return value, torch.where(v > 0, 1, -1).to(torch.int8)

    def _derivatives(self, low: Tensor, high: Tensor) -> Derivatives:
        found = derivatives(self.problem.network, self.state, self.direct, low, high)
        return found if self.scale is None else found.divided(self.scale)
