"""The honest protocol: everything chosen on the training part, the test part looked at once.

Recipe and epoch have the smallest held-out loss over folds of the training part. Then networks
from several starts are trained on all of its rows, their mean is made one network (`mean_network`),
its order is proved from its weights, and it is scored on the test part, the threshold at even odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lmn_training import Recipe, accuracy, fit, front, logistic, squared
from wellposed.certify.order import order
from wellposed.data.tabular import TabularSet
from wellposed.nn.ensemble import mean_network

FOLDS = STARTS = 5
LOOK = 10


class Task:
    """A table made ready: targets are standardised if they are numbers."""

    def __init__(self, table: TabularSet) -> None:
        self.regression = table.task == "regression"
        self.signs = table.signs
        self.x, self.x_test = table.train.x, table.test.x
        y, self.y_test = table.train.y.float(), table.test.y.float()
        self.mean, self.std = (float(y.mean()), float(y.std())) if self.regression else (0.0, 1.0)
        self.y = (y - self.mean) / self.std
        self.loss = squared if self.regression else logistic

    def losses(self, said: Tensor, y: Tensor) -> Tensor:
        """Loss of each row; of a number in its own units."""
        if self.regression:
            return (self.std * (said - y)).square()
        return F.binary_cross_entropy_with_logits(said, y.expand_as(said), reduction="none")

    def marks(self, said: Tensor, y: Tensor) -> Tensor:
        """Squared error of each row in its own units, or whether it is on the right side of 0."""
        if self.regression:
            return (self.std * (said - y)).square()
        return ((said > 0) == (y > 0.5)).float()

    def score(self, said: Tensor, threshold: float = 0.0) -> float:
        """Mean squared error or accuracy on the test part."""
        if self.regression:
            return float((self.std * said + self.mean - self.y_test).square().mean())
        return accuracy(said, self.y_test, threshold)

    def error(self, said: Tensor) -> float:
        """Standard error of the score as an estimate from so many test rows."""
        marks = self.marks(said, (self.y_test - self.mean) / self.std)
        return float(marks.std()) / len(marks) ** 0.5


@dataclass(frozen=True)
class Outcome:
    """What the honest protocol found for one task.

    Args:
        score: On the test part.
        error: Standard error of the score.
        held: Score of the chosen recipe and epoch on the folds by which they were chosen.
        recipe: Place of the chosen recipe in its list.
        epochs: Chosen number of passes.
    """

    score: float
    error: float
    held: float
    recipe: int
    epochs: int


def folds(rows: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Training and held-out rows of each fold; some rows may be in no held-out part."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1000 + seed))
    size = rows // FOLDS
    cuts = [(k * size, (k + 1) * size) for k in range(FOLDS)]
    return [(torch.cat([order[:a], order[b:]]), order[a:b]) for a, b in cuts]


def honest(recipes: Sequence[Recipe], tasks: Sequence[Task]) -> list[Outcome]:
    """Outcome of each task; the seed of a task is its place.

    Raises:
        NotCertifiableError: The order of a network is not proved.
    """
    tried = [cross_validated(recipe, tasks) for recipe in recipes]
    chosen = [min(range(len(recipes)), key=lambda r: tried[r][k][0]) for k in range(len(tasks))]
    found: dict[int, Outcome] = {}
    for r in sorted(set(chosen)):
        mine = [k for k, own in enumerate(chosen) if own == r]
        stops = [tried[r][k][2] for k in mine]
        networks = refit(recipes[r], [tasks[k] for k in mine], stops, seed=100 * (r + 1))
        for k, net, stop in zip(mine, networks, stops, strict=True):
            task = tasks[k]
            order(net, in_shape=(len(task.signs),)).require(task.signs)
            with torch.no_grad():
                said = net(task.x_test.float()).squeeze(-1)
            found[k] = Outcome(task.score(said), task.error(said), tried[r][k][1], r, stop)
    return [found[k] for k in range(len(tasks))]


def cross_validated(recipe: Recipe, tasks: Sequence[Task]) -> list[tuple[float, float, int]]:
    """Smallest held-out loss of each task, the score there, and the epoch."""
    first = tasks[0]
    ready, signs = fronts(recipe, tasks)
    parts = [(k, *pair) for k, t in enumerate(tasks) for pair in folds(len(t.x), k)]
    inputs = [net(t.x.float()) for net, t in zip(ready, tasks, strict=True)]
    x = torch.stack([inputs[k][kept] for k, kept, _ in parts])
    y = torch.stack([tasks[k].y[kept] for k, kept, _ in parts])
    held_x = torch.stack([inputs[k][held] for k, _, held in parts])
    held_y = torch.stack([tasks[k].y[held] for k, _, held in parts])
    (said,) = fit(recipe, signs, x, y, [held_x], first.loss, seed=1, every=LOOK).said
    found = list[tuple[float, float, int]]()
    for k, task in enumerate(tasks):
        mine = slice(k * FOLDS, (k + 1) * FOLDS)
        losses = task.losses(said[:, mine], held_y[mine]).mean((1, 2))
        look = int(losses.argmin())
        score = float(task.marks(said[look, mine], held_y[mine]).mean())
        found.append((float(losses[look]), score, (look + 1) * LOOK))
    return found


def refit(
    recipe: Recipe, tasks: Sequence[Task], stops: Sequence[int], seed: int
) -> list[nn.Sequential]:
    """Mean network of several starts for each task, trained on all rows of its training part."""
    ready, signs = fronts(recipe, tasks)
    inputs = [net(t.x.float()) for net, t in zip(ready, tasks, strict=True)]
    x = torch.stack(inputs).repeat_interleave(STARTS, 0)
    y = torch.stack([t.y for t in tasks]).repeat_interleave(STARTS, 0)
    ends = [stop for stop in stops for _ in range(STARTS)]
    networks = fit(recipe, signs, x, y, [], tasks[0].loss, seed, stops=ends).networks
    groups = [networks[k * STARTS : (k + 1) * STARTS] for k in range(len(tasks))]
    return [nn.Sequential(*a, mean_network(b)) for a, b in zip(ready, groups, strict=True)]


def fronts(recipe: Recipe, tasks: Sequence[Task]) -> tuple[list[nn.Sequential], tuple[int, ...]]:
    """What stands before the networks of each task, and the signs of its outputs.

    Raises:
        ValueError: The signs differ, so that the networks cannot be trained side by side.
    """
    made = [front(recipe, task.signs, task.x) for task in tasks]
    if len({signs for _, signs in made}) > 1:
        raise ValueError("The tasks have different pieces; standardise them (`knots=0`).")
    return [layers for layers, _ in made], made[0][1]
