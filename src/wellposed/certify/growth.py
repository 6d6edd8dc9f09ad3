"""Boxes grown until their image lies inside them, then shrunk by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.boxes import Box
from wellposed.errors import ConfigError

# of some samples (their indices) and a box each: bounds of the image, infinite without one
Image = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True)
class Search:
    """How long to search for a box that contains its image.

    Args:
        steps: Of growth, at most.
        rounds: Of intersection with the image after that, at most; 0 leaves the first image.
        growth: A violated bound moves so many widths of the image beyond it.
    """

    steps: int = 150
    rounds: int = 20
    growth: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rounds < 0 or not 0 <= self.growth < 1:
            raise ConfigError(
                f"A search needs `steps` and `rounds` >= 0 and `growth` in [0, 1), got {self}."
            )


@final
@dataclass(frozen=True, eq=False)
class Grown:
    """The result of a search for boxes that contain their own image.

    Args:
        box: The image where it was contained, else the last box that was tried.
        start: The box whose image that is.
        proved: Whether the image was strictly contained, shape (B,).
        steps: Steps taken.
    """

    box: Box
    start: Box
    proved: Tensor
    steps: int


def grow(
    image: Image,
    centre: Tensor,
    reach: Tensor,
    search: Search,
) -> Grown:
    """Move violated bounds beyond the image until all are strictly inside.

    The comparison is of computed numbers: `image` has to round outward.

    Args:
        image: The transformer.
        centre: Where boxes grow from, shape (B, n).
        reach: First distance of the bounds from there, a few times too small or large.
        search: How long.
    """
    reach = reach.nan_to_num(0.0, posinf=0.0).clamp(min=0) * 1.05
    # a neuron that no input moves still needs room for rounding
    room = 1e-9 * (1e-6 + centre.abs() + reach.amax(1, keepdim=True))
    lower, upper = centre - reach - room, centre + reach + room
    first, last = lower.clone(), upper.clone()
    proved = torch.zeros(len(centre), dtype=torch.bool)
    active, taken = torch.arange(len(centre)), 0
    while taken < search.steps and len(active):
        taken += 1
        left, right = lower[active], upper[active]
        low, high = image(active, left, right)
        inside = (low > left).all(1) & (high < right).all(1)
        done = active[inside]
        first[done], last[done] = left[inside], right[inside]
        lower[done], upper[done], proved[done] = low[inside], high[inside], True
        extra = search.growth * (high - low) + room[active]
        left = torch.where(low > left, left, low - extra)
        right = torch.where(high < right, right, high + extra)
        keep = ~inside & torch.isfinite(left).all(1) & torch.isfinite(right).all(1)
        lower[active[keep]], upper[active[keep]] = left[keep], right[keep]
        active = active[keep]
    return Grown(Box(lower, upper), Box(first, last), proved, taken)


def shrink(image: Image, box: Box, active: Tensor, rounds: int) -> Box:
    """Some of the boxes, intersected with their images while a round takes a thousandth off.

    Args:
        image: A transformer that is valid on these boxes.
        box: Proved boxes, shape (B, n).
        active: Which to treat.
        rounds: At most.
    """
    lower, upper = box.lower.clone(), box.upper.clone()
    for _ in range(rounds):
        if not len(active):
            break
        left, right = lower[active], upper[active]
        low, high = image(active, left, right)
        low, high = torch.maximum(low, left), torch.minimum(high, right)
        lower[active], upper[active] = low, high
        before, after = (right - left).sum(1), (high - low).sum(1)
        active = active[before - after > 1e-3 * before]
    return Box(lower, upper)
