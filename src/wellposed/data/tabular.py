"""Tables for monotone networks: heart, Auto MPG, COMPAS, blog feedback, lending, toy trigger.

None of the real ones is shipped; each is read from a folder of the user and checked against its
digest.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, final

from wellposed.data import table_layouts as layouts
from wellposed.data.digests import DataFile, read_verified
from wellposed.data.folders import VARIABLE, locate, search_folders
from wellposed.data.layouts import Content
from wellposed.data.table_layouts import Open, Raw
from wellposed.data.tables import Table, feature_signs
from wellposed.errors import ConfigError, DataError

if TYPE_CHECKING:
    from os import PathLike

Task = Literal["binary", "regression"]


@final
@dataclass(frozen=True, eq=False)
class TabularSet:
    """A table as it was read, in two parts.

    Args:
        name: Name in the registry.
        task: Whether the target is 0 or 1, or a number.
        train: Training part; cut validation from it with `Table.split`.
        test: Test part, never to be used for a choice.
        signs: +1 where the target is taken to rise with a feature, -1 to fall, 0 elsewhere.
        dropped: Rows left out since a value is missing in them.
        digests: SHA-256 of each file that was read, by file name.
    """

    name: str
    task: Task
    train: Table
    test: Table
    signs: tuple[int, ...]
    dropped: int
    digests: Mapping[str, str]

    def small_targets(self, part: float) -> TabularSet:
        """Rows whose target is at most the quantile `part` of training targets, divided by it.

        Raises:
            ConfigError: `part` is not in (0, 1], or the target has no positive quantile.
        """
        if not 0 < part <= 1:
            raise ConfigError(f"The quantile of targets must lie in (0, 1], got {part}.")
        top = float(self.train.y.quantile(part))
        if self.task != "regression" or not top > 0:
            raise ConfigError(
                f"The table `{self.name}` has no positive quantile {part} of targets: "
                f"task {self.task}, quantile {top:.4g}.",
                hint="leave `target_quantile` out.",
            )
        parts = [half.take(half.y <= top) for half in (self.train, self.test)]
        train, test = (replace(half, y=half.y / top) for half in parts)
        return replace(self, train=train, test=test)


@final
@dataclass(frozen=True)
class TableDescription:
    """What is known of a table before it is read.

    Args:
        subfolder: Folder of the set inside a data folder.
        files: File of each role of the layout.
        layout: How the files make up the set.
        task: What the target is.
        rising: Features in which the target is taken to rise.
        falling: Features in which it is taken to fall.
        origin: Where the set comes from, and under which terms.
    """

    subfolder: str
    files: Mapping[str, DataFile]
    layout: Callable[[Open], Raw]
    task: Task
    rising: tuple[str, ...]
    falling: tuple[str, ...]
    origin: str


def load_table(
    name: str, folder: str | PathLike[str] | None = None, *, seed: int = 0
) -> TabularSet:
    """Table with every file checked against its digest; nothing is downloaded.

    Heart and COMPAS come in the parts of the published experiments, blog feedback is split by day
    (the first 48 of 60 days train), a fifth of the others is drawn for the test.

    Args:
        name: `heart`, `auto_mpg`, `compas`, `blog_feedback` (the 60 test days only), `lending` (a
            sample, not the loans of the papers), `toy_trigger` (synthetic).
        folder: Folder to search first, see `wellposed.data.search_folders`.
        seed: Of the split, where the set has none of its own.

    Raises:
        ConfigError: No table has this name.
        DataError: A file is absent, damaged or not the one expected.
    """
    description = _describe(name)
    folders = search_folders(folder)
    digests: dict[str, str] = {}

    def open_file(role: str) -> Content:
        file = description.files[role]
        path = locate(file.names, (description.subfolder,), folders, given=folder is not None)
        if path is None:
            searched = "".join(f"\n  {place}" for place in folders)
            wanted = f"{description.subfolder}/{file.names[0]}"
            raise DataError(
                f"The table `{name}` needs the file `{wanted}`, which is in none of these folders:"
                f"{searched}",
                hint=f"pass a `folder` that holds it, or set ${VARIABLE}; nothing is downloaded. "
                f"{description.origin}",
            )
        data, digests[path.name] = read_verified(path, file)
        return Content(data, str(path))

    raw = description.layout(open_file)
    train, test = (raw.train, raw.test) if raw.test else raw.train.split(0.2, seed)
    signs = feature_signs(train.features, rising=description.rising, falling=description.falling)
    return TabularSet(
        name, description.task, train, test, signs, raw.dropped, MappingProxyType(digests)
    )


def has_table(name: str, folder: str | PathLike[str] | None = None) -> bool:
    """Whether every file of a table is found; what is in the files is not looked at.

    Args:
        name: Name in the registry.
        folder: Folder to search first.
    """
    found, folders, given = _describe(name), search_folders(folder), folder is not None
    return all(
        locate(file.names, (found.subfolder,), folders, given=given)
        for file in found.files.values()
    )


def _describe(name: str) -> TableDescription:
    if name not in TABLES:
        close = difflib.get_close_matches(name, TABLES, n=1)
        raise ConfigError(
            f"There is no table `{name}`; expected one of {', '.join(f'`{t}`' for t in TABLES)}.",
            hint=f"did you mean `{close[0]}`?" if close else "",
        )
    return TABLES[name]


def _file(name: str, sha256: str) -> DataFile:
    return DataFile((name,), sha256)


TABLES: Mapping[str, TableDescription] = {
    "heart": TableDescription(
        "tabular/heart",
        {
            "train": _file(
                "heart_train.csv",
                "ee7d8a19680186f9f676490effca221cb9794eba298e00e922a79f60a1474597",
            ),
            "test": _file(
                "heart_test.csv",
                "0454aeb41092b0b54d8e40b254700f16c79857ad48376bf2bf9be608944e6d1b",
            ),
        },
        layouts.heart,
        "binary",
        ("trestbps", "chol"),
        (),
        "Heart disease, Cleveland: Janosi et al., UCI, CC BY 4.0; parts of the monotone papers.",
    ),
    "auto_mpg": TableDescription(
        "tabular/auto_mpg",
        {
            "table": _file(
                "auto-mpg.csv", "09a282cf12c7ab4ffb517b496b0dd1a8bac6e95977178cc7832c32044c32c3f6"
            )
        },
        layouts.auto_mpg,
        "regression",
        (),
        ("displacement", "horsepower", "weight"),
        "Auto MPG: Quinlan, UCI, CC BY 4.0.",
    ),
    "compas": TableDescription(
        "tabular/compas",
        {
            "table": _file(
                "compas_two_years_min.csv.gz",
                "3d17894f8718f7fd7f36ec6679cd2999a6db6b8dac818209ef452e50492558ce",
            )
        },
        layouts.compas,
        "binary",
        layouts.COUNTS,
        (),
        "COMPAS: ProPublica, from public records; race and sex are sensitive attributes.",
    ),
    "blog_feedback": TableDescription(
        "tabular/blog_feedback",
        {
            "pack": _file(
                "blogfeedback_test60days.npz",
                "9748eda3e49abeb02ce6505f42325989ce4d692842dfff710563879cb5e48158",
            )
        },
        layouts.blog,
        "regression",
        tuple(f"f{k}" for k in (50, 51, 52, 53, 55, 56, 57, 58)),
        (),
        "Blog feedback: Buza, UCI, CC BY 4.0; the 60 days of its test part only.",
    ),
    "lending": TableDescription(
        "tabular/lending",
        {
            "table": _file(
                "loan_data.csv.gz",
                "796d470d6ce61dd5dbdbe05165bc9557a113b4f30737cd724d133f72e08c29b0",
            )
        },
        layouts.lending,
        "binary",
        ("grade",),
        ("years", "income"),
        "A sample of LendingClub loans (MIT); not the file of the papers.",
    ),
    "toy_trigger": TableDescription(
        "synthetic",
        {
            "pack": _file(
                "toy_trigger.npz",
                "ec1c9e2f00336fd1fc3689fec47050e01393abb18c3cd562a990a397807bf655",
            )
        },
        layouts.trigger,
        "binary",
        ("log_minipchi2", "log_fdchi2", "log_sumpt"),
        (),
        "Synthetic two-track vertices, made for this project; no data of any experiment.",
    ),
}
