"""What is claimed of outputs: in every clause some row is positive, for every input of a set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.errors import ConfigError, NotCertifiableError, ShapeError


@final
@dataclass(frozen=True, eq=False)
class Statement:
    """``for every clause k: max over the rows i of clause k of (rows_i . y + offset_i) > 0``.

    A class label is the statement with one clause ``y_label - y_j > 0`` for every other class. A
    set of unsafe outputs, written as a union of polyhedra ``{ y : rows_i . y + offset_i <= 0 }``,
    is avoided exactly if in every polyhedron some row is positive: one clause a polyhedron.

    Args:
        rows: Shape (R, q), float64.
        offset: Shape (R,), float64.
        clause: The clause of each row, shape (R,): 0, 1, ... without gaps, in ascending order.
        label: The class that it speaks about, if it was made from one.

    Raises:
        ShapeError: The shapes do not fit, or the clauses are not numbered as described.
        NotCertifiableError: A row is not finite.
    """

    rows: Tensor
    offset: Tensor
    clause: Tensor
    label: int | None = None

    def __post_init__(self) -> None:
        rows, offset, clause = self.rows, self.offset, self.clause
        if rows.ndim != 2 or offset.shape != rows.shape[:1] or clause.shape != offset.shape:
            raise ShapeError(
                "A statement needs rows (R, q), offset (R,) and clause (R,); got "
                f"{tuple(rows.shape)}, {tuple(offset.shape)} and {tuple(clause.shape)}."
            )
        if not bool(torch.isfinite(rows).all() & torch.isfinite(offset).all()):
            raise NotCertifiableError("A row of the statement has NaN or infinite entries.")
        numbers = clause.unique()
        in_order = bool((clause.diff() >= 0).all())
        if not len(rows) or not in_order or numbers.tolist() != list(range(len(numbers))):
            raise ShapeError(
                "`clause` must number the clauses 0, 1, ... in ascending order without gaps, got "
                f"{clause.tolist()[:20]}."
            )

    @classmethod
    def of_label(cls, label: int, classes: int) -> Statement:
        """``y_label - y_j > 0`` for every other class ``j``, in ascending order of ``j``.

        Raises:
            ConfigError: There is no such class, or only one.
        """
        if not 0 <= label < classes or classes < 2:
            raise ConfigError(
                f"`label` must be a class in 0..{classes - 1} of at least two classes, got {label}."
            )
        others = [j for j in range(classes) if j != label]
        rows = torch.zeros(len(others), classes, dtype=torch.float64)
        rows[:, label] = 1
        rows[torch.arange(len(others)), others] = -1
        zero = torch.zeros(len(others), dtype=torch.float64)
        return cls(rows, zero, torch.arange(len(others)), label)

    @classmethod
    def recognised(cls, rows: Tensor, offset: Tensor, clause: Tensor) -> Statement:
        """The statement of these rows, with its label if it is the one that `of_label` makes."""
        found = cls(rows, offset, clause)
        label = int(rows[0].argmax()) if rows.shape[1] > 1 else 0
        own = cls.of_label(label, rows.shape[1]) if rows.shape[1] > 1 else found
        fields = zip((rows, offset, clause), (own.rows, own.offset, own.clause), strict=True)
        return own if all(torch.equal(a, b) for a, b in fields) else found

    @property
    def clauses(self) -> int:
        """How many."""
        return int(self.clause[-1]) + 1

    def margin(self, y: Tensor) -> Tensor:
        """Smallest over clauses of the largest row, for outputs (B, q): positive if it holds."""
        values = y @ self.rows.mT + self.offset
        parts = [values[:, self.clause == k].amax(1) for k in range(self.clauses)]
        return torch.stack(parts, 1).amin(1)
