"""From the files of all jobs to ``summary.json`` and the published ``results/<name>.json``."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from wellposed.core.records import Environment
from wellposed.experiments.counting import verified_metrics
from wellposed.experiments.workspace import Job, Workspace
from wellposed.files.atomic import write_json

Metrics = dict[str, float]
_PROOFS = {"max": "lipschitz_max", "1": "lipschitz_1", "2": "lipschitz_2"}


def summarise(work: Workspace) -> dict[str, Any]:
    """Collect the metrics of every variant and seed and write ``summary.json``."""
    variants: dict[str, dict[str, Metrics]] = {}
    for job in work.jobs():
        variants.setdefault(job.name, {})[str(job.seed)] = job_metrics(job)
    _add_ratios(variants)
    content = {
        "name": work.config.name,
        "command": work.command,
        "environment": Environment.here().to_dict(),
        "seeds": list(work.config.seeds),
        "variants": variants,
    }
    write_json(work.folder / "summary.json", content)
    return content


def job_metrics(job: Job) -> Metrics:
    """The numbers of one job, from whatever steps have been done."""
    out: Metrics = dict(job.read("metrics") or {})
    for record in job.read("certificates") or []:
        if record["claim"] == "contraction":
            # of the map that is iterated, not of the network
            out["contraction_factor"] = float(record["value"])
            continue
        key = _PROOFS.get(record["norm_in"])
        if key is None:
            continue
        value = float(record["value"])
        if record["record"] == "Certificate":
            out[key] = min(value, out.get(key, value))
        else:
            out[f"{key}_attacked"] = max(value, out.get(f"{key}_attacked", value))
    boxes = job.read("boxes")
    if boxes:
        # the first radius is the one that the configuration is about
        out["certified_accuracy"] = boxes["accuracy"][0]
        for eps, accuracy in zip(boxes["eps"], boxes["accuracy"], strict=True):
            out[f"certified_accuracy_boxes@{eps:g}"] = accuracy
    attacks = job.read("attacks")
    if attacks:
        for name, curve in attacks["curves"].items():
            for eps, accuracy in zip(curve["eps"], curve["accuracy"], strict=True):
                out[f"{name.replace('-', '_')}_accuracy@{eps:g}"] = accuracy
        certified = attacks.get("certified")
        if certified:
            out["certified_radius_median"] = certified["median_radius"]
        certified = attacks.get("certified_2")
        if certified:
            out["certified_radius_median_2norm"] = certified["median_radius"]
            for eps, accuracy in zip(certified["eps"], certified["accuracy"], strict=True):
                out[f"certified_accuracy_2norm@{eps:g}"] = accuracy
    return _with_verified(out, job)


def _with_verified(out: Metrics, job: Job) -> Metrics:
    """The metrics with those of `wellposed verify`, which count where both measured a radius.

    Except where boxes alone were tried on more images: a figure of a part says less.
    """
    boxes: dict[str, Any] = job.read("boxes") or {"eps": [], "samples": 0}
    found = verified_metrics(job.read("verification"))
    for place, eps in enumerate(boxes["eps"]):
        at = f"@{eps:g}"
        if found.get(f"verified_images{at}", 0) < boxes["samples"]:
            found.pop(f"certified_accuracy_boxes{at}", None)
        elif place == 0:
            found["certified_accuracy"] = found[f"certified_accuracy{at}"]
    return out | found


def record(work: Workspace, folder: Path, summary: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` of a run and say so; see `publish`."""
    path = publish(work.config.name, folder, summary)
    work.say(f"results: {path}")
    return path


def publish(name: str, folder: Path, summary: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``; the first variant's metrics carry no prefix.

    Args:
        name: Of the run.
        folder: ``results``.
        summary: Its ``summary.json``.
    """
    metrics: dict[str, Any] = {}
    for number, (variant, seeds) in enumerate(summary["variants"].items()):
        prefix = "" if number == 0 else f"{variant}/"
        metrics |= {f"{prefix}{key}": value for key, value in over_seeds(seeds).items()}
    content = {key: summary[key] for key in ("name", "command", "environment", "seeds")} | {
        "metrics": metrics
    }
    path = folder / f"{name}.json"
    write_json(path, content)
    return path


def over_seeds(seeds: dict[str, Metrics]) -> dict[str, Any]:
    """One number for one seed, else ``{mean, std, n}`` with the deviation of a sample."""
    names: dict[str, None] = {name: None for values in seeds.values() for name in values}
    out: dict[str, Any] = {}
    for name in names:
        values = [float(m[name]) for m in seeds.values() if name in m]
        if len(seeds) == 1:
            out[name] = values[0]
        else:
            spread = stdev(values) if len(values) > 1 else 0.0
            out[name] = {"mean": mean(values), "std": spread, "n": len(values)}
    return out


def _add_ratios(variants: dict[str, dict[str, Metrics]]) -> None:
    baseline = variants.get("mlp", {})
    for name, seeds in variants.items():
        for seed, metrics in seeds.items():
            below = baseline.get(seed, {}).get("epoch_cpu_seconds")
            if name != "mlp" and below and "epoch_cpu_seconds" in metrics:
                metrics["epoch_cpu_ratio_to_mlp"] = metrics["epoch_cpu_seconds"] / below
