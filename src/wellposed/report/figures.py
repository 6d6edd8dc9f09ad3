"""The panels of the report: learning, evaluations, convergence, Lipschitz bars, robustness."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from wellposed.report.numbers import bounds, main_norm, mean, number
from wellposed.report.reading import Run, Trial
from wellposed.report.svg import (
    COLOURS,
    INK,
    MUTED,
    log_axis,
    look,
    panel,
    plain,
    power,
    whole_axis,
)

SMALL = (3.1, 2.6)
CURVES = {
    "uniform-noise": "Uniform noise",
    "inversion": "Image inversion",
    "fgsm": "FGSM, one gradient step",
    "pgd": "PGD, max norm",
    "pgd-2": "PGD, 2-norm",
}


def learning(run: Run) -> list[str]:
    """Accuracy and training loss after each epoch."""
    panels: list[str] = []
    for key, title, percent in (
        ("validation_accuracy", "Held-out accuracy", True),
        ("train_accuracy", "Training accuracy", True),
        ("train_loss", "Training loss", False),
    ):
        if _known(run, key) and not (key == "train_accuracy" and panels):
            panels.append(_epochs(run, key, title, percent=percent, logarithmic=not percent))
    return panels


def evaluations(run: Run) -> list[str]:
    """Evaluations a sample in the forward and the backward solve, epoch by epoch."""
    titles = {
        "evaluations_mean": "Forward: evaluations a sample",
        "adjoint_evaluations_mean": "Backward: evaluations a sample",
    }
    return [_epochs(run, key, title) for key, title in titles.items() if _known(run, key)]


def _known(run: Run, key: str) -> bool:
    return any(_line(trial, key)[0] for trial in run.trials)


def _epochs(
    run: Run, key: str, title: str, *, percent: bool = False, logarithmic: bool = False
) -> str:
    found = {v: [line for t in run.of(v) if (line := _line(t, key))[0]] for v in run.variants}
    average: dict[str, tuple[list[float], list[float]]] = {}
    for variant, lines in found.items():
        if lines:
            length = min(len(x) for x, _ in lines)
            y = [mean([line[1][i] for line in lines]) for i in range(length)]
            average[variant] = (lines[0][0][:length], y)

    def draw(axes: Axes) -> None:
        for place, variant in enumerate(run.variants):
            style = look(place)
            for x, y in found[variant] if len(found[variant]) > 1 else []:
                axes.plot(x, y, color=style["color"], linewidth=0.6, alpha=0.45)
            if variant in average:
                x, y = average[variant]
                axes.plot(x, y, markevery=max(1, len(x) // 8), **style)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        elif logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=9))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(0, 1.12 * max((max(y) for _, y in average.values()), default=1))
        axes.set_xlabel("epoch")
        whole_axis(axes.xaxis)

    name = f"epochs-{key.replace('_', '-')}"
    words = "; ".join(f"{v} ends at {y[-1]:.4g}" for v, (_, y) in average.items())
    return panel(name, title, words, draw)


def _line(trial: Trial, key: str) -> tuple[list[float], list[float]]:
    x: list[float] = []
    y: list[float] = []
    for place, row in enumerate(trial.epochs):
        value = number(row.get(key))
        if value is not None and isfinite(value):
            epoch = number(row.get("epoch"))
            x.append(place + 1 if epoch is None else epoch)
            y.append(value)
    return (x, y) if any(y) else ([], [])  # a network without equilibria counts no evaluations


def convergence(name: str, solvers: dict[str, Any]) -> list[str]:
    """Worst relative residual against evaluations and CPU time, and the histogram of the default.

    Args:
        name: Of the variant, for the ids.
        solvers: ``solvers.json``.
    """
    entries = {k: v for k, v in (solvers.get("solvers") or {}).items() if v.get("residual")}
    panels: list[str] = []
    for key, title, axis in (
        ("evaluations", "Residual by evaluations", "evaluations of the map"),
        ("seconds", "Residual by CPU time", "milliseconds, whole batch"),
    ):
        if entries:
            panels.append(
                panel(
                    f"race-{key}-{name}",
                    title,
                    _race_words(entries),
                    lambda axes, key=key, axis=axis: _race(axes, entries, solvers, key, axis),
                    size=SMALL,
                )
            )
    counts = solvers.get("histogram")
    if counts and counts.get("evaluations"):
        words = f"{counts.get('solver', 'The solver')} needs " + ", ".join(
            f"{e} for {s} samples"
            for e, s in zip(counts["evaluations"], counts["samples"], strict=True)
        )

        def bars(axes: Axes) -> None:
            axes.bar(counts["evaluations"], counts["samples"], color=COLOURS[0], width=0.8)
            axes.set_xlabel("evaluations until a sample is done")
            axes.set_ylabel("samples")
            axes.grid(visible=False, axis="x")
            low, high = min(counts["evaluations"]), max(counts["evaluations"])
            axes.set_xlim(low - 2.5, high + 2.5)
            whole_axis(axes.xaxis)

        title = f"Evaluations, {counts.get('solver', 'own solver')} rtol {counts.get('rtol', 0):g}"
        panels.append(panel(f"histogram-{name}", title, words, bars, size=SMALL, left=0.58))
    return panels


def _race(
    axes: Axes, entries: dict[str, Any], solvers: dict[str, Any], key: str, label: str
) -> None:
    factor = 1e3 if key == "seconds" else 1
    for place, entry in enumerate(entries.values()):
        pairs = [
            (factor * x, y)
            for x, y in zip(entry[key], entry["residual"], strict=True)
            if number(x) is not None and number(y) is not None and y > 0
        ]
        x, y = [p[0] for p in pairs], [p[1] for p in pairs]
        axes.plot(x, y, markevery=max(1, len(x) // 7), **look(place))
    axes.set_yscale("log")
    axes.set_xscale("log")
    target = number(solvers.get("target"))
    if target:
        axes.axhline(target, color=MUTED, linewidth=0.8)
        axes.text(
            0.99, target * 1.25, "target", transform=axes.get_yaxis_transform(), ha="right",
            color=MUTED, fontsize=7.5,
        )  # fmt: skip
        axes.set_ylim(bottom=target / 8, top=min(axes.get_ylim()[1], 1e3))
    log_axis(axes.yaxis)
    log_axis(axes.xaxis, lambda v, _: plain(v))
    axes.set_xlabel(label)


def _race_words(entries: dict[str, Any]) -> str:
    return "; ".join(
        f"{name}: {'reaches the target after' if e.get('reached') else 'does not reach it in'} "
        f"{e.get('total_evaluations', '?')} evaluations"
        for name, e in entries.items()
    )


def lipschitz(run: Run) -> list[str]:
    """Certified bounds and attacked lower bounds on a logarithmic axis, one panel a variant."""
    found = {v: main_norm(bounds(run.first(v, "certificates"))) for v in run.variants}
    values = [row.value for rows in found.values() for row in rows]
    panels: list[str] = []
    for place, (variant, rows) in enumerate(found.items()):
        if not rows:
            continue
        words = "; ".join(f"{row.label}: {row.text}" for row in rows)
        colour = COLOURS[place % len(COLOURS)]

        def bars(axes: Axes, rows: Any = rows, colour: str = colour) -> None:
            floor = min(values) / 4
            for i, row in enumerate(reversed(rows)):
                paint = colour if row.proved else MUTED
                faint = 0.55 if not row.proved or row.region != "everywhere" else 1
                width = row.value - floor
                axes.barh(i, width, left=floor, height=0.66, color=paint, alpha=faint)
                axes.text(row.value * 1.12, i, row.text, va="center", color=INK, fontsize=8)
            axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
            axes.set_xscale("log")
            axes.set_xlim(floor, max(values) * 6)  # shared, so that panels can be compared
            log_axis(axes.xaxis, lambda v, _: plain(v) if v < 1e5 else power(v))
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0, labelcolor=INK)

        height = 0.95 + 0.27 * len(rows)
        left = 0.2 + 0.065 * max(len(row.label) for row in rows)
        panels.append(
            panel(f"lipschitz-{place}", variant, words, bars, size=(3.7, height), left=left)
        )
    return panels


def robustness(run: Run) -> list[str]:
    """The curves of accuracy against perturbation, variants overlaid."""
    names = [n for n in CURVES if any(_curves(t, n) for t in run.trials)]
    return [_robust(run, name) for name in names]


def _curves(trial: Trial, name: str) -> dict[str, Any] | None:
    return ((trial.parts.get("attacks") or {}).get("curves") or {}).get(name)


def averaged(
    found: Sequence[dict[str, Any]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Radii, mean, smallest and largest accuracy over trials on the radii that they share."""
    shared = [e for e in found[0]["eps"] if all(e in curve["eps"] for curve in found)]
    columns = [[c["accuracy"][c["eps"].index(e)] for c in found] for e in shared]
    return shared, [mean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def _robust(run: Run, name: str) -> str:
    words: list[str] = []

    def draw(axes: Axes) -> None:
        for place, variant in enumerate(run.variants):
            found = [c for t in run.of(variant) if (c := _curves(t, name))]
            if not found:
                continue
            eps, middle, low, high = averaged(found)
            if len(found) > 1:
                axes.fill_between(
                    eps, low, high, color=COLOURS[place % len(COLOURS)], alpha=0.18, linewidth=0
                )
            else:
                spread = found[0].get("spread") or [0.0] * len(eps)
                axes.fill_between(
                    eps,
                    [m - 2 * s for m, s in zip(middle, spread, strict=True)],
                    [m + 2 * s for m, s in zip(middle, spread, strict=True)],
                    color=COLOURS[place % len(COLOURS)], alpha=0.18, linewidth=0,
                )  # fmt: skip
            axes.plot(eps, middle, **look(place))
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(
            "radius of the perturbation" if name == "pgd-2" else "amplitude eps, pixels in [0, 1]"
        )

    for variant in run.variants:
        found = [c for t in run.of(variant) if (c := _curves(t, name))]
        if found:
            eps, middle, _, _ = averaged(found)
            first, last = 100 * middle[0], 100 * middle[-1]
            words.append(f"{variant} falls from {first:.1f} % to {last:.1f} % at {eps[-1]:g}")
    return panel(f"robust-{name}", CURVES[name], "; ".join(words), draw)


def brackets(run: Run) -> list[str]:
    """For each variant, the band between what is certified and what attacks left standing."""
    panels: list[str] = []
    attacks = {v: run.first(v, "attacks") or {} for v in run.variants}
    pairs = {
        v: (a["certified"], a["curves"]["pgd"])
        for v, a in attacks.items()
        if a.get("certified") and (a.get("curves") or {}).get("pgd")
    }
    radii = [e for pair in pairs.values() for curve in pair for e in curve["eps"] if e > 0]
    for place, variant in enumerate(run.variants):
        if variant not in pairs or not radii:
            continue
        proved, pgd = pairs[variant]

        def draw(axes: Axes, proved: Any = proved, pgd: Any = pgd, place: int = place) -> None:
            colour = COLOURS[place % len(COLOURS)]
            lower = [
                (e, a) for e, a in zip(proved["eps"], proved["accuracy"], strict=True) if e > 0
            ]
            upper = [(e, a) for e, a in zip(pgd["eps"], pgd["accuracy"], strict=True) if e > 0]
            axes.set_xscale("log")
            low, high = min(radii) / 1.5, max(radii) * 1.5  # shared, to compare panels
            lower = [(low, lower[0][1]), *lower] if lower else [(low, 0.0), (high, 0.0)]
            x, y = [e for e, _ in lower], [a for _, a in lower]
            axes.set_xlim(low, high)
            axes.fill_between(x, y, 0, color=colour, alpha=0.28, linewidth=0)
            axes.plot(x, y, color=colour, linestyle="-")
            x, y = [e for e, _ in upper], [a for _, a in upper]
            axes.plot(x, y, color=INK, linestyle=(0, (4, 2)), marker="o", linewidth=1.2)
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            log_axis(axes.xaxis, lambda v, _: plain(v) if v >= 1e-3 else power(v))
            axes.set_xlabel("amplitude eps, pixels in [0, 1], logarithmic")

        words = (
            f"Certified accuracy starts at {100 * proved['accuracy'][0]:.1f} % and reaches "
            f"{100 * proved['accuracy'][-1]:.1f} % at {proved['eps'][-1]:.3g}; PGD leaves "
            f"{100 * pgd['accuracy'][-1]:.1f} % at {pgd['eps'][-1]:g}"
        )
        panels.append(panel(f"bracket-{place}", variant, words, draw))
    return panels
