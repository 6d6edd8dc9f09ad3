"""Clauses of several rows, one of which is positive: cases, each with a mixture of the rows."""

from __future__ import annotations

from math import inf
from time import perf_counter

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, dual_bound
from wellposed.core.sets import Box
from wellposed.verify.exact import Programme, Relaxed
from wellposed.verify.leaves import Grove
from wellposed.verify.problem import Budget, Problem
from wellposed.verify.reduced import Reduced


@torch.no_grad()
def decide_clause(
    problem: Problem, rows: Rows, members: Tensor, budget: Budget | None = None
) -> Grove | None:
    """A tree whose leaves prove that some row of a clause is positive; `None` if none is found.

    No row need be positive everywhere: the largest is bounded, by the linear relaxation of every
    case, whose duals are multipliers and a mixture of the rows. They are judged by weak duality.

    Args:
        problem: The network on its region, a box, with proved bounds.
        rows: All rows of the statement.
        members: Which of them belong to the clause, shape (R,), boolean.
        budget: Its seconds and its nodes count.
    """
    budget, region = budget or Budget(), problem.scope.region
    start = perf_counter()
    if not isinstance(region, Box):
        return None
    bounds = Box(problem.scope.lower[0], problem.scope.upper[0])
    reduced = Reduced.of(problem.network, bounds)
    programme = Programme(reduced, Box(region.lower[0], region.upper[0]))
    own = rows.select(members.nonzero()[:, 0])
    tree: list[int] = []
    proved: list[Tensor] = []
    mixes: list[Tensor] = []
    todo = [torch.zeros(reduced.k, dtype=torch.int8)]
    while todo:
        late = perf_counter() - start > budget.seconds or len(tree) >= budget.nodes
        if late:
            return None
        phases = todo.pop()
        found = programme.relax(own, phases)
        p, mix, value = _judged(problem, reduced, own, phases, found)
        if value > 0:
            tree.append(-1)
            proved.append(p)
            mixes.append(mix)
            continue
        free = (phases == 0).nonzero()[:, 0]
        if not len(free) or (found.value <= 0 and float(found.gap.max()) == 0):
            return None
        worst = int(free[found.gap[free].argmax()])
        tree.append(int(reduced.keep[worst]))
        for phase in (1, -1):
            case = phases.clone()
            case[worst] = phase
            todo.append(case)
    all_mixes = torch.zeros(len(mixes), len(rows.offset), dtype=torch.float64)
    all_mixes[:, members] = torch.stack(mixes)
    return Grove(torch.tensor(tree), torch.stack(proved), all_mixes)


def _judged(
    problem: Problem, reduced: Reduced, own: Rows, phases: Tensor, found: Relaxed
) -> tuple[Tensor, Tensor, float]:
    """The multiplier of a case on the whole network, the mixture, and the bound they prove."""
    mix, p = found.mix, found.p
    if found.value == inf and found.excess > 0:
        p = p / found.excess
    state = mix @ own.state
    direct = None if own.input is None else (mix @ own.input)[None]
    row = Rows(state[None], direct, (mix @ own.offset)[None])
    whole = reduced.expand(state[None], p[None])
    lower, upper = problem.scope.lower.clone(), problem.scope.upper.clone()
    keep = reduced.keep
    lower[0, keep] = torch.where(phases > 0, 0.0, lower[0, keep])
    upper[0, keep] = torch.where(phases < 0, 0.0, upper[0, keep])
    value = dual_bound(problem.system, problem.scope.within(lower, upper), row, whole)
    return whole[0], mix, float(value[0])
