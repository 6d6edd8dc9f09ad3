"""What follows training: each step is skipped where it was done for the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

from wellposed.errors import NotCertifiableError
from wellposed.experiments import measure
from wellposed.experiments.boxes import certified_by_boxes
from wellposed.experiments.certificates import (
    audit_curves,
    audit_records,
    certify_model,
    estimate_model,
)
from wellposed.experiments.question import NormName, Question
from wellposed.experiments.sections import Verified
from wellposed.experiments.shards import Shard
from wellposed.experiments.verification import Choice, verify_job
from wellposed.experiments.workspace import Job, Workspace
from wellposed.files.atomic import write_json
from wellposed.verify.verdicts import Tier

_POINTS = 40


def certify(work: Workspace, *, again: bool = False) -> None:
    """Prove Lipschitz bounds of every network and measure lower bounds beside them."""

    def step(job: Job, model: nn.Sequential) -> Any:
        proved = certify_model(model, work.parts.shape)
        for norm, why in proved.refused.items():
            work.say(f"{job.title}: not certified in the {norm}-norm: {why}")
        note_refusals(job, "lipschitz", proved.refused)
        records = list(proved.records)
        places = measure.spread_out(work.parts.test, _POINTS)
        records += estimate_model(model, work.parts.test.take(places).floats())
        return [record.to_dict() for record in records]

    _each(work, "certificates", step, again=again)
    if work.config.certified.eps:
        boxes(work, again=again)


def boxes(work: Workspace, *, again: bool = False) -> None:
    """Certify the test images by boxes at the radii of the configuration."""

    def step(job: Job, model: nn.Sequential) -> Any:
        config = work.config
        try:
            found = certified_by_boxes(
                model, work.parts.test, config.certified, config.attacks, seed=job.seed
            )
        except NotCertifiableError as error:
            work.say(f"{job.title}: not certified by boxes: {error.message}")
            note_refusals(job, "boxes", {"max": error.message})
            return None
        note_refusals(job, "boxes", {})
        for eps, accuracy in zip(found["eps"], found["accuracy"], strict=True):
            work.say(f"{job.title}: {100 * accuracy:.2f} % certified by boxes at eps = {eps:g}")
        return found

    _each(work, "boxes", step, again=again)


def attack(work: Workspace, *, again: bool = False) -> None:
    """Draw robustness curves, race the solvers, and describe example images."""
    test = work.parts.test

    def curves(job: Job, model: nn.Sequential) -> Any:
        config = work.config.attacks
        return measure.attack_curves(model, test, config, seed=job.seed, two_norm=config.radii)

    def solvers(job: Job, model: nn.Sequential) -> Any:
        places = measure.spread_out(test, 1000)
        return measure.solver_convergence(model, test.take(places).floats())

    def gallery(job: Job, model: nn.Sequential) -> Any:
        return measure.examples(model, test, classes=work.parts.source.classes, seed=job.seed)

    _each(work, "attacks", curves, again=again)
    _each(work, "solvers", solvers, again=again, first_seed=True)
    _each(work, "examples", gallery, again=again, first_seed=True)


def verify(work: Workspace, *, again: bool = False) -> None:
    """Decide the images of the section `verified`; a network without rules is told and left out.

    Raises:
        InterruptedRunError: The user asked to stop.
    """
    asked = work.config.verified
    questions = [
        Question(radius, norm, Tier.BRANCHING, asked.seconds, asked.nodes, asked.steps)
        for norm, radii in _norms(asked)
        for radius in radii
    ]
    torch.set_num_threads(work.config.threads)
    choice = Choice(samples=asked.samples, again=again)
    for job in work.jobs():
        refused: dict[str, str] = {}
        for question in questions:
            if question.norm in refused:
                continue
            try:
                verify_job(work, job, question, choice, Shard())
            except NotCertifiableError as error:
                refused[question.norm] = error.message
                name = f"{question.norm}-norm"
                work.say(f"{job.title}: not verified in the {name}: {error.message}")
        if questions:
            note_refusals(job, "verification", refused)


def _norms(asked: Verified) -> tuple[tuple[NormName, tuple[float, ...]], ...]:
    return ("max", asked.eps), ("2", asked.radii)


def note_refusals(job: Job, step: str, why: dict[str, str]) -> None:
    """Keep why a step proved nothing, by norm, in ``refusals.json``."""
    write_json(job.folder / "refusals.json", {**(job.read("refusals") or {}), step: why})


def audit(work: Workspace) -> int:
    """Compare what was measured with what was proved; returns the number of comparisons.

    Raises:
        AuditError: An estimate exceeds a certificate, or an attack helps a network.
    """
    made = 0
    for job in work.jobs():
        made += audit_records(job.read("certificates") or [], job.title)
        attacks = job.read("attacks")
        if attacks:
            audit_curves(attacks, job.title)
            made += attacks.get("comparisons", 0)
    work.say(f"audit: {made:,} comparisons of measured with proved, none violated")
    return made


def report(work: Workspace) -> Path:
    """Write ``report.html``."""
    from wellposed.report import write_report

    path = write_report(work.folder)
    work.say(f"report: {path}")
    return path


def _each(
    work: Workspace,
    name: str,
    step: Callable[[Job, nn.Sequential], Any],
    *,
    again: bool,
    first_seed: bool = False,
) -> None:
    torch.set_num_threads(work.config.threads)
    for job in work.jobs():
        if first_seed and job.seed != work.config.seeds[0]:
            continue
        model, weights = work.trained(job)
        if job.done(name, weights) and not again:
            work.say(f"{job.title}: {name} done already")
            continue
        began = process_time()
        job.write(name, step(job, model), weights)
        work.say(f"{job.title}: {name} in {process_time() - began:.1f} CPU s")
