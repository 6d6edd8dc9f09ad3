"""Training of many small monotone networks at once, and scores of what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.nn.utils import parametrize

from wellposed.nn.monotone import lipschitz_monotone
from wellposed.nn.vector_norm import vector_norm_of


@dataclass(frozen=True)
class Recipe:
    """How one set is learned.

    Args:
        hidden: Widths of the hidden layers.
        group: Of the sorting.
        lipschitz: Constant of the body.
        lr: Of Adam.
        batch: Rows a step; all of them for 0.
        epochs: Passes.
        cosine: Whether the learning rate falls to 0.
        decay: Weight decay.
        average: Decay of a running mean of the weights; none for 0.
        learned: Whether budgets are learned.
        free: Factor of the inputs without a sign, which makes slopes in them steeper.
        noise: Deviation of normal noise on the inputs of training.
    """

    hidden: tuple[int, ...]
    group: int = 2
    lipschitz: float = 1.0
    lr: float = 1e-2
    batch: int = 0
    epochs: int = 300
    cosine: bool = False
    decay: float = 0.0
    average: float = 0.0
    learned: bool = False
    free: float = 1.0
    noise: float = 0.0


def member(recipe: Recipe, signs: Sequence[int]) -> nn.Module:
    """One untrained network with one output."""
    widths = (len(signs), *recipe.hidden, 1)
    return lipschitz_monotone(
        widths, signs, recipe.lipschitz, group_size=recipe.group, learned_budgets=recipe.learned
    )


def fit(
    recipe: Recipe,
    signs: Sequence[int],
    x: Tensor,
    y: Tensor,
    views: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    every: int = 1,
) -> list[Tensor]:
    """Train M networks side by side and return what they say after every epoch.

    Args:
        recipe: How.
        signs: Of the features.
        x: Training rows of each, shape (M, n, d).
        y: Targets, shape (M, n).
        views: Rows to look at, each of shape (M, k, d) or (k, d).
        loss: Of outputs and targets, both (n,).
        seed: Of starts and batches.
        every: Epochs between looks.

    Returns:
        Outputs on each view, shape (looks, M, k).
    """
    torch.manual_seed(seed)
    members, rows = x.shape[:2]
    nets = [member(recipe, signs) for _ in range(members)]
    parameters, buffers = stack_module_state(nets)
    base = deepcopy(nets[0])
    norms = {
        f"{path}.parametrizations.weight.original": norm
        for path, layer in base.named_modules()
        if (norm := vector_norm_of(layer)) is not None and norm.budgets is None
    }

    def one(p: dict[str, Tensor], b: dict[str, Tensor], rows: Tensor) -> Tensor:
        with parametrize.cached():
            return functional_call(base, (p, b), (rows,)).squeeze(-1)

    everyone = torch.vmap(one, (0, 0, 0))
    factor = torch.tensor([1.0 if s else recipe.free for s in signs])
    x, views = x * factor, [(v * factor).expand(members, -1, -1) for v in views]
    optimiser = torch.optim.AdamW(parameters.values(), recipe.lr, weight_decay=recipe.decay)
    mean = {k: v.detach().clone() for k, v in parameters.items()}
    batch = recipe.batch or rows
    steps, done = recipe.epochs * -(-rows // batch), 0
    out: list[list[Tensor]] = [[] for _ in views]
    for epoch in range(recipe.epochs):
        order = torch.rand(members, rows).argsort(1)
        for part in order.split(batch, 1):
            if recipe.cosine:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr * (1 + cos(pi * done / steps)) / 2
            xs = x.gather(1, part[:, :, None].expand(-1, -1, x.shape[2]))
            if recipe.noise:
                xs = xs + recipe.noise * torch.randn_like(xs)
            said = everyone(parameters, buffers, xs)
            optimiser.zero_grad(set_to_none=True)
            torch.vmap(loss)(said, y.gather(1, part)).sum().backward()
            optimiser.step()
            done += 1
            with torch.no_grad():
                for name, norm in norms.items():
                    parameters[name].copy_(torch.vmap(norm)(parameters[name]))
                if recipe.average:
                    # as many steps as there were, until there are enough
                    keep = min(recipe.average, done / (done + 10))
                    for name, value in parameters.items():
                        mean[name].lerp_(value.detach(), 1 - keep)
        if (epoch + 1) % every == 0:
            shown = mean if recipe.average else parameters
            with torch.no_grad():
                for store, view in zip(out, views, strict=True):
                    store.append(everyone(shown, buffers, view))
    return [torch.stack(store) for store in out]


def logistic(said: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits."""
    return F.binary_cross_entropy_with_logits(said, y)


def squared(said: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(said, y)


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Columns with mean 0 and deviation 1 in the training rows, float32."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    return [((part - mean) / std).float() for part in (train, *others)]


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


def accuracy(said: Tensor, y: Tensor, threshold: float = 0.0) -> float:
    """Share of rows on the right side of the threshold."""
    return float(((said > threshold) == (y > 0.5)).double().mean())


def area(said: Tensor, y: Tensor) -> float:
    """Area under the receiver operating characteristic, ties counted half."""
    _, place, count = said.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place].double()
    ones = y > 0.5
    positive, negative = int(ones.sum()), int((~ones).sum())
    return float((rank[ones].sum() - positive * (positive + 1) / 2) / (positive * negative))
