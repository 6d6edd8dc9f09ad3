"""The page of an experiment on a table: scores, proved order, responses. Nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wellposed.report.numbers import NONE, deviation, mean, number, over_seeds, short
from wellposed.report.page import flat, write_page
from wellposed.report.responses import aligned, responses
from wellposed.report.table_run import TableRun, read_table_run


@final
@dataclass(frozen=True)
class Column:
    """A column of the table of scores.

    Args:
        head: What stands above it.
        key: Of ``metrics.json``.
        share: Whether it is shown as per cent.
        decimals: How many are shown; significant digits instead if absent.
        spread: Whether a deviation over seeds says something.
    """

    head: str
    key: str
    share: bool = False
    decimals: int | None = None
    spread: bool = True


WORDS = {1: "rising", -1: "falling", 0: "constant"}
NORMS = {"1": "1-norm", "max": "max norm", "2": "2-norm"}
ORDER = ("Feature", "Asked", "Proved", "Networks", "Slope at most")
_BINARY = (
    Column("Test accuracy", "test_accuracy", share=True),
    Column("Standard error", "test_accuracy_standard_error", share=True, spread=False),
    Column("Area under ROC", "test_auc", decimals=3),
    Column("Log loss", "test_log_loss", decimals=3),
    Column("Accuracy on folds", "folds_accuracy", share=True),
)
_NUMBER = (
    Column("Test squared error", "test_mse"),
    Column("Standard error", "test_mse_standard_error", spread=False),
    Column("Its root", "test_rmse"),
    Column("Squared error on folds", "folds_mse"),
)
_EPOCHS = Column("Epochs", "epochs", decimals=0, spread=False)
_KEYS = {
    "hidden": "Widths",
    "lipschitz": "λ",
    "knots": "Knots",
    "free": "Free factor",
    "lr": "Rate",
    "batch": "Batch",
    "epochs": "Epochs",
    "cosine": "Cosine",
    "average": "Averaging",
}


def write_table_report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder of an experiment on a table.

    Args:
        folder: What `wellposed run` wrote; seeds that are not finished are named on the page.

    Raises:
        DataError: There is no such folder, or the page cannot be written.
    """
    return write_page(folder, render(read_table_run(folder)))


def render(run: TableRun) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("wellposed.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("tables.html.j2").render(
        title=str(run.summary.get("name") or run.settings.get("name", "a table")),
        table=str(run.settings.get("table", {}).get("name", "")),
        headline=headline(run),
        missing=run.missing,
        scores_head=["Seed", *(c.head for c in columns(run)), "Recipe"],
        scores=scores(run),
        binary=run.binary,
        rows=run.parts[0]["metrics"] if run.parts else {},
        protocol=run.settings.get("protocol", {}),
        order_head=ORDER,
        order=order(run, asked=True),
        free=order(run, asked=False),
        bounds=bounds(run),
        panels=[Markup(p) for p in responses([part["response"] for part in run.parts])],
        aligned=aligned([part["response"] for part in run.parts]),
        medians=medians(run),
        recipes_head=["Recipe", *_KEYS.values(), "Held-out loss", "Chosen by"],
        recipes=recipes(run),
        loss=run.parts[0]["choice"].get("loss", "loss") if run.parts else "loss",
        assumptions=run.parts[0]["proof"].get("assumes", []) if run.parts else [],
        command=str(run.summary.get("command") or ""),
        environment=flat(run.environment),
        data=flat(run.data),
        seeds=list(run.seeds),
        config=run.config,
    )


def headline(run: TableRun) -> str:
    """What came out, in sentences."""
    if not run.parts:
        return "No seed is finished."
    key, name = ("test_accuracy", "accuracy") if run.binary else ("test_mse", "mean squared error")
    found = over_seeds([number(p["metrics"].get(key)) for p in run.parts], as_percent=run.binary)
    rows, count = int(run.parts[0]["metrics"].get("test_rows", 0)), len(run.seeds)
    over = "one seed" if count == 1 else f"{count} seeds"
    text = f"The {name} on {rows:,} test rows is {found} over {over}."
    signed = [row for row in run.parts[0]["proof"]["features"] if row["asked"]]
    if not signed:
        return f"{text} No order was asked for."
    said = " and ".join(
        f"{verb} in {_listed(names)}"
        for sign, verb in ((1, "rises"), (-1, "falls"))
        if (names := [row["name"] for row in signed if row["asked"] == sign])
    )
    every = "the network" if count == 1 else f"each of the {count} networks"
    return f"{text} The output {said}: proved from the weights of {every}."


