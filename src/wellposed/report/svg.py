"""Small matplotlib panels as inline SVG that take their colours and fonts from the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from math import floor, log10
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# colour-blind-safe (after Okabe and Ito); the page maps each to a variable with a dark twin
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
INK, MUTED, LINE = "#1b1e22", "#5b6470", "#dfe3e8"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)), (0, (3, 1.4)), "-")
MARKERS = "osD^vP"
SIZE = (3.7, 2.55)

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.markersize": 3.4,
    "lines.solid_capstyle": "round",
}


def look(place: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line at a place: told apart without colour, too."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def swatch(place: int) -> str:
    """A legend key as inline SVG, the same line as in the panels."""
    dash = DASHES[place % len(DASHES)]
    pattern = "" if dash == "-" else " ".join(str(1.7 * v) for v in dash[1])
    return (
        '<svg class="key" viewBox="0 0 30 8" aria-hidden="true"><line x1="1" y1="4" x2="29" y2="4" '
        f'style="stroke:var(--c{place % len(COLOURS)});stroke-width:2.2;stroke-dasharray:{pattern}"'
        f'/><circle cx="15" cy="4" r="2.6" style="fill:var(--c{place % len(COLOURS)})"/></svg>'
    )


def panel(
    name: str,
    title: str,
    describe: str,
    draw: Callable[[Axes], None],
    *,
    size: tuple[float, float] = SIZE,
    left: float = 0.46,
) -> str:
    """One panel as an SVG element without ids that could clash and without any address.

    Args:
        name: Unique in the page.
        title: Printed above the panel, and its accessible name.
        describe: What one sees, for readers who do not.
        draw: Draws on the axes.
        size: Inches.
        left: Inches for the labels of the vertical axis.
    """
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_title(title, pad=8)
        draw(axes)
        # fixed margins: an automatic layout draws every panel twice
        width, height = size
        figure.subplots_adjust(left / width, 0.44 / height, 1 - 0.1 / width, 1 - 0.32 / height)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, title, describe)


def _inline(text: str, name: str, title: str, describe: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    # fonts of the page, not of the machine that drew
    text = re.sub(
        r"font:\s*(?:bold |700 )?([\d.]+)px [^;\"]*",
        lambda m: (
            f"font-size: {m[1]}px"
            + ("; font-weight: 600" if "bold" in m[0] or "700" in m[0] else "")
        ),
        text,
    )
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    for colour, variable in (
        *((c, f"var(--c{i})") for i, c in enumerate(COLOURS)),
        (INK, "var(--ink)"),
        (MUTED, "var(--muted)"),
        (LINE, "var(--line)"),
    ):
        text = text.replace(colour, variable)
    label = f"<title>{escape(title)}</title><desc>{escape(describe)}</desc>"
    start = text.index(">") + 1
    head = text[: start - 1] + f' role="img" aria-label="{escape(title)}. {escape(describe)}">'
    return head + label + text[start:]


def power(value: float, _place: Any = None) -> str:
    """A power of ten as text, such as 10⁻³."""
    if value <= 0:
        return ""
    exponent = log10(value)
    if abs(exponent - round(exponent)) > 1e-6:
        return ""
    raised = str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {0: "1", 1: "10"}.get(round(exponent), f"10{raised}")


def plain(value: float, _place: Any = None) -> str:
    """A number without trailing zeros, small ones in decimals."""
    if value == 0:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:,.0f}"


def log_axis(axis: Any, labels: Callable[[float, Any], str] = power) -> None:
    """Decades only, labelled without mathematical markup."""
    axis.set_major_locator(LogLocator(10, numticks=7))
    axis.set_major_formatter(FuncFormatter(labels))
    axis.set_minor_locator(NullLocator())


def whole_axis(axis: Any) -> None:
    """Whole numbers only."""
    axis.set_major_locator(MaxNLocator(6, integer=True))
