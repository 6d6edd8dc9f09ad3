"""Sets of vectors: boxes with outward rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.spectra import TINY, UNIT
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
