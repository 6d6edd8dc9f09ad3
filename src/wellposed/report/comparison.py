"""The page that sets several runs beside each other; it reads the results file and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from wellposed.report.numbers import NONE, Way, number, percent, short
from wellposed.report.svg import COLOURS, INK, MUTED, log_axis, panel, plain, power

COST = ("Network", "Seeds", "Test accuracy", "Parameters", "Evaluations, forward",
        "Evaluations, adjoint", "CPU s an epoch")  # fmt: skip
BOUNDS = ("Network", "Max norm, certified", "attacked", "2-norm, certified", "attacked",
          "1-norm, certified", "attacked")  # fmt: skip
NAMES = {"max": "max norm", "2": "2-norm", "1": "1-norm"}
_WIDE = 3.7


def render(content: dict[str, Any]) -> str:
    """The page as text.

    Args:
        content: What `wellposed.experiments.compare.compare` made.
    """
    environment = Environment(
        loader=PackageLoader("wellposed.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rows = content["rows"]
    return environment.get_template("comparison.html.j2").render(
        title=content["name"],
        headline=headline(content),
        warnings=content["warnings"],
        budget=content.get("budget", ""),
        tables=[
            _table("Accuracy and cost", COST, [_cost(row) for row in rows]),
            _table("Lipschitz bounds", BOUNDS, [_bounds(row) for row in rows]),
            *[_robust(content, norm) for norm in ("max", "2") if content["radii"][norm]],
        ],
        panels=[Markup(p) for p in panels(content)],
        missing=reasons(rows),
        data=content["data"],
        seeds=content["seeds"],
        command=content["command"],
        environment=content["environment"],
    )


def headline(content: dict[str, Any]) -> str:
    """What stands out, in a sentence."""
    rows = content["rows"]
    parts = [f"{len(rows)} networks on {content['data']['name']}."]
    best = _best(rows, "test_accuracy")
    if best:
        parts.append(f"The most accurate is {best[0]} with {percent(best[1], 2)}.")
    for norm, radii in content["radii"].items():
        for radius in radii[:1]:
            found = _best(rows, f"certified_{norm}@{radius:g}")
            if found:
                key = f"certified_{norm}@{radius:g}"
                how = next(row["methods"].get(key, "") for row in rows if row["label"] == found[0])
                parts.append(
                    f"Within radius {plain(radius)} of the {NAMES[norm]}, {found[0]} keeps the "
                    f"largest certified accuracy, {percent(found[1])} ({how})."
                )
    return " ".join(parts)


def middle(row: dict[str, Any], key: str) -> float | None:
    """The value of a key, or its mean over seeds."""
    value = row["values"].get(key)
    return number(value["mean"] if isinstance(value, dict) else value)


def shown(row: dict[str, Any], key: str, *, share: bool = False, way: Way = "near") -> str:
    """A figure with its deviation over seeds; a dash where it is missing."""
    value, at = row["values"].get(key), middle(row, key)
    if at is None:
        return NONE
    text = percent(at, 2) if share else short(at, way=way)
    if isinstance(value, dict) and value["n"] > 1 and value["std"] > 0:
        spread = f"{100 * value['std']:.2f}" if share else short(number(value["std"]), 2)
        text = f"{text.removesuffix(' %')} ± {spread}{' %' if share else ''}"
    return text


def reasons(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Network, figures and why they are missing; figures with one reason stand together."""
    out: list[tuple[str, str, str]] = []
    for row in rows:
        whys: dict[str, list[str]] = {}
        for key, why in row["missing"].items():
            whys.setdefault(why, []).append(readable(key))
        out += [(row["label"], ", ".join(keys), why) for why, keys in whys.items()]
    return out


def readable(key: str) -> str:
    """A key in words, such as ``certified, max norm, 0.01``."""
    head, _, radius = key.partition("@")
    words = head.split("_")
    if words[0] in ("certified", "attacked") and radius:
        return f"{words[0]}, {NAMES[words[1]]}, {radius}"
    if words[0] == "lipschitz":
        return f"Lipschitz, {NAMES[words[1]]}{', attacked' if len(words) > 2 else ''}"
    return {"evaluations": "evaluations, forward", "adjoint_evaluations": "evaluations, adjoint",
            "epoch_cpu_seconds": "CPU s an epoch"}.get(head, " ".join(words))  # fmt: skip


def _best(rows: Sequence[dict[str, Any]], key: str) -> tuple[str, float] | None:
    found = [(row["label"], v) for row in rows if (v := middle(row, key)) is not None]
    return max(found, key=lambda pair: pair[1], default=None)


def _cost(row: dict[str, Any]) -> list[str]:
    return [
        row["label"],
        str(len(row["seeds"])),
        shown(row, "test_accuracy", share=True),
        shown(row, "parameters"),
        shown(row, "evaluations"),
        shown(row, "adjoint_evaluations"),
        shown(row, "epoch_cpu_seconds"),
    ]


def _bounds(row: dict[str, Any]) -> list[str]:
    out = [row["label"]]
    for norm in ("max", "2", "1"):
        out.append(shown(row, f"lipschitz_{norm}", way="up"))
        out.append(shown(row, f"lipschitz_{norm}_attacked", way="down"))
    return out


