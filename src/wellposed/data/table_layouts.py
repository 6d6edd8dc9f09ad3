"""How the files of each table make up its parts."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from wellposed.data.tables import Table, check_order, complete, numbers, one_hot, parse
from wellposed.errors import DataError
from wellposed.files import npz

if TYPE_CHECKING:
    from wellposed.data.layouts import Content

Open: TypeAlias = "Callable[[str], Content]"


@final
@dataclass(frozen=True)
class Raw:
    """What a layout reads: both parts, or one table to be split by a seed."""

    train: Table
    test: Table | None = None
    dropped: int = 0


_HEART = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak",
          "slope", "ca", "thal")  # fmt: skip
_CARS = ("cylinders", "displacement", "horsepower", "weight", "acceleration", "model year",
         "origin")  # fmt: skip
COUNTS = ("priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count")
_RACES = ("African-American", "Asian", "Caucasian", "Hispanic", "Native American", "Other")
_GRADES = "ABCDEFG"
_BLOG = tuple(f"f{k}" for k in range(280))
_TRACKS = ("log_minipchi2", "log_fdchi2", "log_sumpt", "log_vchi2")


def _plain(content: Content, features: tuple[str, ...], target: str) -> Raw:
    columns = parse(_text(content), content.name)
    check_order(tuple(columns), features, content.name)
    used, dropped = complete({name: columns[name] for name in (*features, target)})
    x = [numbers(used[name], name, content.name) for name in features]
    y = numbers(used[target], target, content.name)
    return Raw(Table(features, torch.stack(x, 1), y), None, dropped)


def heart(open_file: Open) -> Raw:
    """Two files, in the roles `train` and `test`."""
    parts = [_plain(open_file(role), _HEART, "target") for role in ("train", "test")]
    return Raw(parts[0].train, parts[1].train, sum(part.dropped for part in parts))


def auto_mpg(open_file: Open) -> Raw:
    """One file, in the role `table`; six cars without horsepower are dropped."""
    return _plain(open_file("table"), _CARS, "mpg")


def compas(open_file: Open) -> Raw:
    """One packed file, in the role `table`, filtered and split as in the published analyses."""
    content = open_file("table")
    columns = parse(gzip.decompress(content.data).decode(), content.name)
    days = columns["days_b_screening_arrest"]
    # the filter of the published analysis: 6,172 rows
    kept = [
        k
        for k, day in enumerate(days)
        if day and abs(float(day)) <= 30 and columns["is_recid"][k] != "-1"
        and columns["c_charge_degree"][k] != "O" and columns["score_text"][k] != "N/A"
    ]  # fmt: skip
    used = {name: [cells[k] for k in kept] for name, cells in columns.items()}
    counts = [numbers(used[name], name, content.name) for name in (*COUNTS, "age")]
    races = one_hot(used["race"], "race", _RACES, content.name)
    sexes = one_hot(used["sex"], "sex", ("Female", "Male"), content.name)
    x = torch.cat([torch.stack(counts, 1), races[1], sexes[1]], 1)
    target = numbers(used["two_year_recid"], "two_year_recid", content.name)
    table = Table((*COUNTS, "age", *races[0], *sexes[0]), x, target)
    # the published split comes from the legacy generator
    order = np.random.RandomState(78712).permutation(len(table))
    cut = int(0.8 * len(table))
    train, test = (torch.from_numpy(part.copy()) for part in (order[:cut], order[cut:]))
    return Raw(table.take(train), table.take(test), 0)


def blog(open_file: Open) -> Raw:
    """One pack, in the role `pack`; 48 of the 60 days train."""
    pack = npz.arrays(*open_file("pack"), required=("X", "y", "day"))
    day = torch.from_numpy(pack["day"].astype(np.int64))
    table = Table(_BLOG, _wide(pack["X"]), _wide(pack["y"]), day)
    return Raw(table.take(day < 48), table.take(day >= 48))


def lending(open_file: Open) -> Raw:
    """One packed file, in the role `table`; loans without interest or years are dropped."""
    content = open_file("table")
    columns = parse(gzip.decompress(content.data).decode(), content.name)
    used, dropped = complete(columns)
    used["grade"] = [str(_GRADES.index(cell)) for cell in used["grade"]]
    owners = one_hot(
        used["ownership"], "ownership", ("MORTGAGE", "OTHER", "OWN", "RENT"), content.name
    )
    names = ("amount", "interest", "grade", "years", "income", "age")
    x = torch.stack([numbers(used[name], name, content.name) for name in names], 1)
    table = Table(
        (*names, *owners[0]),
        torch.cat([x, owners[1]], 1),
        numbers(used["default"], "default", content.name),
    )
    return Raw(table, None, dropped)


def trigger(open_file: Open) -> Raw:
    """One pack, in the role `pack`; both kinds of heavy flavour count as signal."""
    content = open_file("pack")
    pack = npz.arrays(*content, required=("X", "y", "features"))
    check_order([str(name) for name in pack["features"]], _TRACKS, content.name)
    heavy = (_wide(pack["y"]) > 0).double()
    return Raw(Table(_TRACKS, _wide(pack["X"]), heavy))


def _text(content: Content) -> str:
    try:
        return content.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"`{content.name}` is no text: {error}.") from error


def _wide(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))