def _listed(names: Sequence[str]) -> str:
    if len(names) > 6:
        return f"{len(names)} features"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def columns(run: TableRun) -> tuple[Column, ...]:
    """What is shown of a seed."""
    return (*(_BINARY if run.binary else _NUMBER), _EPOCHS)


def scores(run: TableRun) -> list[list[str]]:
    """A row a seed, and the mean ± deviation of several."""
    shown = columns(run)
    out = [
        [
            str(seed),
            *(_spread([part["metrics"].get(c.key)], c) for c in shown),
            str(part["choice"]["recipe"] + 1),
        ]
        for seed, part in run.seeds.items()
    ]
    if len(out) > 1:
        cells = [_spread([p["metrics"].get(c.key) for p in run.parts], c) for c in shown]
        out.append(["mean ± std", *cells, ""])
    return out


def _spread(values: Sequence[Any], column: Column) -> str:
    """Mean and deviation over seeds, as a column shows them."""
    known = [v for value in values if (v := number(value)) is not None]
    if not known:
        return NONE
    scale, unit = (100, " %") if column.share else (1, "")
    decimals = 2 if column.share else column.decimals

    def say(value: float, digits: int) -> str:
        return short(value, digits) if decimals is None else f"{scale * value:.{decimals}f}"

    text = say(mean(known), 3)
    if column.spread and len(known) > 1:
        text += f" ± {say(deviation(known), 2)}"
    return text + unit


def order(run: TableRun, *, asked: bool) -> list[dict[str, Any]]:
    """A row for each feature with a sign, or for each without one."""
    out = list[dict[str, Any]]()
    if not run.parts:
        return out
    for i, row in enumerate(run.parts[0]["proof"]["features"]):
        if bool(row["asked"]) != asked:
            continue
        same = [part["proof"]["features"][i] for part in run.parts]
        held = sum(one["proved"] in (0, one["asked"]) for one in same)
        signs = {one["proved"] for one in same}
        proved = WORDS.get(signs.pop(), "not known") if len(signs) == 1 else "differs by seed"
        out.append(
            {
                "name": row["name"],
                "asked": WORDS[row["asked"]] if asked else "nothing",
                "proved": proved,
                "held": held == len(same),
                "count": f"{held} of {len(same)}",
                "slope": short(max(float(one["slope"]) for one in same), way="up"),
            }
        )
    return out


def bounds(run: TableRun) -> list[tuple[str, str, str]]:
    """Norms, and the largest and the smallest constant over seeds, rounded up."""
    out = list[tuple[str, str, str]]()
    for k, record in enumerate(run.parts[0]["proof"]["lipschitz"] if run.parts else []):
        values = [float(part["proof"]["lipschitz"][k]["value"]) for part in run.parts]
        names = [NORMS.get(str(record[key]), str(record[key])) for key in ("norm_in", "norm_out")]
        label = f"{names[0]} of the features, {names[1]} of the output"
        out.append((label, short(max(values), 4, "up"), short(min(values), 4, "up")))
    return out


def medians(run: TableRun) -> list[tuple[str, str]]:
    """The row through which the curves go."""
    found = run.parts[0]["response"].get("median", {}) if run.parts else {}
    return [(name, short(number(value), 4)) for name, value in found.items()]


def recipes(run: TableRun) -> list[list[str]]:
    """A row for each recipe: its settings, what the folds say, and how many seeds took it."""
    column = Column("Held-out loss", "loss", decimals=4 if run.binary else None)
    out = list[list[str]]()
    for k, recipe in enumerate(run.settings.get("recipes", [])):
        losses = [float(part["choice"]["tried"][k]["loss"]) for part in run.parts]
        took = sum(part["choice"]["recipe"] == k for part in run.parts)
        out.append(
            [
                str(k + 1),
                *(_setting(key, recipe.get(key)) for key in _KEYS),
                _spread(losses, column),
                f"{took} of {len(run.parts)}",
            ]
        )
    return out


def _setting(key: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value))
        case 0 if key == "batch":
            return "all"
        case 0 | 0.0 | None:
            return NONE
        case _:
            return f"{value:.4g}"
