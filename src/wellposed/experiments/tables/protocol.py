"""The honest protocol: everything chosen on the training part, the test part looked at once.

Recipe and epoch have the smallest held-out loss over folds of the training part. Then networks
from several starts are trained on all of its rows, their mean is made one network (`mean_network`),
its order is proved from its weights, and it is scored on the test part, the threshold at even odds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from wellposed.certify.order import order
from wellposed.errors import ConfigError
from wellposed.experiments.tables.task import Task
from wellposed.nn.ensemble import mean_network
from wellposed.training.fronts import front, member
from wellposed.training.settings import Settings
from wellposed.training.side_by_side import fit_side_by_side
from wellposed.training.table_recipe import TableRecipe

STRIDE = 100_000
"""Between the random numbers of two seeds."""

Tick = Callable[[str], None]
"""Called after every epoch with what is being trained."""


@final
class Protocol(Settings):
    """How recipe and epoch are chosen, and what is trained then.

    Args:
        folds: Parts of the training rows, each held out once.
        starts: Networks whose mean is the result.
        look: Epochs between two looks at the held-out rows.
    """

    folds: int = Field(default=5, ge=2)
    starts: int = Field(default=5, ge=1)
    look: int = Field(default=10, ge=1)


@final
@dataclass(frozen=True)
class Tried:
    """What the folds say about a recipe.

    Args:
        loss: Smallest held-out loss over the looks.
        score: Held-out score at this look: accuracy or mean squared error.
        epochs: Passes until then.
    """

    loss: float
    score: float
    epochs: int


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """What the honest protocol found for one task.

    Args:
        score: On the test part.
        error: Standard error of the score.
        held: Score of the chosen recipe and epoch on the folds by which they were chosen.
        recipe: Place of the chosen recipe in its list.
        epochs: Chosen number of passes.
        tried: What the folds say about every recipe.
        network: The front and the mean of the starts.
        said: Its outputs on the test part, of shape (n,).
    """

    score: float
    error: float
    held: float
    recipe: int
    epochs: int
    tried: tuple[Tried, ...] = field(repr=False)
    network: nn.Sequential = field(repr=False)
    said: Tensor = field(repr=False)


def folds(rows: int, seed: int, parts: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Training and held-out rows of each fold; some rows may be in no held-out part.

    Raises:
        ConfigError: There are fewer rows than folds.
    """
    size = rows // parts
    if size < 1:
        raise ConfigError(f"`folds` is {parts}, expected at most the {rows} rows of training.")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1000 + seed))
    cuts = [(k * size, (k + 1) * size) for k in range(parts)]
    return [(torch.cat([order[:a], order[b:]]), order[a:b]) for a, b in cuts]


def honest(
    recipes: Sequence[TableRecipe],
    tasks: Sequence[Task],
    protocol: Protocol | None = None,
    *,
    first: int = 0,
    tick: Tick | None = None,
) -> list[Outcome]:
    """Outcome of each task; all are trained side by side.

    Args:
        recipes: To choose from.
        tasks: Of equal shapes.
        protocol: The default one if absent.
        first: Seed of the first task; those of the others follow. The starts of all tasks come
            from one stream of random numbers, so that those of a task depend on which others
            there are.
        tick: Called after every epoch; may raise to stop.

    Raises:
        NotCertifiableError: The order of a network is not proved; the test part is not looked at.
        ConfigError: The tasks cannot be trained side by side, or have too few rows.
    """
    rules, says = protocol or Protocol(), tick or _silent
    base = STRIDE * first
    tried = [
        cross_validated(
            recipe, tasks, rules, first=first, seed=base + 1,
            tick=lambda r=r: says(f"recipe {r} of {len(recipes)} on {rules.folds} folds"),
        )
        for r, recipe in enumerate(recipes, 1)
    ]  # fmt: skip
    chosen = [min(range(len(recipes)), key=lambda r: tried[r][k].loss) for k in range(len(tasks))]
    found: dict[int, Outcome] = {}
    for r in sorted(set(chosen)):
        mine = [k for k, own in enumerate(chosen) if own == r]
        stops = [tried[r][k].epochs for k in mine]
        networks = refit(
            recipes[r], [tasks[k] for k in mine], stops, rules.starts,
            seed=base + 100 * (r + 1),
            tick=lambda r=r: says(f"recipe {r + 1} on all rows, {rules.starts} at once"),
        )  # fmt: skip
        for k, net, stop in zip(mine, networks, stops, strict=True):
            task = tasks[k]
            order(net, in_shape=(len(task.signs),)).require(task.signs)
            with torch.no_grad():
                said = net(task.x_test.float()).squeeze(-1)
            found[k] = Outcome(
                task.score(said), task.error(said), tried[r][k].score, r, stop,
                tuple(one[k] for one in tried), net, said,
            )  # fmt: skip
    return [found[k] for k in range(len(tasks))]


