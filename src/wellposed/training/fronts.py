"""What stands before a monotone network of a table: scaling, or calibrators and scaling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wellposed.nn.calibrators import calibrators, piece_signs, quantile_knots
from wellposed.nn.monotone import MonotoneResidual, lipschitz_monotone
from wellposed.training.table_recipe import TableRecipe


@torch.no_grad()
def front(
    recipe: TableRecipe, signs: Sequence[int], x: Tensor
) -> tuple[nn.Sequential, tuple[int, ...]]:
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


def member(recipe: TableRecipe, signs: Sequence[int]) -> MonotoneResidual:
    """One untrained network with one output, behind its `front`."""
    widths = (len(signs), *recipe.hidden, 1)
    return lipschitz_monotone(widths, signs, recipe.lipschitz, group_size=recipe.group)
