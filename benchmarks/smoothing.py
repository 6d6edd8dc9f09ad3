"""Certified accuracy in the 2-norm: randomised smoothing beside the deterministic multipliers."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

import torch

import wellposed as wp
from benchmarks.common import ROOT, Report, note
from wellposed.experiments.workspace import Workspace

SAMPLES = 100
COLD = 10  # images that are smoothed without warm starts as well
RADII = (0.1, 0.3, 0.5, 0.75)
SETTINGS = wp.Smoothing(sigma=0.25, samples=10_000, selection=100, alpha=1e-3)


def run() -> None:
    """The first images of the test set, on the network of `configs/mon-mnist.toml`."""
    folder = ROOT / "runs" / "mon-mnist"
    if not folder.is_dir():
        note("runs/mon-mnist is not there: `wellposed run configs/mon-mnist.toml` first")
        return
    work = Workspace.open(folder)
    model, _ = work.trained(next(job for job in work.jobs() if job.name == "monotone"))
    part = work.parts.test.take(torch.arange(SAMPLES))
    x, y = part.floats(), part.labels
    report = Report(
        "smoothing",
        f"Certified accuracy in the 2-norm, first {SAMPLES} test images, monotone n = 87 on MNIST",
        ("method", *[f"r = {r:g}, %" for r in RADII], "CPU s an image", "evaluations a sample"),
    )
    begin = process_time()
    sure = wp.l2_certified(model, x, y)
    seconds = process_time() - begin
    shares = [sure.certified(r) for r in RADII]
    report.row(
        "multiplier, deterministic", *[f"{100 * s:.1f}" for s in shares], seconds / SAMPLES, "-"
    )
    report.metrics |= {f"multiplier_accuracy@{r:g}": s for r, s in zip(RADII, shares, strict=True)}
    smooth = wp.SmoothedClassifier(model, tuple(x.shape[1:]), SETTINGS)
    begin = process_time()
    found = [smooth.certify(image, generator=_noise(i)) for i, image in enumerate(x)]
    seconds = process_time() - begin
    right = torch.tensor([f.label for f in found]) == y
    radius = torch.tensor([f.radius for f in found])
    shares = [float((right & (radius > r)).double().mean()) for r in RADII]
    warm = sum(f.evaluations for f in found) / SAMPLES
    report.row(
        f"smoothing, confidence {1 - SETTINGS.alpha:g}", *[f"{100 * s:.1f}" for s in shares],
        seconds / SAMPLES, warm,
    )  # fmt: skip
    cold = wp.SmoothedClassifier(model, tuple(x.shape[1:]), replace(SETTINGS, warm=False))
    again = [cold.certify(image, generator=_noise(i)) for i, image in enumerate(x[:COLD])]
    if [a.count for a in again] != [f.count for f in found[:COLD]]:
        raise RuntimeError("a warm start changed a count")
    first = sum(f.evaluations for f in found[:COLD]) / COLD
    without = sum(a.evaluations for a in again) / COLD
    report.row(f"the same from zero, first {COLD}", *["-"] * (len(RADII) + 1), without)
    report.metrics |= {
        **{f"smoothing_accuracy@{r:g}": s for r, s in zip(RADII, shares, strict=True)},
        "smoothing_abstained": sum(f.label < 0 for f in found) / SAMPLES,
        "smoothing_proved_samples": sum(f.proved for f in found) / SAMPLES,
        "smoothing_cpu_seconds": seconds / SAMPLES,
        "smoothing_evaluations": warm,
        "smoothing_evaluations_warm_over_cold": first / without,
        "sigma": SETTINGS.sigma,
        "samples": SETTINGS.samples,
        "alpha": SETTINGS.alpha,
        "images": SAMPLES,
    }
    report.finish()


def _noise(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(index)
