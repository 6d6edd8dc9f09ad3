"""Boxes: lower and upper bounds of vectors, with outward rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError


@final
@dataclass(frozen=True, eq=False)
class Box:
    """``{ x : lower <= x <= upper }``, componentwise; a leading dimension makes a batch of boxes.

    Args:
        lower: Smallest values; finite.
        upper: Largest values, of the same shape; finite and not below `lower`.

    Raises:
        ShapeError: The shapes differ, a bound is not finite, or a lower bound lies above its
            upper bound.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(
                f"A box needs bounds of one shape, got {tuple(self.lower.shape)} and "
                f"{tuple(self.upper.shape)}."
            )
        if not bool((torch.isfinite(self.lower) & torch.isfinite(self.upper)).all()):
            raise ShapeError("A box needs finite bounds, got NaN or infinity.")
        if not bool((self.lower <= self.upper).all()):
            worst = float((self.lower - self.upper).max())
            raise ShapeError(
                f"A box needs lower <= upper; a lower bound exceeds its upper bound by {worst:.3g}."
            )

    @classmethod
    def around(cls, centre: Tensor, radius: Tensor | float) -> Box:
        """``{ x : |x - centre| <= radius }`` in float64, rounded outward."""
        middle = centre.detach().double()
        reach = torch.as_tensor(radius, dtype=torch.float64)
        slack = 2 * UNIT * (middle.abs() + reach) + TINY
        return cls(middle - reach - slack, middle + reach + slack)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the bounds."""
        return tuple(self.lower.shape)

    @property
    def centre(self) -> Tensor:
        """A point in the middle, float64."""
        return self.lower.double() / 2 + self.upper.double() / 2

    @property
    def radius(self) -> Tensor:
        """``r`` such that ``centre -+ r`` covers the box, float64, rounded up."""
        middle = self.centre
        reach = torch.maximum(self.upper.double() - middle, middle - self.lower.double())
        return reach.clamp(min=0) * (1 + 4 * UNIT) + TINY

    def double(self) -> Box:
        """The same box in float64; exact."""
        return Box(self.lower.detach().double(), self.upper.detach().double())

    def clip(self, low: float, high: float) -> Box:
        """The part of the box inside ``[low, high]``: pixels have a global range.

        Raises:
            ShapeError: No part of it lies there.
        """
        return Box(self.lower.clamp(min=low), self.upper.clamp(max=high))

    def contains(self, x: Tensor) -> Tensor:
        """Whether each sample of `x` lies inside; the first dimension of `x` is the batch."""
        return ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)

    def unsqueeze(self) -> Box:
        """A batch of this one box."""
        return Box(self.lower[None], self.upper[None])

    def select(self, index: Tensor) -> Box:
        """The boxes of some samples; an index may repeat."""
        return Box(self.lower[index], self.upper[index])

    def flatten(self) -> Box:
        """The same batch of boxes in vectors of shape (batch, d)."""
        return Box(self.lower.flatten(1), self.upper.flatten(1))

    @property
    def box(self) -> Box:
        """The box itself: every region has a box around it."""
        return self

    def minimum(self, rows: Tensor) -> Tensor:
        """A proved lower bound of ``min_x rows x`` over each box of the batch.

        ``rows c - |rows| r`` with the centre ``c`` and the radius ``r``, less what rounding may
        have added; the rows are taken as exact.

        Args:
            rows: Shape (batch, R, d) for a batch of boxes of d components.

        Returns:
            Shape (batch, R), float64; -inf where a row is not finite.
        """
        return self.extent(rows)[0]

    def extent(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Proved bounds of ``rows x`` over each box, from below and above; see `minimum`.

        Args:
            rows: Shape (batch, R, d), or (R, d) for the same rows in all samples.
        """
        rows = rows.double()
        middle, reach = self._halves
        value = product(rows, middle)
        spread = outward(product(rows.abs(), reach), rows.shape[-1])
        slack = 2 * UNIT * (value.abs() + spread)
        return below(value - spread, slack), -below(-value - spread, slack)

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        """``c`` and ``r + gamma |c|``: the second bounds spread and rounding at once."""
        middle, radius = self.centre.flatten(1), self.radius.flatten(1)
        gamma = 2 * rounding(middle.shape[-1] + 4)
        return middle, radius + gamma * middle.abs()

    def normalised(self, mean: Tensor, std: Tensor) -> Box:
        """A box around ``(x - mean) / std``, outward by a few units in the last place.

        Args:
            mean: Broadcastable against a sample, such as (channels, 1, 1).
            std: Alike, positive.
        """
        low, slack_low = normalised_value(self.lower, mean, std)
        high, slack_high = normalised_value(self.upper, mean, std)
        return Box(low - slack_low, high + slack_high)


def product(rows: Tensor, x: Tensor) -> Tensor:
    """``rows x`` a sample: rows (batch, R, d) or (R, d), vectors (batch, d), result (batch, R)."""
    if rows.ndim == 2:
        return x @ rows.mT
    return torch.matmul(rows, x[..., None])[..., 0]


def below(value: Tensor, slack: Tensor) -> Tensor:
    """``value - slack`` as a lower bound: -inf where it is not a number."""
    return (value - slack).nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def normalised_value(x: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """``(x - mean) / std`` in float64 and a bound of its error."""
    y = (x.detach().double() - mean.detach().double()) / std.detach().double()
    # one rounding in the difference, one in the quotient
    return y, 8 * UNIT * y.abs() + TINY
