"""Binary networks that retain the strength of a teacher's links: gain under common corruptions.

Fashion-MNIST averaged to 14 x 14, 10,000 training images, 4 epochs. Every network is judged on
5,000 held-out training images and on the test part; the weight of the term is chosen on the former.
Each seed of each variant is kept under `runs/lcr`, and a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import process_time
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F

from benchmarks.common import ROOT, Report, note
from wellposed.attacks.common import (
    BoxBlur,
    Brightness,
    CommonCorruption,
    Contrast,
    ShotNoise,
)
from wellposed.attacks.corruptions import GaussianNoise
from wellposed.attacks.gradient import FGSM
from wellposed.data import load_images, split_validation
from wellposed.errors import CheckpointError
from wellposed.experiments.config import parse
from wellposed.experiments.models import build_model
from wellposed.files.atomic import write_json
from wellposed.nn.binary import BinaryLayer
from wellposed.nn.signs import STE
from wellposed.training import (
    CrossEntropy,
    Examples,
    Objective,
    Ramp,
    Recipe,
    accuracy,
    fit,
    load_weights,
    save_weights,
)
from wellposed.training.annealing import annealed
from wellposed.training.progress import Display
from wellposed.training.retention import (
    FeatureStrength,
    RetentionLoss,
    Strength,
    WeightStrength,
)

SEEDS = tuple(range(5))
RUNS = ROOT / "runs" / "lcr"
HELD_OUT, LEARNT = 5_000, 10_000
RECIPE = Recipe(epochs=4, batch=100, lr=3e-3, schedule="one-cycle", warm_up=0.3, tensorboard=False)
TEACHER = RECIPE.model_copy(update={"epochs": 3})
CORRUPTIONS: Mapping[str, CommonCorruption | GaussianNoise] = {
    "gauss": GaussianNoise(0.2),
    "blur": BoxBlur(3),
    "contrast": Contrast(0.4),
    "bright": Brightness(0.25),
    "shot": ShotNoise(8.0),
}
FGSM_EPS = 0.03
LOSS = 1.0  # of clean accuracy on held-out images that a term may cost, in points
Found = Mapping[str, Mapping[int, Mapping[str, Mapping[str, float]]]]
_KEYS = ("clean", *CORRUPTIONS, "mean", "fgsm")


@dataclass(frozen=True)
class Variant:
    """A binary network and its term.

    Args:
        estimator: Section of the stand-in for the derivative of the sign.
        weight: Of the term; 0 for none.
        strength: What is compared with the teacher.
        seeds: How many of `SEEDS`.
    """

    estimator: Mapping[str, Any]
    weight: float = 0.0
    strength: Strength | None = None
    seeds: int = len(SEEDS)


TANH = {"kind": "ede", "first": 1e-2, "last": 1.0}
VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(TANH),
    "ratio-0.03": Variant(TANH, 0.03),
    "ratio-0.1": Variant(TANH, 0.1),
    "norm-0.1": Variant(TANH, 0.1, WeightStrength()),
    "ste": Variant({"kind": "ste"}, seeds=3),
    "ede": Variant({"kind": "ede"}, seeds=3),
    "reste": Variant({"kind": "reste"}, seeds=3),
}


@dataclass(frozen=True)
class Task:
    """Images of 14 x 14 pixels.

    Args:
        learn: What is learnt.
        choose: Held out of the training part.
        look: The test part.
    """

    learn: Examples
    choose: Examples
    look: Examples


def task() -> Task:
    """The images, averaged over squares of 2 x 2 pixels."""
    source = load_images("fashion_mnist", None)
    train, held_out = split_validation(source.train, HELD_OUT, 0)
    parts = (train.take(torch.arange(LEARNT)), held_out, source.test)
    return Task(*(Examples(F.avg_pool2d(p.floats(), 2), p.labels) for p in parts))


def network(seed: int, **section: Any) -> nn.Sequential:
    """A network of the family, binary or not."""
    model = {"kind": "binary-conv", **section}
    variant = next(iter(parse({"model": model}).resolved().values()))
    return build_model(
        variant, shape=(1, 14, 14), classes=10, mean=(0.2860,), std=(0.3530,), seed=seed
    )


def trained(
    folder: Path, data: Task, recipe: Recipe, seed: int, objective: Objective | None,
    model: nn.Sequential, stamp: str,
) -> nn.Sequential:  # fmt: skip
    """The network of a folder; trained first, or further, if need be."""
    weights = folder / "weights.safetensors"
    if weights.is_file() and load_weights(weights, model)[1].get("stamp") == stamp:
        return model.eval()
    steps = -(-LEARNT // recipe.batch)
    begin = process_time()

    def go(*, resume: bool) -> None:
        fit(
            model, data.learn, recipe, folder, objective=annealed(model, objective), seed=seed,
            stamp=stamp, resume=resume,
            display=Display(folder.parent.name, recipe.epochs, steps, quiet=True),
        )  # fmt: skip

    try:
        go(resume=True)
    except CheckpointError:
        go(resume=False)  # what lies there belongs to another variant of the same name
    save_weights(weights, model, {"stamp": stamp})
    note(f"{folder.parent.name} {folder.name}: trained in {process_time() - begin:.1f} CPU s")
    return model.eval()


def measure(model: nn.Module, part: Examples) -> dict[str, float]:
    """Accuracies on clean, corrupted and attacked images.

    The attack takes the clamp's derivative for that of the sign, whatever the network was trained
    with: estimators that are nearly zero almost everywhere would pass for robustness.
    """
    out = {"clean": accuracy(model, part)}
    for name, corruption in CORRUPTIONS.items():
        images = corruption.apply(part.inputs, torch.Generator().manual_seed(0))
        out[name] = accuracy(model, Examples(images, part.labels))
    out["mean"] = mean(out[name] for name in CORRUPTIONS)
    open_to = deepcopy(model)
    for module in open_to.modules():
        if isinstance(module, BinaryLayer):
            module.estimator = STE()
    found = [
        FGSM(FGSM_EPS).attack(open_to, x, y).correct
        for x, y in zip(part.inputs.split(1000), part.labels.split(1000), strict=True)
    ]
    out["fgsm"] = float(torch.cat(found).double().mean())
    return out


def one(name: str, seed: int, data: Task) -> dict[str, dict[str, float]]:
    """The figures of one seed of one variant; from its file if it is done."""
    variant = VARIANTS[name]
    stamp = _digest([repr(replace(variant, seeds=0)), *_sizes(seed)])
    folder = RUNS / name / f"seed-{seed}"
    path = folder / "figures.json"
    if path.is_file() and (kept := json.loads(path.read_text()))["stamp"] == stamp:
        return kept["figures"]
    objective: Objective | None = None
    if variant.weight:
        model = network(seed, binary=False)
        home = RUNS / "teacher" / f"seed-{seed}"
        teacher = trained(home, data, TEACHER, seed, None, model, _first(seed))
        ramp = Ramp(variant.weight, variant.weight)
        objective = RetentionLoss(
            CrossEntropy(), teacher, ramp, variant.strength or FeatureStrength()
        )
    model = network(seed, estimator=dict(variant.estimator))
    model = trained(folder, data, RECIPE, seed, objective, model, stamp)
    # what training has cost, over all processes that took part in it
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = {"validation": measure(model, data.choose), "test": measure(model, data.look)}
    figures["cost"] = {"cpu_seconds": sum(epoch["cpu_seconds"] for epoch in epochs)}
    write_json(path, {"stamp": stamp, "figures": figures})
    return figures


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and Student's interval of 95 % around it."""
    middle = mean(values)
    if len(values) < 2:
        return middle, float("-inf"), float("inf")
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return middle, middle - half, middle + half