def _robust(content: dict[str, Any], norm: str) -> dict[str, Any]:
    """Certified and attacked accuracies; letters stand for how, which the note spells out."""
    head, rows = ["Network"], [[row["label"]] for row in content["rows"]]
    letters: dict[str, str] = {}
    for radius in content["radii"][norm]:
        at = f"{norm}@{radius:g}"
        head += [f"{plain(radius)}: certified", "attacked"]
        for cells, row in zip(rows, content["rows"], strict=True):
            proved, how = shown(row, f"certified_{at}", share=True), row["methods"]
            method = how.get(f"certified_{at}", NONE)
            if NONE not in {proved, method}:
                proved = f"{proved} {letters.setdefault(method, _letter(len(letters)))}"
            cells += [proved, shown(row, f"attacked_{at}", share=True)]
    note = "; ".join(f"{letter}: {method}" for method, letter in letters.items())
    note = f"Certified by {note}." if note else ""
    if content.get("budget", ""):
        note = f"{note} All networks: {content['budget']}.".strip()
    return _table(f"Robust accuracy, {NAMES[norm]}", head, rows, note)


def _table(name: str, head: Sequence[str], rows: list[list[str]], note: str = "") -> dict[str, Any]:
    return {"name": name, "head": head, "rows": rows, "note": note}


def _letter(k: int) -> str:
    return chr(ord("a") + k % 26) + (str(k // 26) if k >= 26 else "")


def panels(content: dict[str, Any]) -> list[str]:
    """Clean, attacked and certified accuracy; Lipschitz bounds; cost."""
    rows = content["rows"]
    made = [_accuracies(rows, norm, r) for norm, radii in content["radii"].items() for r in radii]
    for norm in ("max", "2"):
        if any(middle(row, f"lipschitz_{norm}_attacked") for row in rows):
            made.append(_stretches(rows, norm))
    return [*made, _seconds(rows)]


def _labelled(
    name: str, title: str, words: str, rows: Sequence[dict[str, Any]], draw: Callable[[Axes], None]
) -> str:
    """A panel with one line a network, the first on top."""
    labels = [row["label"] for row in rows]
    left = min(1.9, 0.2 + 0.062 * max(len(label) for label in labels))

    def whole(axes: Axes) -> None:
        draw(axes)
        # the title begins where the names do: beside them there is no room
        axes.set_title(title, pad=8, x=-left / (_WIDE - left - 0.1))
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0, labelcolor=INK)

    return panel(name, title, words, whole, size=(_WIDE, 0.95 + 0.22 * len(rows)), left=left)


def _accuracies(rows: Sequence[dict[str, Any]], norm: str, radius: float) -> str:
    at = f"{norm}@{radius:g}"
    keys = (f"certified_{at}", f"attacked_{at}", "test_accuracy")
    found = [[middle(row, key) for key in keys] for row in rows]

    def draw(axes: Axes) -> None:
        for place, (proved, attacked, clean) in enumerate(found):
            known = [v for v in (proved, attacked, clean) if v is not None]
            axes.plot([min(known, default=0), max(known, default=0)], [place] * 2, color=MUTED,
                      linewidth=1)  # fmt: skip
            for value, marker, colour in ((proved, "s", COLOURS[2]), (attacked, "X", COLOURS[1]),
                                          (clean, "o", COLOURS[0])):  # fmt: skip
                if value is not None:
                    axes.plot([value], [place], marker=marker, color=colour, markersize=5)
        low = axes.get_xlim()[0]
        axes.set_xlim(low, 1 + 0.03 * (1 - low))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    words = "; ".join(
        f"{row['label']}: certified {percent(p)}, attacked {percent(a)}, clean {percent(c)}"
        for row, (p, a, c) in zip(rows, found, strict=True)
    )
    title = f"Accuracy within {plain(radius)}, {NAMES[norm]}"
    return _labelled(f"accuracy-{norm}-{radius!r}".replace(".", "-"), title, words, rows, draw)


def _stretches(rows: Sequence[dict[str, Any]], norm: str) -> str:
    found = [
        (middle(row, f"lipschitz_{norm}_attacked"), middle(row, f"lipschitz_{norm}"))
        for row in rows
    ]

    def draw(axes: Axes) -> None:
        for place, (low, high) in enumerate(found):
            if low and high and isfinite(high):
                axes.plot([low, high], [place] * 2, color=MUTED, linewidth=1)
            for value, marker, colour in ((high, "s", COLOURS[2]), (low, "X", COLOURS[1])):
                if value and isfinite(value):
                    axes.plot([value], [place], marker=marker, color=colour, markersize=5)
        axes.set_xscale("log")
        log_axis(axes.xaxis, lambda v, _: plain(v) if 1e-3 <= v < 1e5 else power(v))

    words = "; ".join(
        f"{row['label']}: certified {short(high, way='up')}, attacked {short(low, way='down')}"
        for row, (low, high) in zip(rows, found, strict=True)
    )
    return _labelled(f"lipschitz-{norm}", f"Lipschitz constant, {NAMES[norm]}", words, rows, draw)


def _seconds(rows: Sequence[dict[str, Any]]) -> str:
    found = [middle(row, "epoch_cpu_seconds") or 0.0 for row in rows]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(rows)), found, height=0.6, color=COLOURS[0])
        for place, value in enumerate(found):
            axes.text(value, place, f" {short(value)}", va="center", color=INK, fontsize=8)
        axes.set_xlim(0, 1.2 * max([*found, 1e-9]))

    words = "; ".join(f"{r['label']}: {short(v)}" for r, v in zip(rows, found, strict=True))
    return _labelled("seconds", "CPU seconds an epoch", words, rows, draw)
