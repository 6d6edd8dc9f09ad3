"""The rows of a batch: what is kept of those that are done, and how the others close ranks."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from wellposed.solvers.status import Status


@dataclass(eq=False)
class Record:
    """Value, residual and count of some samples; the count is negative where the budget ended."""

    value: Tensor
    residual: Tensor
    count: Tensor

    @staticmethod
    def of(z: Tensor, residual: Tensor, count: int, cut_off: Tensor | None) -> Record:
        """All rows as they are now; `cut_off` marks those that only the budget ends."""
        counts = torch.full_like(residual, count, dtype=torch.long)
        return Record(
            z, residual, counts if cut_off is None else torch.where(cut_off, -count, counts)
        )

    def over(self, older: Record | None, rows: Tensor | None) -> Record:
        """This record in the given rows, the older one elsewhere."""
        if older is None or rows is None:
            return self
        column = rows.reshape(-1, *[1] * (self.value.ndim - 1))
        return Record(
            torch.where(column, self.value, older.value),
            torch.where(rows, self.residual, older.residual),
            torch.where(rows, self.count, older.count),
        )

    @staticmethod
    def blank(value: Tensor, residual: Tensor, rows: int) -> Record:
        """Room for `rows` samples like those given."""
        return Record(
            value.new_zeros(rows, *value.shape[1:]),
            residual.new_zeros(rows),
            torch.zeros_like(residual[:0], dtype=torch.long).new_zeros(rows),
        )

    def store(self, part: Record, slots: Tensor | None, rows: Tensor | None) -> None:
        """Write `rows` of `part` (all by default) to their places (the same by default)."""
        if rows is not None:
            found = rows.nonzero().flatten()
            part = Record(*(t.index_select(0, found) for t in part.tensors))
            slots = found if slots is None else slots.index_select(0, found)
        for mine, theirs in zip(self.tensors, part.tensors, strict=True):
            if slots is None:
                mine.copy_(theirs)
            else:
                mine.index_copy_(0, slots, theirs)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parts, in the order of the constructor."""
        return self.value, self.residual, self.count

    def outcome(self) -> tuple[Tensor, Tensor]:
        """Evaluations and status codes."""
        code = (self.count < 0).to(torch.int8)  # 1 is `Status.BUDGET`, 0 `Status.CONVERGED`
        finite = self.residual < inf
        return self.count.abs(), code.masked_fill(~finite, Status.NONFINITE)


def cut_rows(tree: Any, rows: Tensor) -> Any:
    """The rows of every tensor in a tree of tuples."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    if isinstance(tree, tuple):
        cut = [cut_rows(branch, rows) for branch in tree]
        return type(tree)(*cut) if hasattr(tree, "_fields") else tuple(cut)
    return tree
