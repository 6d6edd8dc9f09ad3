"""Branch and bound over neuron phases: many nodes at a time, and a proof at every leaf."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, dual_bound
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError
from wellposed.verify.bounding import Ascent
from wellposed.verify.extreme import Inputs
from wellposed.verify.nodes import Nodes
from wellposed.verify.problem import Answer as Answer
from wellposed.verify.problem import Budget as Budget
from wellposed.verify.problem import Problem as Problem
from wellposed.verify.reduced import Reduced

if TYPE_CHECKING:
    from wellposed.verify.exact import Programme
from wellposed.verify.tree import Tree
from wellposed.verify.witness import Probe, proved_values


@torch.no_grad()
def branch(
    problem: Problem,
    rows: Rows,
    budget: Budget | None = None,
    *,
    gap: float | None = None,
    every: bool = True,
) -> tuple[Answer, ...]:
    """Decide for every row whether ``r z*(x) + s x + t > 0`` on the region, or find its minimum.

    A case is a choice of phases; its preactivations lie in narrower intervals, where any multiplier
    proves a bound (`dual_bound`, rounding included). Cases with a bound above the goal are leaves;
    the one with the lowest bound is divided first, at the neuron whose relaxation costs most there.
    With all phases decided the bound is exact up to the tolerance of a linear programme. Inputs
    met on the way are evaluated on the network and count with their proved error only.

    Ctrl-C ends the search like an exhausted budget.

    Args:
        problem: The network on its region.
        rows: What is asked, one a question.
        budget: When to stop.
        gap: `None` asks for the sign, with the goal 0. A number asks for the minimum, within `gap`:
            the goal is the smallest proved value so far less `gap`, and a row is "verified" once
            ``lower > upper - gap``.
        every: Whether all rows are wanted; else the first counter-example ends the search.

    Raises:
        ShapeError: The scope is not a batch of one, or a row does not fit the network.
        ConfigError: `gap` is not positive.
    """
    if len(problem.scope.lower) != 1 or rows.state.shape[1] != problem.network.n:
        raise ShapeError(
            f"The scope holds {len(problem.scope.lower)} regions and the rows "
            f"{rows.state.shape[1]} states, expected 1 and {problem.network.n}."
        )
    if gap is not None and not gap > 0:
        raise ConfigError(f"`gap` must be positive, got {gap}.")
    if not len(rows.offset):
        return ()
    search = _Search(problem, rows, budget or Budget(), gap, every)
    try:
        search.run()
    except KeyboardInterrupt:
        search.interrupted = True
    return search.answers()


@final
class _Search:
    """The open nodes of all rows and what has been found."""

    def __init__(
        self, problem: Problem, rows: Rows, budget: Budget, gap: float | None, every: bool
    ) -> None:
        self.problem, self.rows, self.budget, self.gap = problem, rows, budget, gap
        self.every = every
        self.start = perf_counter()
        self.interrupted = False
        scope = problem.scope
        self.reduced = Reduced.of(problem.network, Box(scope.lower[0], scope.upper[0]))
        inputs = Inputs(scope.region)
        self.ascent = Ascent(self.reduced, inputs, self.reduced.rows(rows))
        self.inputs, self.probe = inputs, Probe(self.ascent)
        count = len(rows.offset)
        self.tree = Tree(count)
        self.upper = torch.full((count,), inf, dtype=torch.float64)
        self.witness = torch.zeros(count, problem.network.d, dtype=torch.float64)
        # the smallest bound of a closed node, of an open one, and of one that nothing closes
        self.closed = torch.full((count,), inf, dtype=torch.float64)
        self.stuck = torch.full((count,), inf, dtype=torch.float64)
        self.count = torch.zeros(count, dtype=torch.long)
        self.open = self.ascent.roots()
        self._programme: Programme | None = None

    def run(self) -> None:
        """Bound the roots, then divide the worst nodes until nothing is open or the budget ends."""
        if self.budget.seconds <= 0 or self.budget.nodes <= 0:
            return
        none = self.open.select(torch.zeros(0, dtype=torch.long))
        self._settle(*self._improve(self.open, self.budget.root), none)
        while len(self.open) and not self._spent():
            if self.gap is not None:
                self._sweep()
            self._divide()

    def _sweep(self) -> None:
        """Close what has passed the goal since it was bounded: the goal falls with every input."""
        passed = self.open.bound > self._goal()[self.open.row]
        if not bool(passed.any()):
            return
        nodes = self.open.select(passed)
        proof = self._whole(nodes)
        own = self._prove(nodes, proof)
        good = own > self._goal()[nodes.row]
        self._close(nodes.select(good), proof[good], own[good])
        self.open = Nodes.join([self.open.select(~passed), nodes.select(~good)])

    def _close(self, nodes: Nodes, proof: Tensor, own: Tensor) -> None:
        if len(nodes):
            self.tree.close(nodes.number, proof, own)
            self.closed.scatter_reduce_(0, nodes.row, own, "amin")

    def answers(self) -> tuple[Answer, ...]:
        """What is known about each row."""
        return tuple(self._answer(k) for k in range(len(self.upper)))

    def _answer(self, k: int) -> Answer:
        left = self.open.bound[self.open.row == k]
        pending = float(left.min()) if len(left) else inf
        stuck, closed = float(self.stuck[k]), float(self.closed[k])
        upper = float(self.upper[k])
        status = "verified" if pending == stuck == inf else "unknown"
        if self.gap is None and upper < 0:
            status = "falsified"
        split, multipliers, bounds = self.tree.preorder(k)
        split = torch.where(split >= 0, self._neuron(split), -1)
        return Answer(
            status,
            min(pending, stuck, closed),
            upper,
            self.witness[k] if upper < inf else None,
            split,
            multipliers,
            bounds,
            int(self.count[k]),
            self.interrupted,
        )

    def _neuron(self, split: Tensor) -> Tensor:
        return self.reduced.keep[split.clamp(min=0)] if self.reduced.k else split

    def _spent(self) -> bool:
        if self.gap is None and not self.every and bool((self.upper < 0).any()):
            return True
        late = perf_counter() - self.start > self.budget.seconds
        return late or int(self.count.sum()) >= self.budget.nodes

    def _goal(self) -> Tensor:
        """Values that the rows have to exceed."""
        return torch.zeros_like(self.upper) if self.gap is None else self.upper - self.gap

    def _divide(self) -> None:
        """Take the worst nodes, bound both cases of each."""
        if not len(self.open):
            return
        size = max(1, self.budget.batch // 2)
        order = (self.open.bound - self._goal()[self.open.row]).argsort()
        chosen, rest = self.open.select(order[:size]), self.open.select(order[size:])
        lam = self.ascent.multiplier(chosen.row, chosen.p)
        first = self.tree.size + 2 * torch.arange(len(chosen))
        children = chosen.children(first, self.reduced.slope, lam)
        bounded = self._improve(children, self.budget.steps)
        self.tree.grow(chosen.number, chosen.choice)
        self._settle(*bounded, rest)

    def _improve(self, nodes: Nodes, steps: int) -> tuple[Nodes, Tensor, Tensor]:
        """Better multipliers in search, those to be kept, and the bounds that these prove."""
        before = nodes.bound
        nodes = self.ascent.run(nodes, steps, self._goal() + 1e-9)
        if bool((nodes.choice < 0).any()):
            nodes = self._decided(nodes)
        proof = self._whole(nodes)
        own = self._prove(nodes, proof)
        # what held for the parent holds for its cases
        return replace(nodes, bound=torch.maximum(before, own)), proof, own

    def _settle(self, nodes: Nodes, proof: Tensor, own: Tensor, rest: Nodes) -> None:
        """Close what its own multiplier proves, note what can never be closed, keep the rest.

        `open` changes only here, and only to a complete list: an interruption at any other moment
        leaves the divided nodes open, never a case forgotten.
        """
        self.count += torch.bincount(nodes.row, minlength=len(self.count))
        self._try_inputs(nodes)
        done = own > self._goal()[nodes.row]
        self._close(nodes.select(done), proof[done], own[done])
        over = ~done & (nodes.choice < 0)
        if bool(over.any()):
            self.stuck.scatter_reduce_(0, nodes.row[over], nodes.bound[over], "amin")
        self.open = Nodes.join([rest, nodes.select(~done & ~over)])
        if self.gap is None:
            # a row with a counter-example, or with a case that nothing decides, is over
            keep = (self.upper >= 0) & (self.stuck == inf)
            keep = keep[self.open.row]
            lost = self.open.select(~keep)
            if len(lost):
                self.stuck.scatter_reduce_(0, lost.row, lost.bound, "amin")
            self.open = self.open.select(keep)

    def _whole(self, nodes: Nodes) -> Tensor:
        """Multipliers of the whole network."""
        return self.reduced.expand(self.rows.state[nodes.row], nodes.p)

    def _prove(self, nodes: Nodes, proof: Tensor) -> Tensor:
        scope = self.problem.scope.select(torch.zeros(len(nodes), dtype=torch.long))
        lower, upper = scope.lower.clone(), scope.upper.clone()
        keep, phases = self.reduced.keep, nodes.phases
        lower[:, keep] = torch.where(phases > 0, 0.0, lower[:, keep])
        upper[:, keep] = torch.where(phases < 0, 0.0, upper[:, keep])
        rows = self.rows.select(nodes.row)
        return dual_bound(self.problem.system, scope.within(lower, upper), rows, proof)

    def _decided(self, nodes: Nodes) -> Nodes:
        """Better multipliers where no phase is left to decide: nothing else can help there."""
        goal = self._goal()[nodes.row]
        late = ((nodes.choice < 0) & (nodes.bound <= goal)).nonzero()[:, 0]
        region = self.problem.scope.region
        if not self.reduced.k or not len(late):
            return nodes
        p = nodes.p.clone()
        if not isinstance(region, Box):
            p[late] = self.ascent.run(nodes.select(late), 20 * self.budget.root, self._goal()).p
            return replace(nodes, p=p)
        if self._programme is None:
            from wellposed.verify.exact import Programme

            self._programme = Programme(self.reduced, Box(region.lower[0], region.upper[0]))
        for i in late.tolist():
            found = self._programme.relax(self.rows.select(nodes.row[i : i + 1]), nodes.phases[i])
            if found.value == inf and found.excess > 0:
                # bounds add up: the ray, as often as it takes to pass the goal; not on top of what
                # the ascent found, which has no maximum here and may be astronomic
                base = self.ascent.value(
                    nodes.row[i : i + 1], nodes.phases[i : i + 1], 0 * p[i : i + 1]
                )
                missing = max(0.0, float(goal[i] - base[0]))
                p[i] = found.p * (2 * missing + 1) / found.excess
            else:
                p[i] = found.p
                # exact here: no descent may talk it out of a counter-example
                self._confirm(nodes.row[i : i + 1], found.point[None])
        return replace(nodes, p=p)

    def _try_inputs(self, nodes: Nodes) -> None:
        """Descend from the minimisers of the worst nodes."""
        count = min(self.budget.probes, len(nodes))
        if not count:
            return
        order = (nodes.bound - self._goal()[nodes.row]).argsort()[:count]
        some = nodes.select(order)
        self._try(some.row, self.ascent.point(some.row, some.p))

    def _try(self, row: Tensor, x: Tensor) -> None:
        x, value = self.probe.improve(row, self.inputs.clip(x))
        goal = torch.zeros_like(self.upper) if self.gap is None else self.upper
        good = (value < goal[row]) & (value < self.upper[row])
        if bool(good.any()):
            self._confirm(row[good], x[good])

    def _confirm(self, row: Tensor, x: Tensor) -> None:
        """Keep the inputs of the region whose proved values are the smallest so far."""
        x = self.inputs.clip(x)
        inside = self.problem.scope.region.select(torch.zeros(len(x), dtype=torch.long)).contains(x)
        rows = self.rows.select(row)
        value = proved_values(self.problem.network, self.problem.wellposed, rows, x)
        for i in inside.nonzero()[:, 0].tolist():
            k = int(row[i])
            if float(value[i]) < float(self.upper[k]):
                self.witness[k], self.upper[k] = x[i], value[i]