def _first(seed: int) -> str:
    return _digest(["teacher", *_sizes(seed)])


def _sizes(seed: int) -> list[Any]:
    return [repr(RECIPE), repr(TEACHER), HELD_OUT, LEARNT, seed]


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def run() -> None:
    """All variants and seeds; the first seeds of all of them come first."""
    data = task()
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {name: {} for name in VARIANTS}
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            if seed in SEEDS[: variant.seeds]:
                found[name][seed] = one(name, seed, data)
    report = Report(
        "lcr",
        "Binary networks, Fashion-MNIST at 14 x 14, test part, per cent; gains: 95 % interval",
        ("variant", *_KEYS, "gain in mean", "in clean", "CPU s"),
        seeds=SEEDS,
    )
    teacher = [teacher_figures(seed, data) for seed in SEEDS]
    report.row("teacher", *[100 * mean(t[key] for t in teacher) for key in teacher[0]], *["-"] * 3)
    report.metrics |= {f"teacher/{key}": over([t[key] for t in teacher]) for key in teacher[0]}
    for name, seeds in found.items():
        cells = [100 * mean(f["test"][key] for f in seeds.values()) for key in _KEYS]
        gains = {key: _gains(found, name, "test", key) for key in ("mean", "clean", "gauss")}
        told = [_told(gains[key]) for key in ("mean", "clean")] if name != "plain" else ["-"] * 2
        seconds = mean(f["cost"]["cpu_seconds"] for f in seeds.values())
        report.row(name, *cells, *told, seconds)
        for key in _KEYS:
            report.metrics[f"{name}/{key}"] = over([f["test"][key] for f in seeds.values()])
        for key in ("clean", "mean"):
            values = [f["validation"][key] for f in seeds.values()]
            report.metrics[f"{name}/validation_{key}"] = over(values)
        report.metrics[f"{name}/cpu_seconds"] = seconds
        if name != "plain":
            _note_gains(report, name, gains)
    best = chosen(found)
    note(f"chosen on held-out images: {best}")
    _note_gains(
        report, "chosen", {key: _gains(found, best, "test", key) for key in ("mean", "clean")}
    )
    report.metrics["chosen/weight"] = VARIANTS[best].weight
    report.metrics["chosen/seeds"] = len(found[best])
    report.finish()


