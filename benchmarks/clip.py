"""Cheap Lipschitz training (CLIP) beside what it competes with, attacked weakly and honestly.

The networks of `configs/clip-*.toml` and `configs/orthogonal-*.toml`, trained first if need be. The
paper's attack and an honest one stand side by side, as do the steepest point that was found, what
is proved, and how many test images are certified.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import ROOT, Report, interleaved, note
from wellposed.attacks import PGD, GaussianNoise, SpherePGD
from wellposed.certify import lipschitz
from wellposed.experiments.certified import certified_radii_2
from wellposed.experiments.regularisers import PairsTerm, make_regulariser
from wellposed.experiments.workspace import Job, Workspace
from wellposed.training import accuracy
from wellposed.training.data import Examples, order
from wellposed.training.evaluation import predictions
from wellposed.training.optimisers import make_optimiser

RUNS = {
    "mnist": ("clip-mnist", "orthogonal-mnist"),
    "fashion": ("clip-fashion", "orthogonal-fashion"),
}
RADII = (0.1, 0.3, 0.5, 1.0)
ATTACKED, SLOPES, STEPS = 1000, 300, 40
COLUMNS = (
    "network", "clean", "noise", "paper PGD", "L2-PGD", "slope", "product",
    *(f"cert. {r:g}" for r in RADII), "s/epoch",
)  # fmt: skip


def run() -> None:
    """Measure every network of both data sets on the test part."""
    report = Report(
        "clip",
        "CLIP: per cent right of 10,000 test images, attacks on the first 1,000",
        COLUMNS,
    )
    for data, names in RUNS.items():
        for work, job in _jobs(names):
            model, _ = work.trained(job)
            found = figures(work, job, model)
            report.metrics |= {f"{data}/{job.name}/{key}": value for key, value in found.items()}
            shown = [found[key] for key in ("clean", "noise", "paper_pgd", "honest_pgd")]
            shown += [found[f"certified@{r:g}"] for r in RADII]
            cells = [f"{100 * value:.1f}" for value in shown]
            slopes = [f"{found[key]:.3g}" for key in ("jacobian", "product")]
            report.row(
                f"{data} {job.name}", *cells[:4], *slopes, *cells[4:],
                f"{found['epoch_cpu_seconds']:.2f}",
            )  # fmt: skip
        report.metrics[f"{data}/epoch_cpu_ratio_clip"] = cost(names[0])
        report.metrics |= steering(data, _open(names[0]), report.metrics)
    report.finish()


def figures(work: Workspace, job: Job, model: nn.Sequential) -> dict[str, float]:
    """What the tables show of one network."""
    test = work.parts.test
    everything = Examples(test.floats(), test.labels)
    x, y = everything.inputs[:ATTACKED], everything.labels[:ATTACKED]
    generator = torch.Generator().manual_seed(job.seed)
    note(f"{work.config.name} {job.title}")
    noisy = predictions(model, GaussianNoise(1.0).apply(x, generator)).argmax(1)
    weak = SpherePGD(2.0, 100, 0.25).attack(model, x, y)
    honest = PGD("2", 2.0, 60, 0.25).attack(model, x, y, generator)
    radii = certified_radii_2(model, everything.inputs, everything.labels)
    shape = work.parts.shape
    product = lipschitz(model, norm_in="2", in_shape=shape, method="product").value
    written = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "clean": accuracy(model, everything),
        "noise": float((noisy == y).double().mean()),
        "paper_pgd": weak.accuracy,
        "honest_pgd": honest.accuracy,
        "jacobian": steepest(model, x[:SLOPES]),
        "product": product,
        "lipschitz": lipschitz(model, norm_in="2", in_shape=shape).value,
        **{f"certified@{r:g}": float((radii > r).double().mean()) for r in RADII},
        "train_accuracy": written[-1]["train_accuracy"],
        "term_weight": written[-1].get("term_weight", 0.0),
        "epoch_cpu_seconds": job.read("metrics")["epoch_cpu_seconds"],
    }


def steering(data: str, work: Workspace, metrics: dict[str, float]) -> dict[str, float]:
    """How far training accuracy ended from its target, and whether weights follow targets."""
    gaps: list[float] = []
    weights: list[tuple[float, float]] = []
    for job in work.jobs():
        penalty = job.variant.penalty
        if job.name.startswith("clip") and isinstance(penalty, PairsTerm):
            gaps.append(abs(metrics[f"{data}/{job.name}/train_accuracy"] - penalty.target))
            if penalty.squared:
                weights.append((penalty.target, metrics[f"{data}/{job.name}/term_weight"]))
    weights.sort()
    falls = all(first[1] > second[1] for first, second in pairwise(weights))
    return {f"{data}/steering_gap": max(gaps), f"{data}/steering_ordered": float(falls)}


def steepest(model: nn.Module, x: Tensor) -> float:
    """The largest 2-norm of the Jacobian at the points `x`."""
    x = x.clone().requires_grad_()
    logits = model(x)
    rows = [
        torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0].flatten(1)
        for k in range(logits.shape[1])
    ]
    return float(torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2).max())


def cost(name: str) -> float:
    """CPU time of a step with the pairs over that of a plain step, taken in turn."""
    work = _open(name)
    job = next(job for job in work.jobs() if job.name == "clip")
    recipe, everything = job.variant.training, work.parts.train
    images = everything.take(torch.arange(min(STEPS * recipe.batch, len(everything))))
    data = Examples(images.floats(), images.labels)
    actions = {}
    for key, section in (("plain", None), ("pairs", job.variant.penalty)):
        model = work.build(job).train()
        optimiser = make_optimiser(model, recipe)
        term = None if section is None else make_regulariser(section, data.inputs, job.seed)

        def steps(model=model, optimiser=optimiser, term=term) -> None:
            # what the training loop does, less its book-keeping
            for rows in order(job.seed, 0, len(data)).split(recipe.batch):
                inputs, labels = (
                    data.inputs.index_select(0, rows),
                    data.labels.index_select(0, rows),
                )
                loss = F.cross_entropy(model(inputs), labels)
                if term is not None:
                    loss = loss + 0.01 * term.term.value(model)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

        actions[key] = steps
    times = interleaved(actions, rounds=15)
    return times["pairs"] / times["plain"]


def _jobs(names: tuple[str, ...]) -> Iterator[tuple[Workspace, Job]]:
    for name in names:
        work = _open(name)
        for job in work.jobs():
            if job.seed == work.config.seeds[0]:
                yield work, job


def _open(name: str) -> Workspace:
    folder = ROOT / "runs" / name
    config = f"configs/{name}.toml"
    command = [sys.executable, "-m", "wellposed.cli", "train", config, "--resume"]
    subprocess.run(command, cwd=ROOT, check=True)
    return Workspace.open(folder)
