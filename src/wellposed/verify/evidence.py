"""Evidence for the independent checker: bounds that prove themselves, and a leaf for every case."""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.certify.ascent import improve
from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.tighten import tighten
from wellposed.certify.wellposed import Wellposed, wellposedness
from wellposed.core.network import Network
from wellposed.core.sets import Box, Region
from wellposed.verify.branch import Budget, Problem
from wellposed.verify.classifier import Classifier
from wellposed.verify.clauses import decide_clause
from wellposed.verify.containment import Contained, contain
from wellposed.verify.deciding import decided
from wellposed.verify.enclosing import Guess, questions
from wellposed.verify.leaves import Leaves, slim
from wellposed.verify.proof import Bounds, Proof, Step
from wellposed.verify.statement import Statement

STAGES = 3  # rounds of tightening after containment
MOST_OPEN = 400  # unstable neurons up to which bounds are tightened
ASCENT = 30  # steps on multipliers where nothing is branched


@final
class Evidence:
    """Makes proofs about one network, for any number of regions.

    Args:
        task: The network, of any size that `Lowered.network` forms as a matrix.

    Raises:
        NotCertifiableError: It is too large, not piecewise linear with one kink, or not shown to
            be well posed.
    """

    def __init__(self, task: Classifier) -> None:
        self.task = task
        self.network = _formed(task)
        if task.network is None:
            self.wellposed: Wellposed = wellposedness(self.network)
        else:
            self.wellposed = task.wellposed

    @cached_property
    def _digest(self) -> str:
        return self.network.digest()

    @cached_property
    def system(self) -> DenseSystem:
        """The network as matrices."""
        own = self.task.system
        return own if isinstance(own, DenseSystem) else DenseSystem(self.network)

    @torch.no_grad()
    def prove(
        self, region: Region, statement: Statement, scope: Scope, budget: Budget | None = None
    ) -> Proof | None:
        """A certificate that a statement holds on a region; `None` if none is found.

        The bounds of the neurons are proved anew (`contain`) and tightened; the clauses are
        bounded on them, by cases where it takes some, and where that takes long on better bounds
        (`decided`), which are proved by cases themselves.

        Args:
            region: One region in the system's coordinates, a batch of one.
            statement: On the outputs.
            scope: Proved bounds there, a batch of one: where the search for the box starts.
            budget: Of branch and bound.
        """
        held = contain(self.system, self._dense(scope), self.wellposed)
        leaves = Leaves.of(self.system, held.scope, statement)
        zero = torch.zeros(len(statement.rows), self.network.n)
        leaves = leaves.try_plain(leaves.rows, zero)  # interval arithmetic
        if len(leaves.left):
            leaves = self._linear(leaves, scope)
        if len(leaves.left):
            held = self._tightened(held, scope)
            leaves = self._linear(leaves.on(held.scope), scope)
        if len(leaves.left) and self.task.branches:
            held, leaves = self._branched(held, leaves, budget or Budget())
        if len(leaves.left):
            return None
        return Proof(self._digest, region, statement, self.wellposed, held.point,
                     held.anchor, Bounds.of(held.steps), leaves.forest())  # fmt: skip

    @torch.no_grad()
    def refute(self, region: Region, statement: Statement, point: Tensor) -> Proof:
        """A certificate that a statement fails at an input of the region, shape (d,)."""
        anchor, _ = equilibrium(self.network, point[None], self.wellposed)
        return Proof(self._digest, region, statement, self.wellposed, point, anchor[0])

    def _dense(self, scope: Scope) -> Scope:
        """Bounds of the searched system without those of its outputs."""
        n = self.network.n
        box = Box(scope.lower[:, :n], scope.upper[:, :n])
        return Scope.of(self.system, scope.region, box)

    def _searched(self, held: Scope, given: Scope) -> Scope:
        """The bounds in the system that is searched: a large one has its outputs as a block."""
        if self.task.network is not None:
            return held
        n = self.network.n
        lower = torch.cat([held.lower, given.lower[:, n:]], 1)
        upper = torch.cat([held.upper, given.upper[:, n:]], 1)
        return Scope.of(self.task.system, held.region, Box(lower, upper))

    def _rows(self, leaves: Leaves) -> Rows:
        """The rows of the clauses that are left in the system that is searched."""
        index = leaves.rows
        if self.task.network is not None:
            return leaves.asked().select(index)
        assert self.task.lowered is not None
        own = leaves.statement.rows[index]
        state = torch.zeros(len(own), self.task.system.n, dtype=torch.float64)
        state[:, self.task.lowered.outputs] = own
        return Rows(state, None, leaves.statement.offset[index])

    def _linear(self, leaves: Leaves, given: Scope) -> Leaves:
        """One multiplier a row."""
        system, n = self.task.system, self.network.n
        scope, index, rows = self._searched(leaves.scope, given), leaves.rows, self._rows(leaves)
        each = scope.select(torch.zeros(len(index), dtype=torch.long))
        _, p = crown(system, each, rows)
        leaves = leaves.try_plain(index, p[:, :n])
        if len(leaves.left) and not self.task.branches:
            p, _ = improve(system, each, rows, p, steps=ASCENT)
            leaves = leaves.try_plain(index, p[:, :n])
        return leaves

    def _tightened(self, held: Contained, given: Scope) -> Contained:
        scope = self._searched(held.scope, given)
        is_open = (scope.lower < 0) & (scope.upper > 0) & ~self.task.system.neurons.linear
        if int(is_open.sum()) > MOST_OPEN:
            return held
        tight, stages = tighten(self.task.system, scope, rounds=STAGES)
        return held.then(stages[0], self._dense(tight))

    def _branched(
        self, held: Contained, leaves: Leaves, budget: Budget
    ) -> tuple[Contained, Leaves]:
        """Cases, first of the clauses with one row and then of the others."""
        problem = Problem(self.network, self.system, held.scope, self.wellposed)
        clause = leaves.statement.clause
        single = torch.bincount(clause)[clause] == 1
        index = leaves.rows[single[leaves.rows]]
        found = decided(problem, leaves.asked().select(index), budget)
        if found.guess is not None:
            held = held.and_then(self._guessed(found.guess, held.scope), found.problem.scope)
        leaves = leaves.on(found.problem.scope)
        for row, answer in zip(index.tolist(), found.answers, strict=True):
            if answer.status != "verified":
                return held, leaves
            leaves = leaves.keep(row, answer.split, answer.multipliers)
        for k in leaves.left.tolist():
            grove = decide_clause(found.problem, leaves.asked(), clause == k, budget)
            if grove is None:
                break
            leaves = leaves.keep_grove(k, grove)
        return held, leaves

    def _guessed(self, guess: Guess, base: Scope) -> Step:
        """The box that branch and bound has proved, with its trees."""
        region = base.region
        scope = Scope.of(self.system, region, Box(guess.lower[None], guess.upper[None]))
        rows = questions(self.system, guess)
        trees: list[tuple[Tensor, Tensor]] = []
        for k, answer in enumerate(guess.answers):
            own = rows.select(torch.tensor([k]))
            p = slim(self.system, scope, own, answer.split, answer.multipliers)
            trees.append((answer.split, p))
        box = guess.lower, guess.upper
        return Step.of_sides(box, guess.neuron, guess.side, trees)


def _formed(task: Classifier) -> Network:
    """The network as matrices, whatever its size."""
    network = task.network
    if network is None:
        assert task.lowered is not None
        network = task.lowered.network()
    _ = network.slope
    return network
