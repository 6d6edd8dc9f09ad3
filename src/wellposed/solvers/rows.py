"""The rows of a batch: what is kept of those that are done, and how the others close ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, isfinite
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.peel import wrapped
from wellposed.solvers.solution import Tally
from wellposed.solvers.status import Status


class Row(NamedTuple):
    """What is kept of a sample when it is done: tensors with one row a sample.

    Args:
        value: Its iterate.
        residual: Norm of the step from there.
        image: The value of the map there; `None` if nobody asked.
    """

    value: Tensor
    residual: Tensor
    image: Tensor | None = None


class Ended(NamedTuple):
    """How all samples ended; `clean` if every one is known to have converged."""

    row: Row
    tally: Tally
    clean: bool = False


class Ledger(ABC):
    """What samples were at the moment they were done.

    Args:
        unit: Makes residuals of the norms of steps.
    """

    def __init__(self, unit: float) -> None:
        self.unit = unit

    @abstractmethod
    def write(self, now: Row, count: int, done: Tensor, slots: Tensor | None) -> None:
        """Keep the rows `done`, which belong to the samples `slots` (the same ones by default)."""

    @abstractmethod
    def close(
        self,
        now: Row,
        count: int,
        live: Tensor | None,
        slots: Tensor | None,
        *,
        over: Tensor | None,
        clean: bool = False,
    ) -> Ended:
        """Keep the rows `live` (all by default) and give everything back.

        `over` marks those of them that only the budget ended; `None` stands for none. `clean` says
        that all of them are known to have converged.
        """


@final
class Pages(Ledger):
    """Every row copied once, to a place of its own."""

    def __init__(self, rows: int, unit: float) -> None:
        super().__init__(unit)
        self.rows = rows
        self.pages: list[tuple[Tensor, list[Tensor], int]] = []

    @override
    def write(self, now: Row, count: int, done: Tensor, slots: Tensor | None) -> None:
        found = done.nonzero().squeeze(1)
        place = found if slots is None else slots.index_select(0, found)
        self.pages.append((place, [t.index_select(0, found) for t in now if t is not None], count))

    @override
    def close(
        self,
        now: Row,
        count: int,
        live: Tensor | None,
        slots: Tensor | None,
        *,
        over: Tensor | None,
        clean: bool = False,
    ) -> Ended:
        if clean and slots is None and not self.pages:
            return Ended(now, Tally.together(now.residual, self.unit, count), clean=True)
        if slots is not None:
            live = torch.ones_like(slots, dtype=torch.bool) if live is None else live
            self.write(now, count, live, slots)
            if over is not None:
                late = over.new_zeros(self.rows)
                over = late.index_fill_(0, slots[over & live], True)
            now = Row(*(None if t is None else t.new_empty(self.rows, *t.shape[1:]) for t in now))  # pyright: ignore
        elif self.pages:
            # whoever made these tensors may still hold them
            now = Row(*(None if t is None else t.clone() for t in now))  # pyright: ignore
        counts = torch.full_like(now.residual, count, dtype=torch.long)
        for place, parts, then in self.pages:
            for whole, part in zip(now, parts, strict=False):
                assert whole is not None
                whole.index_copy_(0, place, part)
            counts.index_fill_(0, place, then)
        residual = now.residual * self.unit
        if over is None and isfinite(float(now.residual.amax())):
            codes = torch.zeros_like(counts, dtype=torch.int8)
            return Ended(now, Tally(residual, counts, codes), clean=True)
        return Ended(now, Tally(residual, counts, _codes(now.residual, over)))


@final
class Sheet(Ledger):
    """For a batch inside a function transform, whose rows cannot be told apart."""

    def __init__(self, unit: float) -> None:
        super().__init__(unit)
        self.row: Row | None = None
        self.counts: Tensor | None = None

    @override
    def write(self, now: Row, count: int, done: Tensor | None, slots: Tensor | None) -> None:
        now = Row(now.value, now.residual)
        counts = torch.full_like(now.residual, count, dtype=torch.long)
        if self.row is not None and self.counts is not None and done is not None:
            column = done.reshape(-1, *[1] * (now.value.ndim - 1))
            now = Row(
                torch.where(column, now.value, self.row.value),
                torch.where(done, now.residual, self.row.residual),
            )
            counts = torch.where(done, counts, self.counts)
        self.row, self.counts = now, counts

    @override
    def close(
        self,
        now: Row,
        count: int,
        live: Tensor | None,
        slots: Tensor | None,
        *,
        over: Tensor | None,
        clean: bool = False,
    ) -> Ended:
        self.write(now, count, live, slots)
        assert self.row is not None
        assert self.counts is not None
        distance = self.row.residual
        tally = Tally(distance * self.unit, self.counts, _codes(distance, over))
        return Ended(self.row, tally)


def _codes(residual: Tensor, over: Tensor | None) -> Tensor:
    code = torch.zeros_like(residual, dtype=torch.int8)
    if over is not None:
        code = code + over.to(torch.int8) * int(Status.BUDGET)
    return code.masked_fill(~(residual < inf), Status.NONFINITE)


def cut_rows(tree: Any, rows: Tensor) -> Any:
    """The rows of every tensor in a tree of tuples."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    if isinstance(tree, tuple):
        cut = [cut_rows(branch, rows) for branch in tree]
        return type(tree)(*cut) if hasattr(tree, "_fields") else tuple(cut)
    return tree


def put_rows(whole: Tensor, rows: Tensor, source: Tensor) -> Tensor:
    """`whole` with the rows marked by the mask `rows` taken from `source`; both (samples, n)."""
    if wrapped(whole) or wrapped(rows) or wrapped(source):
        return torch.where(rows[:, None], source, whole)
    # `where` with a column takes two to four times as long as this copy
    found = rows.nonzero().squeeze(1)
    return whole.index_copy(0, found, source.index_select(0, found)) if len(found) else whole
