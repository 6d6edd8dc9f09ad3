"""Robustness of networks of several runs, on the same images and with the same budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any, final

import torch
from torch import Tensor, nn

from wellposed.attacks.gradient import PGD
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.experiments.boxes import proved_by_boxes
from wellposed.experiments.curves import Sample, attack
from wellposed.experiments.measure import spread_out
from wellposed.experiments.question import NormName, Question, Subject
from wellposed.experiments.workspace import Job, Workspace
from wellposed.verify.cascade import verify

STEP = "alike"
CHUNK = 50  # images that are verified at a time


@final
@dataclass(frozen=True)
class Alike:
    """What every network is given.

    Args:
        samples: Test images, at even distances.
        steps: Of projected gradient descent on the margin, one random start.
        seconds: Of the search over phases, an image.
        seed: Of the random starts.

    Raises:
        ConfigError: A number is out of range.
    """

    samples: int = 200
    steps: int = 20
    seconds: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.steps < 1 or not self.seconds >= 0:
            raise ConfigError(
                f"The common budget of {self.samples} images, {self.steps} steps and "
                f"{self.seconds} s is not one; expected at least one image and one step."
            )

    def __str__(self) -> str:
        return (
            f"{self.samples:,} test images, {self.steps} gradient steps from one random start, at "
            f"most {self.seconds:g} s of search an image"
        )


def measured(
    work: Workspace, job: Job, radii: dict[str, list[float]], budget: Alike
) -> dict[str, Any]:
    """Certified and attacked accuracy of a network; what was measured before is read.

    Args:
        work: Its run.
        job: Trained.
        radii: By norm.
        budget: The same for all networks that are compared.

    Returns:
        ``{"budget", "entries"}``; an entry has a norm, a radius, the share `attacked` that no
        attack reached, and the share `certified` with its `method`, or why it was `refused`.
    """
    model, weights = work.trained(job)
    known: dict[str, Any] = job.read(STEP) or {} if job.done(STEP, weights) else {}
    if known.get("budget") != asdict(budget):
        known = {"budget": asdict(budget), "entries": []}
    torch.set_num_threads(work.config.threads)
    there = {(entry["norm"], entry["eps"]) for entry in known["entries"]}
    test = work.parts.test
    part = test.take(spread_out(test, budget.samples))
    subject = Subject(model, part.floats(), part.labels, (0.0, 1.0))
    for norm, values in radii.items():
        for eps in values:
            if (norm, eps) in there:
                continue
            assert norm in ("max", "2")
            entry = _entry(subject, norm, eps, budget)
            known["entries"].append(entry)
            job.write(STEP, known, weights)
            proved = entry["refused"] or f"{100 * entry['certified']:.1f} % certified"
            work.say(
                f"{work.folder.name}, {job.title}, {norm}-norm {eps:g}: "
                f"{100 * entry['attacked']:.1f} % withstand the attack; {proved} "
                f"({entry['cpu_seconds']:.0f} CPU s)"
            )
    return known


def entry_at(found: dict[str, Any], norm: str, eps: float) -> dict[str, Any] | None:
    """The entry of a norm and a radius."""
    return next((e for e in found["entries"] if (e["norm"], e["eps"]) == (norm, eps)), None)


def _entry(subject: Subject, norm: NormName, eps: float, budget: Alike) -> dict[str, Any]:
    began = process_time()
    model = subject.model
    assert isinstance(model, nn.Module)
    method, generator = PGD(norm, eps, budget.steps), torch.Generator().manual_seed(budget.seed)
    right = attack(model, Sample(subject.x, subject.y), method, generator).correct
    # an image that an attack has reached is certified by nobody
    standing = right.nonzero().flatten().tolist()
    out: dict[str, Any] = {
        "norm": norm, "eps": eps, "samples": len(subject),
        "attacked": len(standing) / len(subject), "certified": None, "method": "", "refused": "",
    }  # fmt: skip
    try:
        proved = _verified(subject, standing, Question(eps, norm, seconds=budget.seconds))
        out |= {"certified": proved / len(subject), "method": "verification"}
    except NotCertifiableError as error:
        out["refused"] = error.message
        if norm == "max":
            out |= _by_boxes(model, *subject.part(standing), eps, len(subject))
    out["cpu_seconds"] = round(process_time() - began, 2)
    return out


def _verified(subject: Subject, places: Sequence[int], question: Question) -> int:
    """How many images are verified.

    Raises:
        NotCertifiableError: No rule covers the network.
    """
    task, count = subject.classifier, 0
    for first in range(0, len(places), CHUNK):
        x, y = subject.part(places[first : first + CHUNK])
        region = question.region(x, subject.domain)
        found = verify(task, x, y, region, budget=question.budget, domain=subject.domain)
        count += found.counts["verified"]
    return count


@torch.no_grad()
def _by_boxes(model: nn.Module, x: Tensor, y: Tensor, eps: float, samples: int) -> dict[str, Any]:
    """What replaces a refusal for networks that verification has no rules for, but boxes have."""
    try:
        count = int(proved_by_boxes(model, x, y, eps).sum())
    except NotCertifiableError:
        return {}
    return {"certified": count / samples, "method": "boxes", "refused": ""}
