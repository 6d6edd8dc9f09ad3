"""The figures of one trained network in a comparison, each with its method or why it is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, final

from wellposed.experiments.alike import entry_at
from wellposed.experiments.certificates import NORMS
from wellposed.experiments.summary import job_metrics
from wellposed.experiments.workspace import Job

_PLAIN = {
    "test_accuracy": "test_accuracy",
    "parameters": "parameters",
    "evaluations": "evaluations",
    "epoch_cpu_seconds": "epoch_cpu_seconds",
}
_MARK = {"max": "", "2": "_2norm"}


@final
@dataclass(frozen=True)
class Figures:
    """What one network contributes.

    Args:
        values: Numbers, by key.
        missing: Why a number is not there, by key.
        methods: How a robust accuracy was certified and on how many images, by key.
    """

    values: dict[str, float]
    missing: dict[str, str]
    methods: dict[str, str]


def figures(
    job: Job, radii: dict[str, list[float]], alike: dict[str, Any] | None = None
) -> Figures:
    """Read the files of a job.

    Args:
        job: Finished.
        radii: By norm.
        alike: Robustness under the budget of the comparison, which then is shown instead of what
            the run measured.
    """
    out = Figures({}, {}, {})
    metrics = job_metrics(job)
    refused: dict[str, dict[str, str]] = job.read("refusals") or {}
    for key, source in _PLAIN.items():
        _put(out, key, metrics.get(source), "the network has no equilibrium layer")
    adjoint = _last_epoch(job).get("adjoint_evaluations_mean") or None
    why = "the network has no equilibrium layer"
    if "evaluations" in metrics:
        why = "its gradient solves no adjoint equation"
    _put(out, "adjoint_evaluations", adjoint, why)
    asked, unasked = job.read("certificates") is not None, "`wellposed certify` was not run"
    for norm in NORMS:
        given = (refused.get("lipschitz") or {}).get(norm)
        other = "`wellposed certify RUN --again` says why" if asked else unasked
        why = f"no certificate in the {norm}-norm: {given or other}"
        _put(out, f"lipschitz_{norm}", metrics.get(f"lipschitz_{norm}"), why)
        attacked = metrics.get(f"lipschitz_{norm}_attacked")
        _put(out, f"lipschitz_{norm}_attacked", attacked, unasked)
    for norm, values in radii.items():
        for radius in values:
            if alike is not None:
                _put_entry(out, alike, norm, radius)
                continue
            _robust(out, job, metrics, refused, norm=norm, radius=radius)
    return out


def radii_of(job: Job, norm: str) -> list[float]:
    """The radii at which something was certified or verified of a network."""
    boxes: dict[str, Any] = job.read("boxes") or {}
    verified: dict[str, Any] = job.read("verification") or {}
    out = [float(e["eps"]) for e in verified.get("entries", []) if e["norm"] == norm]
    if norm == "2":
        return sorted({*out, *_margins(job).get("eps", [])})
    return sorted({*out, *(boxes.get("eps", []) if norm == "max" else [])})


def _margins(job: Job) -> dict[str, Any]:
    """Accuracy certified in the 2-norm by the gains of differences of logits."""
    return (job.read("attacks") or {}).get("certified_2") or {}


def _robust(
    out: Figures,
    job: Job,
    metrics: dict[str, float],
    refused: dict[str, dict[str, str]],
    *,
    norm: str,
    radius: float,
) -> None:
    at = f"{_MARK[norm]}@{radius:g}"
    key = f"certified_{norm}@{radius:g}"
    found = _certified(job, metrics, norm, radius)
    if found is None:
        steps = ("verification", "boxes") if norm == "max" else ("verification",)
        told = [why for step in steps if (why := (refused.get(step) or {}).get(norm))]
        reason = told[0] if told else "nobody asked for this radius"
        out.missing[key] = reason
    else:
        value, out.methods[key] = found
        out.values[key] = value
    curve = "pgd" if norm == "max" else "pgd_2"
    attacked = metrics.get(f"{curve}_accuracy@{radius:g}", metrics.get(f"pgd_accuracy{at}"))
    if f"certified_accuracy{at}" in metrics:  # on the same images as the proofs
        attacked = metrics.get(f"not_falsified{at}", attacked)
    _put(out, f"attacked_{norm}@{radius:g}", attacked, "not attacked at this radius")


def _certified(
    job: Job, metrics: dict[str, float], norm: str, radius: float
) -> tuple[float, str] | None:
    """The sharpest certified accuracy that is there, with its method and number of images."""
    at = f"{_MARK[norm]}@{radius:g}"
    verified = metrics.get(f"certified_accuracy{at}")
    if verified is not None and f"verified_images{at}" in metrics:
        return verified, f"verification of {metrics[f'verified_images{at}']:,.0f} images"
    if norm != "max":
        curve = _margins(job) if norm == "2" else {}
        known = dict(zip(curve.get("eps", []), curve.get("accuracy", []), strict=True))
        if radius not in known:
            return None
        return known[radius], f"Lipschitz margins on {curve.get('samples', 0):,} images"
    found: list[tuple[float, str]] = []
    boxes: dict[str, Any] = job.read("boxes") or {}
    for eps, share in zip(boxes.get("eps", []), boxes.get("accuracy", []), strict=True):
        if eps == radius:
            found.append((share, f"boxes on {boxes['samples']:,} images"))
    curve: dict[str, Any] = (job.read("attacks") or {}).get("certified") or {}
    # the share at a larger radius holds at this one as well
    beyond = [(e, a) for e, a in zip(curve.get("eps", []), curve.get("accuracy", []), strict=True)
              if e >= radius]  # fmt: skip
    if beyond:
        share = max(a for _, a in beyond)
        found.append((share, f"Lipschitz margins on {curve.get('samples', 0):,} images"))
    return max(found) if found else None


def _put_entry(out: Figures, alike: dict[str, Any], norm: str, radius: float) -> None:
    entry = entry_at(alike, norm, radius)
    assert entry is not None
    out.values[f"attacked_{norm}@{radius:g}"] = entry["attacked"]
    key = f"certified_{norm}@{radius:g}"
    _put(out, key, entry["certified"], entry["refused"])
    if entry["certified"] is not None:
        out.methods[key] = entry["method"]


def _put(out: Figures, key: str, value: float | None, why: str) -> None:
    if value is None:
        out.missing[key] = why
    else:
        out.values[key] = float(value)


def _last_epoch(job: Job) -> dict[str, Any]:
    path = job.folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else {}
