"""Training the seeds of an experiment on a table, each a whole: what is finished stays."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from time import process_time

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from wellposed.errors import NotCertifiableError
from wellposed.experiments.tables.protocol import Outcome, honest
from wellposed.experiments.tables.task import Task
from wellposed.experiments.tables.workspace import MARK, TableWorkspace, Trial
from wellposed.training.bar import Bar
from wellposed.training.checkpoint import save_weights
from wellposed.training.interrupt import InterruptedRunError, StopFlag, first_interrupt


def train(work: TableWorkspace, *, resume: bool = False) -> None:
    """Train every seed; with `resume`, only those that are not finished.

    Raises:
        InterruptedRunError: The user pressed Ctrl-C; finished seeds are kept.
        NotCertifiableError: The order of a network is not proved; nothing of its seed is written.
        CheckpointError: With `resume`: weights are damaged or of another configuration.
    """
    # before anything is written: weights of another configuration must keep theirs
    done = {trial.seed for trial in work.trials() if resume and work.finished(trial)}
    work.prepare()
    for trial in work.trials():
        if trial.seed in done:
            work.say(f"{trial.title}: trained already")
            continue
        trial.forget()
        _train_one(work, trial)


def _train_one(work: TableWorkspace, trial: Trial) -> None:
    table = work.table(trial.seed)
    task, began = Task(table), process_time()
    recipes = work.config.recipes
    total = sum(recipe.epochs for recipe in recipes) + max(recipe.epochs for recipe in recipes)
    with ExitStack() as stack:
        flag = stack.enter_context(first_interrupt())
        watch = _Watch(trial.title, total, work.console, flag)
        stack.enter_context(watch.bar)
        try:
            (found,) = honest(
                recipes, [task], work.config.protocol, first=trial.seed, tick=watch.epoch
            )
        except NotCertifiableError as error:
            named = ", ".join(
                f"`{name}` ({'rising' if sign > 0 else 'falling'})"
                for name, sign in zip(table.train.features, table.signs, strict=True)
                if sign
            )
            raise NotCertifiableError(
                f"{trial.title}: the signs of {named} are not proved, and the test part is not "
                f"looked at. {error.message}",
                hint="weights that are not finite prove nothing: lower `lr` of the recipes.",
            ) from error
        _write(work, trial, task, found, process_time() - began)
        if flag.asked:
            raise InterruptedRunError(
                f"Stopped after {trial.title}, which is finished.",
                hint="the same command with `--resume` goes on with what is missing.",
            )


def _write(work: TableWorkspace, trial: Trial, task: Task, found: Outcome, seconds: float) -> None:
    model, table = task.in_units(found.network), work.table(trial.seed)
    meta = {
        "stamp": work.stamp(trial),
        "seed": trial.seed,
        "table": table.name,
        "data": dict(table.digests),
        "features": list(table.train.features),
        "signs": list(table.signs),
        "output": "target" if task.regression else "logit",
        "recipe": work.config.recipes[found.recipe].model_dump(mode="json"),
        "starts": work.config.protocol.starts,
        "epochs": found.epochs,
    }
    weights = save_weights(trial.weights, model, meta)
    trial.write(
        "choice",
        {
            "recipe": found.recipe,
            "epochs": found.epochs,
            "tried": [asdict(one) for one in found.tried],
            "loss": "squared error" if task.regression else "cross entropy",
            "weights": weights,
        },
    )
    what = "mse" if task.regression else "accuracy"
    metrics = {
        **task.scores(found.said),
        f"folds_{what}": found.held,
        "folds_loss": found.tried[found.recipe].loss,
        "epochs": found.epochs,
        "train_rows": len(task.x),
        "test_rows": len(task.x_test),
        "cpu_seconds": seconds,
    }
    trial.write(MARK, metrics)
    score = (
        f"mean squared error {found.score:.4g}"
        if task.regression
        else (f"accuracy {100 * found.score:.2f} %")
    )
    work.say(
        f"{trial.title}: test {score}; recipe {found.recipe + 1}, {found.epochs} epochs, "
        f"{seconds:.1f} CPU s"
    )


class _Watch:
    """What a person sees of a seed: a bar on a terminal, a line a stage elsewhere."""

    def __init__(self, title: str, total: int, console: Console, flag: StopFlag) -> None:
        self.title, self.console, self.flag = title, console, flag
        self.bar = Bar(title, total, console, (TextColumn("epochs"), TimeElapsedColumn()))
        self._done, self._stage = 0, ""

    def epoch(self, stage: str) -> None:
        """One more epoch of a stage.

        Raises:
            InterruptedRunError: The user asked to stop.
        """
        self._done += 1
        self.bar.update(self._done, stage)
        if not self.bar.shown and stage != self._stage:
            self.console.print(f"{self.title}: {stage}", highlight=False, soft_wrap=True)
        self._stage = stage
        if self.flag.asked:
            raise InterruptedRunError(
                f"{self.title} was stopped while it was trained; seeds that were finished before "
                "are kept.",
                hint="the same command with `--resume` goes on with this seed.",
            )