def _silent(_what: str) -> None:
    pass


def cross_validated(
    recipe: TableRecipe,
    tasks: Sequence[Task],
    protocol: Protocol,
    *,
    first: int,
    seed: int,
    tick: Callable[[], None] | None = None,
) -> list[Tried]:
    """What the folds of each task say: smallest held-out loss, the score there, and the epoch.

    Raises:
        ConfigError: The recipe ends before the first look.
    """
    if recipe.epochs < protocol.look:
        raise ConfigError(
            f"`epochs` of a recipe is {recipe.epochs}, expected at least `look` = {protocol.look}: "
            "nobody would look at the held-out rows."
        )
    ready, signs = fronts(recipe, tasks)
    count = protocol.folds
    parts = [(k, *pair) for k, t in enumerate(tasks) for pair in folds(len(t.x), first + k, count)]
    inputs = [net(t.x.float()) for net, t in zip(ready, tasks, strict=True)]
    x = torch.stack([inputs[k][kept] for k, kept, _ in parts])
    y = torch.stack([tasks[k].y[kept] for k, kept, _ in parts])
    held_x = torch.stack([inputs[k][held] for k, _, held in parts])
    held_y = torch.stack([tasks[k].y[held] for k, _, held in parts])
    fitted = fit_side_by_side(
        recipe, signs, x, y, [held_x], loss=tasks[0].loss, seed=seed, every=protocol.look, tick=tick
    )
    (said,) = fitted.said
    found = list[Tried]()
    for k, task in enumerate(tasks):
        mine = slice(k * count, (k + 1) * count)
        losses = task.losses(said[:, mine], held_y[mine]).mean((1, 2))
        look = int(losses.argmin())
        score = float(task.marks(said[look, mine], held_y[mine]).mean())
        found.append(Tried(float(losses[look]), score, (look + 1) * protocol.look))
    return found


def refit(
    recipe: TableRecipe,
    tasks: Sequence[Task],
    stops: Sequence[int],
    starts: int,
    *,
    seed: int,
    tick: Callable[[], None] | None = None,
) -> list[nn.Sequential]:
    """Mean network of several starts for each task, trained on all rows of its training part."""
    ready, signs = fronts(recipe, tasks)
    inputs = [net(t.x.float()) for net, t in zip(ready, tasks, strict=True)]
    x = torch.stack(inputs).repeat_interleave(starts, 0)
    y = torch.stack([t.y for t in tasks]).repeat_interleave(starts, 0)
    ends = [stop for stop in stops for _ in range(starts)]
    fitted = fit_side_by_side(
        recipe, signs, x, y, [], loss=tasks[0].loss, seed=seed, stops=ends, tick=tick
    )
    groups = [fitted.networks[k * starts : (k + 1) * starts] for k in range(len(tasks))]
    return [nn.Sequential(*a, mean_network(b)) for a, b in zip(ready, groups, strict=True)]


def fronts(
    recipe: TableRecipe, tasks: Sequence[Task]
) -> tuple[list[nn.Sequential], tuple[int, ...]]:
    """What stands before the networks of each task, and the signs of its outputs.

    Raises:
        ConfigError: The signs differ, so that the networks cannot be trained side by side.
    """
    made = [front(recipe, task.signs, task.x) for task in tasks]
    if len({signs for _, signs in made}) > 1:
        raise ConfigError("The tasks have different pieces; standardise them (`knots = 0`).")
    return [layers for layers, _ in made], made[0][1]


def untrained(recipe: TableRecipe, task: Task, starts: int) -> nn.Sequential:
    """A network of the shape that `refit` returns, to load weights into."""
    (ready,), signs = fronts(recipe, [task])
    return nn.Sequential(*ready, mean_network([member(recipe, signs) for _ in range(starts)]))
