"""Monotone Lipschitz networks: published and honest protocols side by side, and chains of norms.

*Published protocol*: epoch and threshold are the best ones on the test part. *Last epoch*: the same
networks at their last epoch and threshold 0. *Honest*: that of `wellposed run` on a table, with the
recipes and seeds of `configs/monotone-*.toml`, all seeds trained side by side. How much the
published choice gives away is measured inside the training part, where its folds stand in for the
test part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import ROOT, Report, note
from benchmarks.lmn_chains import chains
from wellposed.data.tabular import has_table, load_table
from wellposed.experiments.tables.config import TableConfig, load_table_config
from wellposed.experiments.tables.protocol import folds, fronts, honest
from wellposed.experiments.tables.task import Task, area
from wellposed.training.side_by_side import fit_side_by_side
from wellposed.training.table_recipe import TableRecipe

PUBLISHED = {
    "heart": TableRecipe(hidden=(4, 4), lr=2e-3, epochs=300),
    "auto_mpg": TableRecipe(hidden=(8, 8), lr=1e-2, batch=64, epochs=1000),
    # 400 epochs at five times the published rate instead of 2,000
    "compas": TableRecipe(hidden=(2, 2), lipschitz=1.3**3, lr=1e-3, batch=256, epochs=400),
}
TARGET = {"heart": (0.896, "accuracy"), "auto_mpg": (7.58, "mse"), "compas": (0.693, "accuracy")}


def configuration(name: str) -> TableConfig:
    """What `wellposed run` does with a set: recipes, protocol and seeds."""
    return load_table_config(ROOT / "configs" / f"monotone-{name.replace('_', '-')}.toml")


def tasks(name: str, seeds: int) -> list[Task]:
    """One task a seed; they differ where the set has no split of its own."""
    return [Task(load_table(name, seed=seed)) for seed in range(seeds)]


def published(
    name: str, every: list[Task], rows: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[list[float], list[float]]:
    """Scores of the published protocol, and of the last epoch.

    Args:
        name: Of the set.
        every: Tasks.
        rows: Of the training part of each task: those to train on, and those to stand in for the
            test part, which is not looked at then.
    """
    recipe = PUBLISHED[name]
    ready, signs = fronts(recipe, every)
    own = [layers(t.x.float()) for layers, t in zip(ready, every, strict=True)]
    if rows is None:
        y = [t.y for t in every]
        views = [layers(t.x_test.float()) for layers, t in zip(ready, every, strict=True)]
        truth = [(t.y_test - t.mean) / t.std for t in every]
    else:
        y = [t.y[kept] for t, (kept, _) in zip(every, rows, strict=True)]
        views = [x[held] for x, (_, held) in zip(own, rows, strict=True)]
        truth = [t.y[held] for t, (_, held) in zip(every, rows, strict=True)]
        own = [x[kept] for x, (kept, _) in zip(own, rows, strict=True)]
    x, seen = torch.stack(own), torch.stack(views)
    fitted = fit_side_by_side(recipe, signs, x, torch.stack(y), [seen], loss=every[0].loss, seed=0)
    (said,) = fitted.said
    best, last = list[float](), list[float]()
    for k, task in enumerate(every):
        marks = task.marks(said[:, k], truth[k]).mean(1)
        last.append(float(marks[-1]))
        if task.regression:
            best.append(float(marks.min()))
        else:
            best.append(max(best_threshold(look, truth[k])[1] for look in said[:, k]))
    return best, last


def best_threshold(said: Tensor, y: Tensor) -> tuple[float, float]:
    """Threshold of a logit with the highest accuracy, and that accuracy; middle of the best ones.

    Args:
        said: Logits, shape (n,).
        y: 0 or 1.
    """
    values, order = said.sort()
    labels = y[order]
    right = torch.cat([labels.sum()[None], labels.sum() + (1 - 2 * labels).cumsum(0)]) / len(y)
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    best = (right >= right.max() - 1e-9).nonzero().flatten()
    k = int(best[(cuts[best] - cuts[best].median()).abs().argmin()])
    return float(cuts[k]), float(right[k])


def given_away(name: str, task: Task) -> list[float]:
    """What the published choice of epoch and threshold gains on each fold of the training part."""
    rows = folds(len(task.x), 0)
    best, last = published(name, [task] * len(rows), rows)
    return [abs(b - a) for a, b in zip(best, last, strict=True)]


def summary(values: list[float]) -> dict[str, float]:
    """Mean, deviation and number."""
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(found.mean()), "std": float(found.std()), "n": len(values)}


def shown(values: dict[str, float]) -> str:
    """Mean and deviation in four digits."""
    return f"{values['mean']:.4g} ± {values['std']:.2g}"


def larger(report: Report) -> None:
    """Blog feedback, lending and the synthetic trigger: three seeds, inner validation."""
    for config in map(configuration, ("blog", "lending", "toy")):
        name, recipe = config.table.name, config.recipes[0]
        if not has_table(name):
            note(f"`{name}` is not there: its rows are left out")
            continue
        scores = list[float]()
        for seed in range(3):
            table = config.table.load(seed)
            task = Task(table)
            kept, held = folds(len(task.x), seed)[0]
            (layers,), signs = fronts(recipe, [task])
            own, tests = layers(task.x.float()), layers(task.x_test.float())
            views = [own[held], tests]
            x, y = own[kept][None], task.y[kept][None]
            fitted = fit_side_by_side(recipe, signs, x, y, views, loss=task.loss, seed=seed)
            said, tested = fitted.said
            look = int(task.losses(said[:, 0], task.y[held]).mean(1).argmin())
            chosen = tested[look, 0]
            right = task.score(chosen) ** 0.5 if task.regression else area(chosen, task.y_test)
            scores.append(right)
        what = "rmse" if name == "blog_feedback" else "auc"
        report.metrics[f"{name}_{what}"] = summary(scores)
        report.row(name, what, "", "", shown(summary(scores)), "", "")


def run() -> None:
    """All tables, and the chains of norms."""
    report = Report(
        "lmn",
        "Monotone Lipschitz networks",
        ("set", "score", "published", "last epoch", "honest", "its folds", "test error",
         "given away", "paper"),
        seeds=tuple(range(10)),
    )  # fmt: skip
    for name, (target, what) in TARGET.items():
        if not has_table(name):
            note(f"`{name}` is not there: its rows are left out")
            continue
        config = configuration(name)
        every = tasks(name, len(config.seeds))
        ours = honest(config.recipes, every, config.protocol)
        for one in ours:
            note(f"{name}: {one}")
        found = [
            summary(scores)
            for scores in (
                *published(name, every),
                [one.score for one in ours],
                [one.held for one in ours],
                [one.error for one in ours],
                given_away(name, every[0]),
            )
        ]
        keys = ("published_protocol", "last_epoch", "inner", "held_out_folds", "standard_error",
                "given_away")  # fmt: skip
        for key, value in zip(keys, found, strict=True):
            report.metrics[f"{name}_{what}_{key}"] = value
        report.metrics[f"{name}_certified"] = len(ours)
        report.row(name, what, *map(shown, found), f"{target:g}")
        note(f"{name}: {[shown(value) for value in found]}")
    larger(report)
    chains(report)
    report.finish()
