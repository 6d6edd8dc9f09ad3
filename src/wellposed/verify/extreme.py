"""Inputs that minimise linear functions over a region: where a search looks."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import ShapeError


@final
class Inputs:
    """Minimisers over one box, or over one 2-norm ball with its clipping; computed, not proved.

    Args:
        region: A batch of one region of flat inputs.

    Raises:
        ShapeError: It is not one region.
    """

    def __init__(self, region: Region) -> None:
        if len(region.shape) != 2 or region.shape[0] != 1:
            raise ShapeError(f"The region has shape {region.shape}, expected (1, d).")
        self.region = region
        box = region.box
        self.lower, self.upper = box.lower[0], box.upper[0]
        self._middle, self._reach = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2

    def lowest(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """``min d x`` and a minimiser, for directions of shape (N, d)."""
        x = self.point(d)
        return (d * x).sum(1), x

    def point(self, d: Tensor) -> Tensor:
        """A minimiser of ``d x`` for every row of `d`."""
        match self.region:
            case Box():
                return self._middle - self._reach * d.sign()
            case Ball():
                return self._on_ball(self.region, d)

    def clip(self, x: Tensor) -> Tensor:
        """Inputs moved into the region, up to rounding."""
        match self.region:
            case Box():
                pass
            case Ball():
                step = (x - self.region.centre) / self.region.scale
                size = torch.linalg.vector_norm(step, dim=1, keepdim=True)
                # a little inside: rounding must not push a witness over the rim
                factor = (self.region.radius * (1 - 1e-12) / size).clamp(max=1)
                x = self.region.centre + self.region.scale * step * factor
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def _on_ball(self, ball: Ball, d: Tensor) -> Tensor:
        """``x = clip(c - t scale^2 d)`` with ``t`` such that the radius is used up."""
        centre, scale, radius = ball.centre, ball.scale, ball.radius[:, None]
        w = scale * d
        low, high = (self.lower - centre) / scale, (self.upper - centre) / scale
        t = radius / torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp(min=1e-300)
        step = torch.minimum(torch.maximum(-t * w, low), high)
        for _ in range(4):
            free = step == -t * w
            rest = radius.square() - torch.where(free, 0.0, step).square().sum(1, keepdim=True)
            size = torch.where(free, w, 0.0).square().sum(1, keepdim=True)
            t = torch.maximum(
                t, (rest.clamp(min=0) / size.clamp(min=1e-300)).sqrt().clamp(max=1e30)
            )
            step = torch.minimum(torch.maximum(-t * w, low), high)
        return centre + scale * step
