"""Training of many small monotone networks at once: one step of all is one batched step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import final

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrize

from wellposed.nn.monotone import MonotoneResidual
from wellposed.nn.vector_norm import vector_norm_of
from wellposed.training.fronts import member
from wellposed.training.table_recipe import TableRecipe


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """Networks that were trained side by side.

    Args:
        said: Outputs on each view, shape (looks, M, k).
        networks: M of them, as they were where each was to stop.
    """

    said: list[Tensor]
    networks: list[MonotoneResidual]


def fit_side_by_side(
    recipe: TableRecipe,
    signs: Sequence[int],
    x: Tensor,
    y: Tensor,
    views: Sequence[Tensor],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    every: int = 1,
    stops: Sequence[int] | None = None,
    tick: Callable[[], None] | None = None,
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
        tick: Called after every epoch; may raise to stop the training.
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
        if tick is not None:
            tick()
    return Fitted([torch.stack(store) for store in out], networks)
