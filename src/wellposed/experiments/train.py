"""Training the networks of an experiment and measuring what they reach on the test part."""

from __future__ import annotations

from math import ceil
from statistics import median
from typing import Any

from torch import nn

from wellposed.errors import CheckpointError
from wellposed.experiments.datasets import examples
from wellposed.experiments.models import parameters
from wellposed.experiments.penalties import make_penalty, penalised
from wellposed.experiments.regularisers import make_regulariser
from wellposed.experiments.retention import retained, teacher_of
from wellposed.experiments.robust import make_objective
from wellposed.experiments.workspace import WEIGHTS, Job, Workspace
from wellposed.files.atomic import read_tensors
from wellposed.training import Examples, Objective, accuracy, fit, save_weights
from wellposed.training.progress import Display
from wellposed.training.tally import counted


def train(work: Workspace, *, resume: bool = False) -> None:
    """Train every network of an experiment; with `resume`, only what is missing.

    Raises:
        InterruptedRunError: The user pressed Ctrl-C.
        CheckpointError: With `resume`: a checkpoint is damaged or of another configuration.
    """
    work.prepare()
    learn = examples(work.parts.train)
    choose = None if work.parts.validation is None else examples(work.parts.validation)
    look = examples(work.parts.test)
    teachers = {teacher_of(job.variant.penalty) for job in work.jobs()}
    for job in sorted(work.jobs(), key=lambda job: job.name not in teachers):
        if resume and _finished(work, job):
            work.say(f"{job.title}: trained already")
            continue
        _train_one(work, job, learn, choose, look, resume=resume)


def _train_one(
    work: Workspace,
    job: Job,
    learn: Examples,
    choose: Examples | None,
    look: Examples,
    *,
    resume: bool,
) -> None:
    model = work.build(job)
    recipe = job.variant.training
    if not resume:
        job.forget()
    steps = ceil(len(learn) / recipe.batch)
    rows = fit(
        model,
        learn,
        recipe,
        job.folder,
        validation=choose,
        penalty=make_penalty(job.variant.penalty, work.parts.shape),
        objective=_objective(work, job, model, len(learn)),
        regulariser=make_regulariser(job.variant.penalty, learn.inputs, job.seed),
        seed=job.seed,
        stamp=work.stamp(job),
        resume=resume,
        display=Display(job.title, recipe.epochs, steps, console=work.console),
    )
    meta = {
        "variant": job.variant.model_dump(mode="json"),
        "seed": job.seed,
        "stamp": work.stamp(job),
        "data": dict(work.parts.source.digests),
        "classes": list(work.parts.source.classes),
    }
    metrics = _final(model, rows, look)
    weights = save_weights(job.folder / WEIGHTS, model, meta)
    job.write("metrics", metrics, weights)
    work.say(f"{job.title}: test accuracy {100 * metrics['test_accuracy']:.2f} %")


def _objective(work: Workspace, job: Job, model: nn.Module, count: int) -> Objective | None:
    variant, teacher = job.variant, work.teacher(job)
    known = None if teacher is None else work.trained(teacher)[0]
    loss = penalised(make_objective(variant.robust), variant.penalty, variant.training, count)
    return retained(model, loss, variant.penalty, known, variant.training.label_smoothing)


def _final(model: nn.Module, rows: list[dict[str, float]], look: Examples) -> dict[str, Any]:
    with counted(model) as tally:
        found = accuracy(model, look)
    counts = [float(n) for solve in tally.forward for n in solve]
    out: dict[str, Any] = {
        "test_accuracy": found,
        "parameters": parameters(model),
        "epochs": len(rows),
        # the first epoch pays for warming up, and other processes may disturb one of them
        "epoch_cpu_seconds": median(row["cpu_seconds"] for row in rows),
        "epoch_seconds": median(row["seconds"] for row in rows),
        "train_loss": rows[-1]["train_loss"],
        "train_accuracy": rows[-1]["train_accuracy"],
    }
    if "validation_accuracy" in rows[-1]:
        out["validation_accuracy"] = rows[-1]["validation_accuracy"]
    if counts:
        out["evaluations"] = sum(counts) / len(counts)
        out["evaluations_max"] = max(counts)
    return out


def _finished(work: Workspace, job: Job) -> bool:
    path = job.folder / WEIGHTS
    if not path.is_file() or job.read("metrics") is None:
        return False
    _, meta = read_tensors(path)
    if meta.get("stamp") != work.stamp(job):
        raise CheckpointError(
            f"`{path}` was trained with another configuration: its digest is "
            f"{str(meta.get('stamp'))[:16]}, expected {work.stamp(job)[:16]}.",
            hint="leave `--resume` out to train anew, or give another `--name` or `--out`.",
        )
    return True
