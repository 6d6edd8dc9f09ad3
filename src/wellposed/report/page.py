"""A run folder becomes one self-contained HTML page. Nothing is measured, nothing is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wellposed.report import figures, numbers, verdict, verification
from wellposed.report.reading import Run, read_run
from wellposed.report.svg import swatch

NAME = "report.html"


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Parts that are missing or damaged are named on the page; the rest is shown.

    Args:
        run_folder: What `wellposed run` wrote.

    Raises:
        DataError: There is no such folder.
    """
    folder = Path(run_folder)
    return write_page(folder, render(read_run(folder)))


def write_page(folder: Path, page: str) -> Path:
    """Write ``report.html`` into a folder, the whole page at once, and return its path."""
    target, draft = folder / NAME, folder / f".{NAME}.part"
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)  # noqa: PTH105 - a reader never sees half a page
    finally:
        draft.unlink(missing_ok=True)
    return target


def render(run: Run) -> str:
    """The page as text."""
    loader = PackageLoader("wellposed.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["short"] = _short
    environment.filters["percent"] = _percent
    return environment.get_template("template.html.j2").render(_content(run))


def _short(value: Any, digits: int = 3, way: numbers.Way = "near") -> str:
    return numbers.short(numbers.number(value), digits, way)


def _percent(value: Any) -> str:
    return numbers.percent(numbers.number(value))


def _content(run: Run) -> dict[str, Any]:
    return {
        "title": str(run.summary.get("name") or run.folder.resolve().name),
        "headline": verdict.headline(run),
        "checks": verdict.checks(run),
        "checks_head": verdict.CHECKS_HEAD,
        "assumptions": verdict.assumptions(run),
        "missing": run.missing,
        "legend": [(Markup(swatch(i)), name) for i, name in enumerate(run.variants)],
        "summary_head": numbers.SUMMARY_HEAD,
        "summary": numbers.summary_rows(run),
        "learning": _panels(figures.learning(run)),
        "evaluations": _panels(figures.evaluations(run)),
        "races": _races(run),
        "lipschitz": _panels(figures.lipschitz(run)),
        "bounds": _bounds(run),
        "robustness": _panels(figures.robustness(run)),
        "curves": _curves(run),
        "corruptions": _explained(run),
        "brackets": _panels(figures.brackets(run)),
        "attack_samples": _samples(run),
        "verifications": [
            {**part, "gallery": [_counterexample(card, run) for card in part["gallery"]]}
            for part in verification.sections(run)
        ],
        "verification_head": verification.HEAD,
        "galleries": _galleries(run),
        "all_metrics": numbers.all_metrics(run),
        "environment": flat(run.environment),
        "command": str(run.summary.get("command") or ""),
        "seeds": run.summary.get("seeds") or [],
        "data": flat(run.data),
        "config": run.config,
    }


def _panels(panels: list[str]) -> list[Markup]:
    # made by `svg.panel`, which escapes every word that comes from outside
    return [Markup(panel) for panel in panels]


def _races(run: Run) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for place, variant in enumerate(run.variants):
        solvers = run.first(variant, "solvers")
        if not isinstance(solvers, dict) or solvers.get("none"):
            continue
        entries = solvers.get("solvers") or {}
        drawn = [name for name, entry in entries.items() if entry.get("residual")]
        out.append(
            {
                "variant": variant,
                "panels": _panels(figures.convergence(str(place), solvers)),
                "legend": [(Markup(swatch(i)), name) for i, name in enumerate(drawn)],
                "rows": [(name, entries[name]) for name in drawn],
                "refused": [(n, e["refused"]) for n, e in entries.items() if e.get("refused")],
                "samples": solvers.get("samples", "?"),
                "dtype": solvers.get("dtype", "?"),
                "threads": solvers.get("threads", "?"),
                "target": solvers.get("target"),
            }
        )
    return out


def _bounds(run: Run) -> list[tuple[str, numbers.Bound]]:
    found = [(v, numbers.bounds(run.first(v, "certificates"))) for v in run.variants]
    return [(variant, row) for variant, rows in found for row in rows]


def _curves(run: Run) -> list[dict[str, Any]]:
    """Numbers behind the robustness panels, for readers who want or need a table."""
    out: list[dict[str, Any]] = []
    for name, title in figures.CURVES.items():
        rows: list[tuple[str, dict[float, float]]] = []
        for variant in run.variants:
            found = [
                c
                for t in run.of(variant)
                if (c := ((t.parts.get("attacks") or {}).get("curves") or {}).get(name))
            ]
            if found:
                eps, middle, _, _ = figures.averaged(found)
                rows.append((variant, dict(zip(eps, middle, strict=True))))
        if rows:
            grid = sorted({e for _, row in rows for e in row})
            body = [(v, [row.get(e) for e in grid]) for v, row in rows]
            out.append({"title": title, "eps": grid, "rows": body})
    proved = [
        (v, dict(zip(c["eps"], c["accuracy"], strict=True)))
        for v in run.variants
        if (c := (run.first(v, "attacks") or {}).get("certified_2"))
    ]
    if proved:
        grid = sorted({e for _, row in proved for e in row})
        body = [(v, [row.get(e) for e in grid]) for v, row in proved]
        out.append({"title": "Certified, 2-norm", "eps": grid, "rows": body})
    return out


def _explained(run: Run) -> list[tuple[str, str]]:
    for trial in run.trials:
        curves = (trial.parts.get("attacks") or {}).get("curves") or {}
        if curves:
            return [
                (figures.CURVES[name], str(curve.get("what", "")))
                for name, curve in curves.items()
                if name in figures.CURVES
            ]
    return []


def _samples(run: Run) -> list[int]:
    return sorted(
        {int(t.parts["attacks"].get("samples", 0)) for t in run.trials if "attacks" in t.parts}
    )


def _galleries(run: Run) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for variant in run.variants:
        found = run.first(variant, "examples")
        if isinstance(found, dict) and found.get("examples"):
            classes = [str(name) for name in found.get("classes") or ()]
            out.append(
                {
                    "variant": variant,
                    "candidates": found.get("candidates", "?"),
                    "examples": [_example(e, classes) for e in found["examples"]],
                }
            )
    return out


def _example(record: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    def name(place: Any) -> str:
        return classes[place] if isinstance(place, int) and place < len(classes) else str(place)

    attacked = record.get("adversarial")
    return {
        **{key: record.get(key) for key in ("index", "margin", "certified_radius", "state_error")},
        "evaluations": record.get("evaluations"),
        "right": record.get("label") == record.get("prediction"),
        "label": name(record.get("label")),
        "prediction": name(record.get("prediction")),
        "probabilities": [(name(k), p) for k, p in record.get("probabilities") or []],
        "image": _picture(record.get("image")),
        "adversarial": None
        if not attacked
        else {
            "distance": attacked.get("distance"),
            "prediction": name(attacked.get("prediction")),
            "probability": attacked.get("probability"),
            "image": _picture(attacked.get("image")),
            "change": _picture(attacked.get("change")),
        },
    }


def _counterexample(card: dict[str, Any], run: Run) -> dict[str, Any]:
    classes = next(
        (
            [str(name) for name in found.get("classes") or ()]
            for v in run.variants
            if isinstance(found := run.first(v, "examples"), dict)
        ),
        [],
    )

    def name(place: Any) -> str:
        return classes[place] if isinstance(place, int) and place < len(classes) else str(place)

    numbers_ = ("index", "eps", "norm", "method", "distance", "margin", "probability", "nodes")
    return {
        **{key: card.get(key) for key in numbers_},
        **{key: name(card.get(key)) for key in ("label", "clean", "prediction")},
        **{key: _picture(card.get(key)) for key in ("image", "change", "witness")},
    }


def _picture(uri: Any) -> str:
    """A PNG data URI, and nothing else: an address would make the page load something."""
    text = str(uri or "")
    return text if text.startswith("data:image/png;base64,") else ""


def flat(record: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Names and values of nested records, for a list of facts."""
    out: list[tuple[str, str]] = []
    for key, value in record.items():
        if key == "record":
            continue
        if isinstance(value, dict):
            out += flat(value, f"{before}{key}.")
        else:
            out.append((f"{before}{key}", str(value)))
    return out
