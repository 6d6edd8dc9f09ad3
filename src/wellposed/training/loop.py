"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import final

import torch
from torch import Tensor, nn

from wellposed.errors import ConfigError, NonConvergenceError
from wellposed.training.averaging import Average
from wellposed.training.checkpoint import Position, Trainee
from wellposed.training.data import Examples, order, shifted
from wellposed.training.evaluation import accuracy
from wellposed.training.interrupt import InterruptedRunError, first_interrupt
from wellposed.training.meter import Meter, Sums
from wellposed.training.metrics import MetricsFile
from wellposed.training.objective import CrossEntropy, Objective
from wellposed.training.optimisers import make_optimiser
from wellposed.training.progress import Display
from wellposed.training.recipe import Recipe
from wellposed.training.regulariser import Regulariser
from wellposed.training.schedules import learning_rate
from wellposed.training.tally import counted


@final
@dataclass(frozen=True)
class Penalty:
    """A term of the loss that depends on the weights alone.

    Args:
        function: From the model to a differentiable scalar.
        weight: Factor of the term.
    """

    function: Callable[[nn.Module], Tensor]
    weight: float


def fit(
    model: nn.Module,
    train: Examples,
    recipe: Recipe,
    folder: Path | str,
    *,
    validation: Examples | None = None,
    penalty: Penalty | None = None,
    objective: Objective | None = None,
    regulariser: Regulariser | None = None,
    seed: int = 0,
    stamp: str = "",
    resume: bool = False,
    title: str = "training",
    display: Display | None = None,
) -> list[dict[str, float]]:
    """Train a classifier; the model ends with its final (averaged) weights.

    Everything random is a function of `seed` or of the saved state, so a run that was stopped at
    any moment, be it by SIGKILL, and resumed ends with the same bits (on a CPU with the same
    number of threads).

    Args:
        model: From inputs to logits.
        train: What is learnt.
        recipe: How.
        folder: Gets ``metrics.jsonl`` and ``checkpoint/``.
        validation: Held-out examples, looked at after every epoch; never the test part.
        penalty: Added to the loss.
        objective: The loss; by default cross entropy with the recipe's label smoothing.
        regulariser: A term with a state, which is saved and resumed with the run.
        seed: Of the order of the images, of augmentation and of anything random in the model.
        stamp: Digest of the configuration; a checkpoint of another one is refused.
        resume: Whether to go on from the checkpoint in `folder`, if there is one.
        title: Name to show.
        display: Shows progress.

    Returns:
        The metrics of every epoch.

    Raises:
        ConfigError: There is nothing to train on.
        CheckpointError: The checkpoint is damaged or of another configuration.
        DataError: `folder` cannot be written to.
        InterruptedRunError: The user pressed Ctrl-C; a checkpoint was written.
        NonConvergenceError: The loss is not finite.
    """
    folder = Path(folder)
    if not len(train):
        raise ConfigError("There are no training examples.")
    steps = ceil(len(train) / recipe.batch)
    objective = objective or CrossEntropy(recipe.label_smoothing)
    torch.manual_seed(seed)
    optimiser = make_optimiser(model, recipe)
    average = Average(model, recipe.averaging) if recipe.averaging else None
    trainee = Trainee(model, optimiser, average, stamp, regulariser)
    position = (trainee.load(folder) if resume else None) or Position()
    metrics = MetricsFile(folder, position.rows, tensorboard=recipe.tensorboard)
    metrics.write()
    display = display or Display(title, recipe.epochs, steps)
    if not (resume and position.epoch):
        trainee.save(folder, position)  # a folder that cannot be written to is found out now
    with display, counted(model) as tally, first_interrupt() as flag:
        for epoch in range(position.epoch, recipe.epochs):
            meter = Meter(tally, position.sums)
            run = _Epoch(
                trainee, recipe, train, penalty, objective, meter, display, seed, epoch, steps
            )
            done = position.step
            model.train()
            while done < steps:
                done = run.steps_until_due(done, flag_asked=lambda: flag.asked)
                _check_finite(meter.sums.loss, epoch)
                if done < steps:
                    trainee.save(folder, _here(position, epoch, done, meter))
                if flag.asked and done < steps:
                    raise InterruptedRunError(
                        f"Stopped after step {done} of {steps} in epoch {epoch + 1}; the state is "
                        f"kept in `{folder}`.",
                        hint="run the same command with `--resume` to go on.",
                    )
            row = {"epoch": epoch + 1, **meter.row(), "lr": run.rate(steps - 1)}
            if validation is not None:
                row |= _validate(model, average, validation, objective)
                tally.clear()
            if regulariser is not None:
                row |= regulariser.epoch_over(model, row)
                tally.clear()
            metrics.add(row)
            position = Position(epoch + 1, 0, Sums(), [*position.rows, row])
            trainee.save(folder, position)
            display.epoch(row)
            if flag.asked and epoch + 1 < recipe.epochs:
                raise InterruptedRunError(
                    f"Stopped after epoch {epoch + 1} of {recipe.epochs}; the state is kept in "
                    f"`{folder}`.",
                    hint="run the same command with `--resume` to go on.",
                )
    metrics.close()
    if average is not None:
        average.put()
    return position.rows