def teacher_figures(seed: int, data: Task) -> dict[str, float]:
    """What the network in full precision reaches on the test part."""
    folder = RUNS / "teacher" / f"seed-{seed}"
    path = folder / "figures.json"
    if path.is_file():
        return json.loads(path.read_text())
    model = trained(folder, data, TEACHER, seed, None, network(seed, binary=False), _first(seed))
    figures = measure(model, data.look)
    write_json(path, figures)
    return figures


def chosen(found: Found) -> str:
    """The term with the largest gain on held-out images that costs at most a point there."""
    terms = [name for name in found if VARIANTS[name].weight]
    cheap = [n for n in terms if mean(_gains(found, n, "validation", "clean")) >= -LOSS]
    return max(cheap or terms, key=lambda name: mean(_gains(found, name, "validation", "mean")))


def over(values: Sequence[float]) -> dict[str, float]:
    """Mean and deviation of a sample."""
    return {"mean": mean(values), "std": stdev(values), "n": len(values)}


def _gains(found: Found, name: str, part: str, key: str) -> list[float]:
    """Of each seed over the same seed without the term, in points of 100."""
    plain = found["plain"]
    return [100 * (f[part][key] - plain[seed][part][key]) for seed, f in found[name].items()]


def _note_gains(report: Report, name: str, gains: Mapping[str, list[float]]) -> None:
    for key, values in gains.items():
        middle, low, high = interval(values)
        report.metrics |= {
            f"{name}/gain_{key}": middle,
            f"{name}/gain_{key}_lower": low,
            f"{name}/gain_{key}_upper": high,
        }


def _told(values: list[float]) -> str:
    middle, low, high = interval(values)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
