"""Tables of numbers with named features: read strictly, in the order that was declared."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from wellposed.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from os import PathLike

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Rows of features and one target.

    Args:
        features: Name of each column of `x`.
        x: Float64 of shape (n, features), finite.
        y: Float64 of shape (n,), finite.
        group: What must not be torn apart by a split, int64 of shape (n,).

    Raises:
        ShapeError: Shapes or dtypes differ from these.
        DataError: A value is missing, that is NaN or infinite.
    """

    features: tuple[str, ...]
    x: Tensor
    y: Tensor
    group: Tensor | None = None

    def __post_init__(self) -> None:
        n, d = len(self.y), len(self.features)
        wide = torch.float64
        if self.x.shape != (n, d) or self.y.ndim != 1 or {self.x.dtype, self.y.dtype} != {wide}:
            raise ShapeError(
                f"Got `x` of shape {tuple(self.x.shape)} and {self.x.dtype}, `y` of shape "
                f"{tuple(self.y.shape)} and {self.y.dtype}; expected float64 of shapes (n, {d}) "
                "for as many features, and (n,)."
            )
        if self.group is not None and self.group.shape != (n,):
            raise ShapeError(f"`group` has shape {tuple(self.group.shape)}, expected ({n},).")
        for name, column in (*zip(self.features, self.x.mT, strict=True), ("the target", self.y)):
            if not bool(torch.isfinite(column).all()):
                rows = (~torch.isfinite(column)).nonzero().flatten()
                raise DataError(
                    f"`{name}` is missing in {len(rows)} of {n} rows, first in row {int(rows[0])}.",
                    hint="drop these rows or fill them in: a comparison with NaN holds nowhere.",
                )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Table({len(self)} rows, {len(self.features)} features)"

    def take(self, rows: Tensor) -> Table:
        """Some rows, in the order given.

        Args:
            rows: Positions, int64, or one truth value a row.
        """
        group = None if self.group is None else self.group[rows]
        return Table(self.features, self.x[rows], self.y[rows], group)

    def split(self, part: float, seed: int) -> tuple[Table, Table]:
        """The rows without a random part, and that part.

        Args:
            part: Share of the rows in the second table, in (0, 1).
            seed: Of the permutation.

        Raises:
            ConfigError: One of the tables would be empty.
        """
        count = round(part * len(self)) if 0 < part < 1 else 0
        if not 0 < count < len(self):
            raise ConfigError(
                f"`part` must leave rows in both tables of {len(self)} rows, got {part}."
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[count:]), self.take(order[:count])


def feature_signs(
    features: Sequence[str], *, rising: Sequence[str] = (), falling: Sequence[str] = ()
) -> tuple[int, ...]:
    """Signs of a monotone network for features by name: +1, -1, or 0 for all others.

    Args:
        features: Name of each input, in order.
        rising: Features in which the output shall rise.
        falling: Features in which it shall fall.

    Raises:
        ConfigError: A name is no feature, or is given twice.
    """
    for name in (*rising, *falling):
        if name not in features:
            raise ConfigError(
                f"There is no feature `{name}`; expected some of {', '.join(features)}."
            )
    if both := set(rising) & set(falling):
        raise ConfigError(f"`{min(both)}` cannot both rise and fall.")
    return tuple((name in rising) - (name in falling) for name in features)


def read_table(
    path: str | PathLike[str],
    features: Sequence[str],
    target: str,
    *,
    drop_missing: bool = False,
) -> Table:
    """Table of a comma-separated file with a header.

    Signs and weights of a network belong to positions, so the columns of the features must stand
    in the file in the order in which they are declared; others may stand between them.

    Args:
        path: The file.
        features: Columns of numbers, in order.
        target: Column of numbers.
        drop_missing: Leave out rows with a missing value instead of refusing them.

    Raises:
        DataError: The file cannot be read, columns are absent or out of order, or a value is
            missing or no number.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123 - also for strings
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`{path}` cannot be read as text: {error}.") from error
    columns = parse(text, str(path))
    check_order(tuple(columns), features, str(path))
    if target not in columns:
        raise DataError(f"`{path}` has no column `{target}` for the target.")
    used = {name: columns[name] for name in (*features, target)}
    if drop_missing:
        used, _ = complete(used)
    x = [numbers(used[name], name, str(path)) for name in features]
    return Table(tuple(features), torch.stack(x, 1), numbers(used[target], target, str(path)))


def parse(text: str, source: str) -> dict[str, list[str]]:
    """Columns of comma-separated text with a header, by name.

    Args:
        text: Content of the file.
        source: Its name, for messages.

    Raises:
        DataError: It is empty, two columns have one name, or a line has another number of cells.
    """
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise DataError(f"`{source}` is empty, expected a header and rows.")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise DataError(f"`{source}` has two columns of one name among {', '.join(header)}.")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"Line {line} of `{source}` has {len(row)} cells, expected {len(header)}."
            )
    return {name: [row[k].strip() for row in rows[1:]] for k, name in enumerate(header)}


def check_order(found: Sequence[str], declared: Sequence[str], source: str) -> None:
    """That the declared features are there, in this order.

    Raises:
        DataError: They are not.
    """
    if absent := [name for name in declared if name not in found]:
        raise DataError(
            f"`{source}` has no column `{absent[0]}`; it has {', '.join(found) or 'none'}."
        )
    places = [list(found).index(name) for name in declared]
    for k in range(1, len(places)):
        if places[k] <= places[k - 1]:
            raise DataError(
                f"In `{source}` the feature `{declared[k]}` stands before `{declared[k - 1]}`, "
                "which is out of the declared order.",
                hint="weights and signs belong to positions: declare the features in the order of "
                f"the file, {', '.join(name for name in found if name in declared)}.",
            )


def complete(columns: dict[str, list[str]]) -> tuple[dict[str, list[str]], int]:
    """The rows without a missing value, and how many others there were."""
    rows = list(zip(*columns.values(), strict=True))
    kept = [row for row in rows if not any(cell in MISSING for cell in row)]
    cells = list(zip(*kept, strict=True)) if kept else [() for _ in columns]
    return {n: list(c) for n, c in zip(columns, cells, strict=True)}, len(rows) - len(kept)


def numbers(cells: Sequence[str], name: str, source: str) -> Tensor:
    """A column of numbers, float64.

    Raises:
        DataError: A cell is missing or no number.
    """
    out = list[float]()
    for row, cell in enumerate(cells):
        if cell in MISSING:
            raise DataError(
                f"`{name}` is missing in row {row} of `{source}` ({cell!r}).",
                hint="drop such rows (`drop_missing=True`) or fill them in.",
            )
        try:
            out.append(float(cell))
        except ValueError as error:
            raise DataError(
                f"`{name}` is no number in row {row} of `{source}`: {cell!r}.",
                hint="turn categories into numbers first, one column a category.",
            ) from error
    return torch.tensor(out, dtype=torch.float64)


def one_hot(
    cells: Sequence[str], name: str, categories: Sequence[str], source: str
) -> tuple[tuple[str, ...], Tensor]:
    """One column of 0 and 1 a category, and their names ``name=category``.

    Raises:
        DataError: A cell is none of the categories.
    """
    for row, cell in enumerate(cells):
        if cell not in categories:
            raise DataError(
                f"`{name}` is {cell!r} in row {row} of `{source}`, expected one of "
                f"{', '.join(categories)}."
            )
    hits = [[float(cell == category) for category in categories] for cell in cells]
    return tuple(f"{name}={c}" for c in categories), torch.tensor(hits, dtype=torch.float64)
