"""The section on verification: what is proved by which method, at what cost, and what fell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from wellposed.report.numbers import NONE, mean, number, percent, short
from wellposed.report.reading import Run
from wellposed.report.svg import COLOURS, INK, log_axis, look, panel, plain, swatch, whole_axis

# methods in the order in which they are tried, each with the place of its colour
METHODS = {"attack": 6, "lipschitz": 7, "boxes": 0, "linear bounds": 5, "tightening": 2,
           "branching": 4}  # fmt: skip
CARDS = 12  # counter-examples that are shown of one network
UNIT = {"max": "amplitude eps of every component", "2": "radius eps in the 2-norm"}
HEAD = (
    "Norm",
    "eps",
    "Inputs",
    "Right unchanged",
    "Verified",
    "Falsified",
    "Unknown",
    "Right under PGD",
    "CPU s, mean",
    "CPU s, median",
    "CPU s, largest",
    "Open neurons, mean",
)


def sections(run: Run) -> list[dict[str, Any]]:
    """One entry a variant that was verified, of its first trial that was."""
    out: list[dict[str, Any]] = []
    for place, variant in enumerate(run.variants):
        trial = next((t for t in run.of(variant) if _entries(t.parts.get("verification"))), None)
        if trial is None:
            continue
        entries = _entries(trial.parts["verification"])
        used = [m for m in METHODS if any(m in e["certified_by"] for e in entries)]
        panels = [
            panel_
            for k, norm in enumerate(dict.fromkeys(e["norm"] for e in entries))
            for panel_ in _panels(f"{place}-{k}", [e for e in entries if e["norm"] == norm])
        ]
        out.append(
            {
                "variant": variant,
                "seed": trial.seed,
                "panels": [Markup(p) for p in panels],
                "methods": [(Markup(_square(METHODS[m])), m) for m in used],
                "rows": [_row(e) for e in entries],
                "shares": _shares(entries, used),
                "gallery": _cards(entries),
                "radii": [(Markup(swatch(i)), _name(e)) for i, e in enumerate(entries)],
            }
        )
    return out


def _entries(content: Any) -> list[dict[str, Any]]:
    found = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(found, list):
        return []
    needed = ("norm", "eps", "samples", "counts", "certified_by", "verdicts")
    return [e for e in found if isinstance(e, dict) and all(k in e for k in needed)]


def _name(entry: dict[str, Any]) -> str:
    return f"{entry['norm']}-norm eps {plain(entry['eps'])}"


def _panels(name: str, entries: Sequence[dict[str, Any]]) -> list[str]:
    entries = sorted(entries, key=lambda e: e["eps"])
    made = [_certified(name, entries), _times(name, entries)]
    if any(_open(e) for e in entries):
        made.append(_neurons(name, entries))
    return made


def _certified(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """Areas by method, and above them what is not falsified."""
    eps = [e["eps"] for e in entries]
    single = len(eps) == 1
    used = [m for m in METHODS if any(m in e["certified_by"] for e in entries)]
    upto = {m: [_up_to(e["certified_by"], m) for e in entries] for m in used}
    left = [number(e.get("not_falsified")) or 0.0 for e in entries]
    attacked = [number(e.get("pgd")) for e in entries]

    def draw(axes: Axes) -> None:
        below = [0.0] * len(eps)
        for method in used:
            colour = COLOURS[METHODS[method]]
            if single:
                axes.bar([0], [upto[method][0] - below[0]], bottom=below, color=colour, width=0.5)
            else:
                axes.fill_between(eps, below, upto[method], color=colour, alpha=0.75, linewidth=0)
            below = upto[method]
        if single:
            axes.bar([0], [left[0] - below[0]], bottom=below, fill=False, edgecolor=INK, width=0.5)
            axes.set_xticks([0], [plain(eps[0])])
            axes.set_xlim(-1, 1)
            axes.grid(visible=False, axis="x")
        else:
            axes.plot(eps, left, color=INK, linewidth=1.2, marker="o")
            known = [(e, a) for e, a in zip(eps, attacked, strict=True) if a is not None]
            axes.plot(*zip(*known, strict=True), color=INK, linestyle=(0, (1, 1.6)), linewidth=1.2)
            axes.set_xlim(min(eps), max(eps))
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(UNIT.get(entries[0]["norm"], "eps"))

    words = "; ".join(
        f"at {plain(e['eps'])} {percent(e['certified'])} verified and "
        f"{percent(1 - left[i])} falsified"
        for i, e in enumerate(entries)
    )
    return panel(f"verified-{name}", "Verified, by method", words, draw)


def _times(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """Share of inputs that are decided within a time."""
    found = {
        place: sorted(
            max(float(s), 1e-5)
            for s, status in zip(e["verdicts"]["seconds"], e["verdicts"]["status"], strict=True)
            if status != "unknown"
        )
        for place, e in enumerate(entries)
    }

    def draw(axes: Axes) -> None:
        for place, times in found.items():
            if not times:
                continue
            count = max(entries[place]["samples"], 1)
            y = [(k + 1) / count for k in range(len(times))]
            style = look(place)
            axes.step(
                [times[0], *times], [0.0, *y], where="post", color=style["color"],
                linestyle=style["linestyle"],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        log_axis(axes.xaxis, lambda v, _: plain(v))
        axes.set_xlabel("CPU seconds for one input, logarithmic")

    words = "; ".join(
        f"at {plain(e['eps'])} the slowest decided input took {short(found[i][-1])} s"
        for i, e in enumerate(entries)
        if found[i]
    )
    return panel(f"decided-{name}", "Decided within a time", words, draw)


def _open(entry: dict[str, Any]) -> list[int]:
    return [v for v in entry["verdicts"].get("unstable", []) if isinstance(v, int)]


def _neurons(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """Histogram of open neurons."""
    found = {place: _open(e) for place, e in enumerate(entries)}
    most = max((max(v) for v in found.values() if v), default=1)
    width = max(1, -(-most // 24))
    edges = [k * width - 0.5 for k in range(most // width + 2)]

    def draw(axes: Axes) -> None:
        for place, values in found.items():
            if values:
                colour = COLOURS[place % len(COLOURS)]
                axes.hist(values, bins=edges, histtype="stepfilled", color=colour, alpha=0.25)
                axes.hist(values, bins=edges, histtype="step", color=colour, linewidth=1.4)
        axes.set_xlabel("neurons with an open phase")
        axes.set_ylabel("inputs")
        whole_axis(axes.xaxis)
        whole_axis(axes.yaxis)

    words = "; ".join(
        f"at {plain(e['eps'])} {short(mean(found[i]))} of them on average"
        for i, e in enumerate(entries)
        if found[i]
    )
    return panel(f"open-{name}", "Open neurons of an input", words, draw, left=0.58)


def _row(entry: dict[str, Any]) -> list[str]:
    count = max(entry["samples"], 1)
    seconds = entry.get("seconds") or {}
    neurons = _open(entry)
    return [
        str(entry["norm"]),
        plain(entry["eps"]),
        f"{entry['samples']:,}",
        percent(number(entry.get("clean"))),
        *[percent(entry["counts"].get(s, 0) / count) for s in ("verified", "falsified", "unknown")],
        percent(number(entry.get("pgd"))),
        *[short(number(seconds.get(key))) for key in ("mean", "median", "max")],
        short(mean([float(v) for v in neurons])) if neurons else NONE,
    ]


def _shares(entries: Sequence[dict[str, Any]], used: Sequence[str]) -> list[list[str]]:
    """The cumulative share that each method reaches."""
    return [
        [_name(e), *[percent(_up_to(e["certified_by"], method)) for method in used]]
        for e in entries
    ]


def _up_to(shares: dict[str, float], method: str) -> float:
    order = list(METHODS)
    allowed = order[: order.index(method) + 1]
    return max((v for k, v in shares.items() if k in allowed), default=0.0)


def _cards(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some counter-examples of every radius, no input twice."""
    each = max(2, CARDS // max(len(entries), 1))
    out: list[dict[str, Any]] = []
    for e in entries:
        shown = {card["index"] for card in out}
        found = e.get("gallery")
        cards = [card for card in (found if isinstance(found, list) else []) if card.get("index")
                 not in shown]  # fmt: skip
        out += [{**card, "eps": e["eps"], "norm": e["norm"]} for card in cards[:each]]
    return out


def _square(place: int) -> str:
    """A legend key for an area."""
    return (
        '<svg class="key" viewBox="0 0 30 8" aria-hidden="true"><rect x="8" width="14" height="8" '
        f'rx="1.5" style="fill:var(--c{place % len(COLOURS)})"/></svg>'
    )
