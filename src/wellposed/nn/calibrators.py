"""Piecewise linear calibrators: rising pieces of each feature, in front of a monotone network."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from wellposed.errors import ConfigError, ShapeError

Knots = Sequence[Sequence[float]]
"""Of each feature, at least two numbers in rising order."""


@torch.no_grad()
def calibrators(knots: Knots) -> nn.Sequential:
    """One piece for each interval between neighbouring knots of a feature, each rising in it.

    ``p_ik(x) = clamp((x_i - a_ik) / (a_i,k+1 - a_ik), 0, 1)``, shape (..., pieces), those of
    feature 0 first. A weighted sum of the pieces of a feature is any piecewise linear function with
    these knots, constant outside of them, and is monotone if the weights have one sign: the
    calibrators of lattice networks [1]. Every piece rises in its feature, so that what rises in the
    pieces (`piece_signs`) rises in the feature. For a category that is coded 1 to n, the knots
    (1, ..., n) give any function of it.

    The layers are plain ones, `nn.Linear` and `nn.Hardtanh`, which `order` and `lipschitz` know.

    Args:
        knots: Of each feature; fixed, not learned.

    Raises:
        ConfigError: A feature has fewer than two knots, or they do not rise by a finite step.

    References:
        [1] Gupta et al. Monotonic calibrated interpolated look-up tables. JMLR 17(109), 2016.
    """
    _check(knots)
    counts = piece_counts(knots)
    weight = torch.zeros(sum(counts), len(knots), dtype=torch.float64)
    bias = weight.new_zeros(len(weight))
    row = 0
    for i, own in enumerate(knots):
        for a, b in zip(own, own[1:], strict=False):
            weight[row, i] = 1 / (b - a)
            bias[row] = -a / (b - a)
            row += 1
    pieces = nn.Linear(len(knots), len(weight))
    pieces.weight.copy_(weight)
    pieces.bias.copy_(bias)
    if not bool(torch.isfinite(pieces.bias).all() and torch.isfinite(pieces.weight).all()):
        raise ConfigError(
            f"Some knots are too close for {pieces.weight.dtype}: their slope is infinite."
        )
    for p in pieces.parameters():
        p.requires_grad_(False)
    return nn.Sequential(pieces, nn.Hardtanh(0.0, 1.0))


def piece_counts(knots: Knots) -> tuple[int, ...]:
    """How many pieces each feature has."""
    return tuple(len(own) - 1 for own in knots)


def piece_signs(signs: Sequence[int], knots: Knots) -> tuple[int, ...]:
    """Signs of a monotone network for the pieces, from those for the features.

    Args:
        signs: +1, -1 or 0 for each feature.
        knots: Of each feature.

    Raises:
        ShapeError: There are not as many signs as features.
    """
    if len(signs) != len(knots):
        raise ShapeError(f"Got {len(signs)} signs for knots of {len(knots)} features.")
    return tuple(s for s, n in zip(signs, piece_counts(knots), strict=True) for _ in range(n))


def quantile_knots(x: Tensor, most: int) -> tuple[tuple[float, ...], ...]:
    """Knots at the values of each column if there are few of them, at its quantiles otherwise.

    A column with a single value ``v`` gets the knots ``v`` and ``v + 1``, hence one piece that is
    0 on these rows.

    Args:
        x: Rows to take the quantiles of, those of training, shape (n, features).
        most: Largest number of knots of a feature, at least 2.

    Raises:
        ConfigError: `most` is below 2.
        ShapeError: `x` is no table with rows.
    """
    if most < 2:
        raise ConfigError(f"`most` must be at least 2, got {most}.")
    if x.ndim != 2 or not len(x):
        raise ShapeError(f"`x` has shape {tuple(x.shape)}, expected (n, features) with n > 0.")
    places = torch.linspace(0, 1, most, dtype=torch.float64)
    found = list[tuple[float, ...]]()
    for column in x.double().mT:
        values = column.unique()
        if len(values) > most:
            values = column.quantile(places).unique()
        if len(values) == 1:
            values = torch.cat([values, values + 1])
        found.append(tuple(float(v) for v in values))
    return tuple(found)


def _check(knots: Knots) -> None:
    if not knots:
        raise ConfigError("`knots` is empty, expected those of at least one feature.")
    for i, own in enumerate(knots):
        steps = [b - a for a, b in zip(own, own[1:], strict=False)]
        if not steps or not all(step > 0 and isfinite(step) for step in steps):
            raise ConfigError(
                f"The knots of feature {i} are {tuple(own)}, expected at least two finite numbers "
                "in rising order.",
            )