@dataclass(eq=False)
class _Epoch:
    trainee: Trainee
    recipe: Recipe
    data: Examples
    penalty: Penalty | None
    objective: Objective
    meter: Meter
    display: Display
    seed: int
    epoch: int
    steps: int

    def __post_init__(self) -> None:
        self.order = order(self.seed, self.epoch, len(self.data))
        self.weights = [p for p in self.trainee.model.parameters() if p.requires_grad]

    def rate(self, step: int) -> float:
        """The learning rate of a step of this epoch."""
        total = self.recipe.epochs * self.steps
        return learning_rate(self.recipe, self.epoch * self.steps + step, total, self.steps)

    def steps_until_due(self, first: int, flag_asked: Callable[[], bool]) -> int:
        """Steps from `first` on, until a checkpoint is due, the user stops or the epoch ends."""
        recipe, display = self.recipe, self.display
        cpu, wall = process_time(), perf_counter()
        deadline = monotonic() + recipe.checkpoint_every
        last = min(first + recipe.checkpoint_steps, self.steps) if recipe.checkpoint_steps else None
        step = first
        while step < self.steps:
            try:
                loss = self.step(step)
            except (ConfigError, NonConvergenceError) as error:
                # a layer may notice weights that are not numbers before the loss is looked at
                if all(bool(p.isfinite().all()) for p in self.weights):
                    raise
                raise _diverged("the weights became NaN or infinite", self.epoch) from error
            step += 1
            if display.due:
                display.step(self.epoch, step, float(loss))
            if step == last or flag_asked() or monotonic() >= deadline:
                break
        sums = self.meter.fold()
        sums.cpu_seconds += process_time() - cpu
        sums.seconds += perf_counter() - wall
        return step

    def step(self, step: int) -> Tensor:
        """One update of the weights; returns the loss without the penalty."""
        recipe, trainee = self.recipe, self.trainee
        rows = self.order[step * recipe.batch : (step + 1) * recipe.batch]
        inputs = self.data.inputs.index_select(0, rows)
        labels = self.data.labels.index_select(0, rows)
        if recipe.shift:
            number = (self.seed * 1_000_003 + self.epoch) * 1_000_003 + step
            generator = torch.Generator().manual_seed(number % (1 << 63))
            inputs = shifted(inputs, recipe.shift, generator)
        done = (self.epoch * self.steps + step) / (recipe.epochs * self.steps)
        loss, logits = self.objective.loss(trainee.model, inputs, labels, done)
        extra = None
        if self.penalty is not None:
            extra = self.penalty.weight * self.penalty.function(trainee.model)
        if trainee.regulariser is not None:
            term = trainee.regulariser.extra(trainee.model)
            if term is not None:
                extra = term if extra is None else extra + term
        total = loss if extra is None else loss + extra
        trainee.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.weights, recipe.clip)
        rate = self.rate(step)
        for group in trainee.optimiser.param_groups:
            group["lr"] = rate
        trainee.optimiser.step()
        if trainee.average is not None:
            trainee.average.update()
        self.meter.add(loss, extra, logits, labels)
        return loss


def _here(position: Position, epoch: int, step: int, meter: Meter) -> Position:
    return Position(epoch, step, meter.fold(), position.rows)


def _validate(
    model: nn.Module, average: Average | None, validation: Examples, objective: Objective
) -> dict[str, float]:
    with nullcontext() if average is None else average.applied():
        return {
            "validation_accuracy": accuracy(model, validation),
            **objective.watched(model, validation),
        }


def _check_finite(loss: float, epoch: int) -> None:
    if not isfinite(loss):
        raise _diverged(f"the sum of the losses is {loss}", epoch)


def _diverged(what: str, epoch: int) -> NonConvergenceError:
    return NonConvergenceError(
        f"Training diverged in epoch {epoch + 1}: {what}, expected finite numbers.",
        hint="lower `training.lr`, or set `training.clip`; the last checkpoint is intact.",
    )
