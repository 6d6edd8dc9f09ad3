"""The clauses of a statement on one region, and the leaves that prove them so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.core.network import Network
from wellposed.verify.enclosing import SURE
from wellposed.verify.proof import Forest
from wellposed.verify.statement import Statement
from wellposed.verify.tree import signs


@final
@dataclass(frozen=True, eq=False)
class Grove:
    """The proof of one clause.

    Args:
        tree: In preorder, shape (N,).
        multiplier: One a leaf, shape (L, n).
        mix: Weights of all rows of the statement, shape (L, R).
    """

    tree: Tensor
    multiplier: Tensor
    mix: Tensor


@final
@dataclass(frozen=True, eq=False)
class Leaves:
    """What is proved and what is left.

    Args:
        system: The network.
        scope: The region with proved bounds, a batch of one.
        statement: To be proved.
        found: Of each clause; `None` where it is not proved yet.
    """

    system: DenseSystem
    scope: Scope
    statement: Statement
    found: tuple[Grove | None, ...]

    @classmethod
    def of(cls, system: DenseSystem, scope: Scope, statement: Statement) -> Leaves:
        """Nothing is proved yet."""
        return cls(system, scope, statement, (None,) * statement.clauses)

    def on(self, scope: Scope) -> Leaves:
        """On better bounds, where what is proved stays so."""
        return replace(self, scope=scope)

    @property
    def left(self) -> Tensor:
        """Clauses without a proof."""
        return torch.tensor([k for k, grove in enumerate(self.found) if grove is None]).long()

    @property
    def rows(self) -> Tensor:
        """Rows of the clauses without a proof."""
        return torch.isin(self.statement.clause, self.left).nonzero()[:, 0]

    def asked(self) -> Rows:
        """All rows as functions of state and input, less what has to be to spare."""
        return asked(self.system.network, self.scope, self.statement)

    def try_plain(self, index: Tensor, p: Tensor) -> Leaves:
        """Keep multipliers, float32, of some rows where these prove a whole clause at once."""
        small = p.float()
        each = self.scope.select(torch.zeros(len(index), dtype=torch.long))
        good = dual_bound(self.system, each, self.asked().select(index), small.double()) > 0
        found = list(self.found)
        for row, own in zip(index[good].tolist(), small[good], strict=True):
            clause = int(self.statement.clause[row])
            if found[clause] is None:
                found[clause] = Grove(torch.tensor([-1]), own[None], self._mix(row, 1))
        return replace(self, found=tuple(found))

    def keep(self, row: int, tree: Tensor, p: Tensor) -> Leaves:
        """Keep the tree of a row, which proves its clause."""
        rows = self.asked().select(torch.tensor([row]))
        grove = Grove(tree, slim(self.system, self.scope, rows, tree, p), self._mix(row, len(p)))
        return self.keep_grove(int(self.statement.clause[row]), grove)

    def keep_grove(self, clause: int, grove: Grove) -> Leaves:
        """Keep the proof of a clause."""
        found = [grove if k == clause else old for k, old in enumerate(self.found)]
        return replace(self, found=tuple(found))

    def _mix(self, row: int, count: int) -> Tensor:
        mix = torch.zeros(count, len(self.statement.rows), dtype=torch.float64)
        mix[:, row] = 1
        return mix

    def forest(self) -> Forest:
        """All of it; every clause must be proved."""
        groves = [grove for grove in self.found if grove is not None]
        return Forest(
            torch.cat([g.tree for g in groves]),
            torch.cat([g.multiplier for g in groves]),
            torch.cat([g.mix for g in groves]),
        )


def asked(network: Network, scope: Scope, statement: Statement) -> Rows:
    """Rows of a statement as functions of state and input, less what has to be to spare.

    Their coefficients are rounded, and another program has to come to the same answer.
    """
    own = statement.rows
    direct = own @ network.D if bool(network.D.any()) else None
    size = own.abs() @ (network.C.abs() @ scope.state[0] + network.c.abs())
    size = size + own.abs() @ (network.D.abs() @ scope.input[0]) + statement.offset.abs()
    offset = own @ network.c + statement.offset - SURE * size
    return Rows(own @ network.C, direct, offset)


def slim(system: DenseSystem, scope: Scope, rows: Rows, tree: Tensor, p: Tensor) -> Tensor:
    """The multipliers of a tree in float32, if they prove their row as well, else as they are."""
    phase, small = signs(tree, system.n), p.float()
    index = torch.zeros(len(p), dtype=torch.long)
    each = scope.select(index)
    low = torch.where(phase > 0, each.lower.clamp(min=0), each.lower)
    high = torch.where(phase < 0, each.upper.clamp(max=0), each.upper)
    value = dual_bound(system, each.within(low, high), rows.select(index), small.double())
    return small if bool((value > 0).all()) else p
