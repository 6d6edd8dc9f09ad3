"""From verdicts to the figures that are published: shares by method, times, open neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import mean, median
from typing import Any

from wellposed.experiments.ledger import Line
from wellposed.experiments.question import TIERS, Question

_DIGITS = 6


def entry(question: Question, lines: Sequence[Line], clean: float) -> dict[str, Any]:
    """What ``verification.json`` says about one radius.

    Args:
        question: What was asked.
        lines: The verdicts, in order of the inputs.
        clean: Accuracy on the inputs themselves.
    """
    count = len(lines)
    states = [line.verdict.status for line in lines]
    times = [line.verdict.seconds for line in lines]
    certified = stacked(lines, "verified")
    falsified = stacked(lines, "falsified")
    attacked = falsified.get(TIERS[0].value, 0.0)
    return {
        "norm": question.norm,
        "eps": question.eps,
        "samples": count,
        "clean": _short(clean),
        "counts": {name: states.count(name) for name in ("verified", "falsified", "unknown")},
        "certified": _share(states.count("verified"), count),
        "not_falsified": _share(count - states.count("falsified"), count),
        "pgd": None if not question.steps else _short(1 - attacked),
        # cumulative: the share that is verified by this method or an earlier one
        "certified_by": certified,
        "falsified_by": falsified,
        "seconds": {
            "mean": _short(mean(times)),
            "median": _short(median(times)),
            "max": _short(max(times)),
            "total": _short(sum(times)),
        }
        if times
        else None,
        "settings": {
            "last": question.last.value,
            "seconds": str(question.seconds),
            "nodes": question.nodes,
            "attack_steps": question.steps,
            "attack_restarts": question.restarts,
        },
        "verdicts": columns(lines),
    }


def stacked(lines: Sequence[Line], status: str) -> dict[str, float]:
    """The share with this status that each method and those before it decided, cumulative.

    Methods without a part in it are left out.
    """
    by: dict[str, int] = {}
    for line in lines:
        if line.verdict.status == status:
            by[line.verdict.method] = by.get(line.verdict.method, 0) + 1
    order = [tier.value for tier in TIERS]
    names = [n for n in order if n in by] + sorted(n for n in by if n not in order)
    out: dict[str, float] = {}
    total = 0
    for name in names:
        total += by[name]
        out[name] = _share(total, len(lines))
    return out


def up_to(shares: Mapping[str, float], name: str) -> float:
    """The cumulative share at a method, from `stacked`, whether or not it has a part of its own."""
    order = [tier.value for tier in TIERS]
    allowed = order[: order.index(name) + 1]
    return max((share for method, share in shares.items() if method in allowed), default=0.0)


def columns(lines: Sequence[Line]) -> dict[str, list[Any]]:
    """The verdicts as columns, without witnesses: those stay in the parts."""
    methods = dict.fromkeys(name for line in lines for name in line.verdict.bounds)
    out: dict[str, list[Any]] = {
        "index": [line.index for line in lines],
        "label": [line.label for line in lines],
        "status": [line.verdict.status for line in lines],
        "method": [line.verdict.method for line in lines],
        "margin": [_number(line.verdict.margin) for line in lines],
        "seconds": [_short(line.verdict.seconds) for line in lines],
        "unstable": [line.verdict.unstable for line in lines],
        "nodes": [line.verdict.nodes for line in lines],
    }
    for name in methods:
        out[f"bound: {name}"] = [_number(line.verdict.bounds.get(name)) for line in lines]
    return out


def verified_metrics(content: Any) -> dict[str, float]:
    """The figures that are published, by key; those of the 2-norm are marked.

    Args:
        content: ``verification.json``, or `None`.
    """
    out: dict[str, float] = {}
    entries: list[dict[str, Any]] = content["entries"] if content else []
    for e in entries:
        mark = "" if e["norm"] == "max" else f"_{e['norm']}norm"
        at = f"{mark}@{e['eps']:g}"
        out[f"certified_accuracy{at}"] = e["certified"]
        out[f"certified_accuracy_boxes{at}"] = up_to(e["certified_by"], "boxes")
        out[f"certified_accuracy_before_branching{at}"] = up_to(e["certified_by"], "tightening")
        out[f"not_falsified{at}"] = e["not_falsified"]
        out[f"undecided{at}"] = _share(e["counts"]["unknown"], e["samples"])
        out[f"verified_images{at}"] = e["samples"]
        if e["pgd"] is not None:
            out[f"pgd_accuracy{at}"] = e["pgd"]
        if (files := e.get("certificates")) is not None:
            out[f"certificates_filed{at}"] = _share(files["filed"], files["decided"])
            out[f"certificates_accepted{at}"] = _share(files["accepted"], files["filed"])
        if e["seconds"]:
            out[f"seconds_per_image{at}"] = e["seconds"]["mean"]
    return out


def _share(part: int, whole: int) -> float:
    return _short(part / whole) if whole else 0.0


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _number(value: float | None) -> float | None:
    """A number that JSON can hold."""
    return None if value is None or not isfinite(value) else _short(value)
