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

from wellposed.nn.calibrators import calibrators, piece_signs, quantile_knots
from wellposed.nn.monotone import MonotoneResidual, lipschitz_monotone
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
        average: Decay of a running mean of the weights; none for 0.
        free: Factor of the inputs without a sign, which makes slopes in them steeper.
        knots: Most knots of a feature's calibrator; features are standardised instead for 0.
    """

    hidden: tuple[int, ...]
    group: int = 2
    lipschitz: float = 1.0
    lr: float = 1e-2
    batch: int = 0
    epochs: int = 300
    cosine: bool = False
    average: float = 0.0
    free: float = 1.0
    knots: int = 0


@dataclass(frozen=True, eq=False)
class Fitted:
    """Networks that were trained side by side.

    Args:
        said: Outputs on each view, shape (looks, M, k).
        networks: M of them, as they were where each was to stop.
    """

    said: list[Tensor]
    networks: list[MonotoneResidual]


@torch.no_grad()
def front(recipe: Recipe, signs: Sequence[int], x: Tensor) -> tuple[nn.Sequential, tuple[int, ...]]:
    """What stands before the trained network: plain layers that rise in each feature.

    Args:
        recipe: Whose knots, and whose factor of inputs without a sign.
        signs: Of the features.
        x: Rows of training, float64 of shape (n, d); their targets are not looked at.

    Returns:
        The layers, and the signs of their outputs.
    """
    if recipe.knots:
        knots = quantile_knots(x, recipe.knots)
        layers, own = list(calibrators(knots)), piece_signs(signs, knots)
        return nn.Sequential(*layers, _scaling(recipe.free, own)), own
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    scaling = _scaling(recipe.free, signs)
    scaling.bias = nn.Parameter((-mean / std).float() * scaling.weight.diagonal(), False)
    scaling.weight.copy_(scaling.weight / std.float())
    return nn.Sequential(scaling), tuple(signs)


def _scaling(free: float, signs: Sequence[int]) -> nn.Linear:
    layer = nn.Linear(len(signs), len(signs), bias=False)
    layer.weight = nn.Parameter(
        torch.diag(torch.tensor([1.0 if s else free for s in signs])), False
    )
    return layer


def member(recipe: Recipe, signs: Sequence[int]) -> MonotoneResidual:
    """One untrained network with one output, behind its `front`."""
    widths = (len(signs), *recipe.hidden, 1)
    return lipschitz_monotone(widths, signs, recipe.lipschitz, group_size=recipe.group)


def fit(
    recipe: Recipe,
    signs: Sequence[int],
    x: Tensor,
    y: Tensor,
    views: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    every: int = 1,
    stops: Sequence[int] | None = None,
) -> Fitted:
    """Train M networks side by side and keep what they say after every epoch.

    Args:
        recipe: How.
        signs: Of the inputs.
        x: Training rows of each behind `front`, shape (M, n, d).
        y: Targets, shape (M, n).
        views: Rows to look at, each of shape (M, k, d) or (k, d).
        loss: Of outputs and targets, both (n,).
        seed: Of starts and batches.
        every: Epochs between looks.
        stops: Epoch after which each network is taken; the last one if absent.
    """
    torch.manual_seed(seed)
    members, rows = x.shape[:2]
    networks = [member(recipe, signs) for _ in range(members)]
    parameters, buffers = stack_module_state(networks)
    base = deepcopy(networks[0])
    norms = {
        f"{path}.parametrizations.weight.original": norm
        for path, layer in base.named_modules()
        if (norm := vector_norm_of(layer)) is not None
    }

    def one(p: dict[str, Tensor], b: dict[str, Tensor], rows: Tensor) -> Tensor:
        with parametrize.cached():
            return functional_call(base, (p, b), (rows,)).squeeze(-1)

    everyone = torch.vmap(one, (0, 0, 0))
    views = [v.expand(members, -1, -1) for v in views]
    optimiser = torch.optim.Adam(parameters.values(), recipe.lr)
    mean = {k: v.detach().clone() for k, v in parameters.items()}
    batch, last = recipe.batch or rows, recipe.epochs if stops is None else max(stops)
    ends = [last] * members if stops is None else list(stops)
    steps, done = recipe.epochs * -(-rows // batch), 0
    out: list[list[Tensor]] = [[] for _ in views]
    for epoch in range(last):
        order = torch.rand(members, rows).argsort(1)
        for part in order.split(batch, 1):
            if recipe.cosine:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr * (1 + cos(pi * done / steps)) / 2
            xs = x.gather(1, part[:, :, None].expand(-1, -1, x.shape[2]))
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
        shown = mean if recipe.average else parameters
        with torch.no_grad():
            for k in (k for k, end in enumerate(ends) if end == epoch + 1):
                own = {name: value[k].detach() for name, value in shown.items()}
                networks[k].load_state_dict(own, strict=False)
            if (epoch + 1) % every == 0:
                for store, view in zip(out, views, strict=True):
                    store.append(everyone(shown, buffers, view))
    return Fitted([torch.stack(store) for store in out], networks)


def logistic(said: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits."""
    return F.binary_cross_entropy_with_logits(said, y)


def squared(said: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(said, y)


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
