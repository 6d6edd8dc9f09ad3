"""Panels of how the output of a network on a table answers to each feature with a sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from wellposed.report.numbers import mean, percent, short
from wellposed.report.svg import COLOURS, MUTED, panel

SIZE = (3.4, 2.5)
ROOM = 0.06  # of the height, above and below the curves


def responses(seeds: Sequence[dict[str, Any]]) -> list[str]:
    """One panel a feature, all with the same vertical axis.

    Args:
        seeds: ``response.json`` of each seed, with the same features in the same order.
    """
    if not seeds:
        return []
    share = seeds[0].get("output") == "probability"
    values = [y for seed in seeds for curve in seed["curves"] for y in curve["y"]]
    if not values:
        return []
    extra = ROOM * ((max(values) - min(values)) or 1.0)
    limits = (min(values) - extra, max(values) + extra)
    return [
        _panel(
            k, [seed["curves"][k] for seed in seeds], limits, share=share, mean_too=aligned(seeds)
        )
        for k in range(len(seeds[0]["curves"]))
    ]


def aligned(seeds: Sequence[dict[str, Any]]) -> bool:
    """Whether the curves of several seeds have the same places, so that they have a mean."""
    places = [[curve["x"] for curve in seed["curves"]] for seed in seeds]
    return len(seeds) > 1 and all(own == places[0] for own in places)


def _panel(
    place: int,
    curves: Sequence[dict[str, Any]],
    limits: tuple[float, float],
    *,
    share: bool,
    mean_too: bool,
) -> str:
    first = curves[0]
    colour = COLOURS[0 if first["sign"] > 0 else 1]

    def draw(axes: Axes) -> None:
        width, alpha = (1.9, 1.0) if len(curves) == 1 else (0.8, 0.5) if mean_too else (1.3, 0.8)
        for curve in curves:
            axes.plot(curve["x"], curve["y"], color=colour, linewidth=width, alpha=alpha)
        if mean_too:
            middle = [mean(list(column)) for column in zip(*(c["y"] for c in curves), strict=True)]
            axes.plot(first["x"], middle, color=colour, linewidth=2.2)
        axes.set_ylim(*limits)
        axes.plot(
            first["deciles"], [limits[0]] * len(first["deciles"]), linestyle="", marker="|",
            color=MUTED, markersize=9, clip_on=True,
        )  # fmt: skip
        axes.set_xlabel(str(first["name"]))
        axes.margins(x=0.02)
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    sign = "rising" if first["sign"] > 0 else "falling"
    ends = [mean([curve["y"][k] for curve in curves]) for k in (0, -1)]
    words = " to ".join(percent(end) if share else short(end) for end in ends)
    describe = (
        f"From {short(first['x'][0])} to {short(first['x'][-1])} the output goes from {words}, "
        f"mean of {len(curves)} networks; proved to be {sign}."
    )
    return panel(
        f"response-{place}", f"{first['name']}: {sign}", describe, draw, size=SIZE, left=0.5
    )
