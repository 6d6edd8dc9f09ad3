"""Balls in the 2-norm and ellipsoids, clipped to a range of inputs, with outward rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.core.boxes import Box, below, normalised_value, product
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError


@final
class Ball:
    """``{ x : || (x - centre) / scale ||_2 <= radius, low <= x <= high }``, a batch of them.

    Args:
        centre: Shape (batch, *shape).
        radius: Shape (batch,), or one number; finite and not negative.
        low: Smallest value of each component, broadcastable against `centre`; none if absent.
        high: Largest value, likewise; both or neither.
        scale: Positive factors of the axes, broadcastable against `centre`; 1 if absent. They make
            the set an ellipsoid, which is what a normalisation of the inputs does to a ball.

    Raises:
        ShapeError: A value is not finite, the radius negative, a factor not positive, or a centre
            lies outside ``[low, high]``.
    """

    def __init__(
        self,
        centre: Tensor,
        radius: Tensor | float,
        low: Tensor | float | None = None,
        high: Tensor | float | None = None,
        *,
        scale: Tensor | float | None = None,
    ) -> None:
        if centre.ndim < 2:
            raise ShapeError(
                f"The centres have shape {tuple(centre.shape)}, expected (batch, ...).",
                hint="`centre[None]` makes a batch of one.",
            )
        self.centre = centre.detach().double()
        self.radius = _as_double(radius, self.centre).expand(len(centre)).clone()
        self.low = None if low is None else _as_double(low, self.centre).expand(centre.shape)
        self.high = None if high is None else _as_double(high, self.centre).expand(centre.shape)
        self.scale = _as_double(1.0 if scale is None else scale, self.centre).expand(centre.shape)
        self._check()

    def _check(self) -> None:
        held = (self.centre, self.radius, self.low, self.high, self.scale)
        if not all(bool(torch.isfinite(t).all()) for t in held if t is not None):
            raise ShapeError("A ball needs finite values, got NaN or infinity.")
        if not bool((self.radius >= 0).all()):
            raise ShapeError(
                f"The radius of a ball must not be negative, got {self.radius.min():g}."
            )
        if not bool((self.scale > 0).all()):
            raise ShapeError(f"The scales of a ball must be positive, got {self.scale.min():g}.")
        if (self.low is None) != (self.high is None):
            raise ShapeError("A ball is clipped by both `low` and `high` or by neither.")
        if self.low is not None and self.high is not None:
            inside = (self.centre >= self.low) & (self.centre <= self.high)
            if not bool(inside.all()):
                raise ShapeError(
                    f"{int((~inside).sum())} components of the centres lie outside [low, high].",
                    hint="give the range in which the inputs live, before or after normalisation "
                    "like the centres.",
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the centres."""
        return tuple(self.centre.shape)

    @cached_property
    def box(self) -> Box:
        """The smallest box around the set, rounded outward."""
        reach = self._radius_like(self.scale) * self.scale
        around = Box.around(self.centre, outward(reach))
        if self.low is None or self.high is None:
            return around
        return Box(torch.maximum(around.lower, self.low), torch.minimum(around.upper, self.high))

    def contains(self, x: Tensor) -> Tensor:
        """Whether each sample of `x` certainly lies inside; no for one within rounding of the rim.

        Args:
            x: Shape (batch, *shape).
        """
        x = x.double()
        distance = _norm(((x - self.centre) / self.scale).flatten(1)) * (1 + 8 * UNIT)
        inside = distance <= self.radius
        if self.low is None or self.high is None:
            return inside
        return inside & Box(self.low, self.high).contains(x)

    def select(self, index: Tensor) -> Ball:
        """The balls of some samples; an index may repeat."""
        return self._map(lambda t: t[index], self.radius[index])

    def flatten(self) -> Ball:
        """The same batch in vectors of shape (batch, d)."""
        return self._map(lambda t: t.flatten(1), self.radius)

    def scaled(self, factor: Tensor | float) -> Ball:
        """The same centres and clipping with `factor` times the radius, rounded up."""
        return self._map(lambda t: t, outward(self.radius * factor))

    def normalised(self, mean: Tensor, std: Tensor) -> Ball:
        """A set around ``(x - mean) / std``: the axes shrink by ``std``, exactly up to rounding.

        Args:
            mean: Broadcastable against a sample, such as (channels, 1, 1).
            std: Alike, positive.
        """
        centre, slack = normalised_value(self.centre, mean, std)
        scale = outward(self.scale / std.detach().double())
        # the computed centre is off by `slack`: the radius pays for it
        off = _norm((slack / scale).flatten(1)) * (1 + 8 * UNIT)
        low = high = None
        if self.low is not None and self.high is not None:
            around = Box(self.low, self.high).normalised(mean, std)
            low, high = around.lower, around.upper
        return Ball(centre, (self.radius + off) * (1 + 2 * UNIT), low, high, scale=scale)

    def minimum(self, rows: Tensor) -> Tensor:
        """A proved lower bound of ``min_x rows x`` over each set of the batch.

        Without clipping ``rows c - radius || [scale] rows ||_2``. With it, for *any* split
        ``rows = g + m`` the minimum is at least that of ``g`` over the ellipsoid plus that of ``m``
        over the box. The best split has ``g = -mu (x - c) / scale^2`` at the minimiser ``x`` and
        ``mu`` its multiplier (Lagrange), which a few steps find; also tried are ``m = 0`` and
        ``g = 0``. Rounding is paid for; the rows are taken as exact.

        Args:
            rows: Shape (batch, R, d) for sets of d components.

        Returns:
            Shape (batch, R), float64; -inf where a row is not finite.
        """
        rows = rows.double()
        rows = rows.expand(len(self.centre), *rows.shape[-2:])
        whole = self._ellipsoid(rows)
        if self.low is None or self.high is None:
            return whole
        best = torch.maximum(whole, self.box.minimum(rows))
        g = self._split(rows)
        m = rows - g
        # the difference was rounded: |rows - g - m| <= UNIT |m|
        lost = 2 * UNIT * outward(product(m.abs(), self._largest), m.shape[-1])
        mixed = self._ellipsoid(g) + self.box.minimum(m)
        return torch.maximum(best, below(mixed - lost, 4 * UNIT * (mixed.abs() + lost)))

    def extent(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Proved bounds of ``rows x`` over each set, from below and above; see `minimum`.

        Args:
            rows: Shape (batch, R, d), or (R, d) for the same rows in all samples.
        """
        return self.minimum(rows), -self.minimum(-rows)

    def _ellipsoid(self, rows: Tensor) -> Tensor:
        """``min rows x`` over the ellipsoid without its clipping, from below."""
        centre = self.centre.flatten(1)
        value = product(rows, centre)
        gamma = 2 * rounding(rows.shape[-1] + 4)
        slack = gamma * outward(product(rows.abs(), centre.abs()), rows.shape[-1])
        reach = self.radius[:, None] * _norm(rows * self.scale.flatten(1)[:, None])
        reach = reach * (1 + 8 * UNIT) + slack
        return below(value - reach, 2 * UNIT * (value.abs() + reach))

    def _split(self, rows: Tensor, steps: int = 8) -> Tensor:
        """A good ``g``: the part of the rows that the ellipsoid answers for."""
        scale = self.scale.flatten(1)[:, None]
        low = ((self.box.lower - self.centre) / self.scale).flatten(1)[:, None]
        high = ((self.box.upper - self.centre) / self.scale).flatten(1)[:, None]
        w, square = rows * scale, self.radius[:, None, None] ** 2
        # x = c + scale clip(-t w): on the free components t^2 |w|^2 = radius^2 - (clipped part)
        t = self.radius[:, None, None] / _norm(w)[..., None]
        step = torch.zeros_like(w)
        for _ in range(steps):
            wish = -t * w
            step = torch.maximum(torch.minimum(wish, high), low)
            free = step == wish
            rest = square - torch.where(free, 0.0, step).square().sum(-1, keepdim=True)
            size = torch.where(free, w, 0.0).square().sum(-1, keepdim=True)
            t = torch.maximum(t, (rest.clamp(min=0) / size.clamp(min=TINY)).sqrt().clamp(max=1e30))
        g = -step / (t * scale)
        return torch.where(torch.isfinite(g), g, 0.0)

    @cached_property
    def _largest(self) -> Tensor:
        """``max |x|`` over the box."""
        return torch.maximum(self.box.lower.abs(), self.box.upper.abs()).flatten(1)

    def _radius_like(self, other: Tensor) -> Tensor:
        return self.radius.reshape(-1, *[1] * (other.ndim - 1))

    def _map(self, change: Callable[[Tensor], Tensor], radius: Tensor) -> Ball:
        low = None if self.low is None else change(self.low)
        high = None if self.high is None else change(self.high)
        return Ball(change(self.centre), radius, low, high, scale=change(self.scale))


def _norm(x: Tensor) -> Tensor:
    """``||x||_2`` over the last dimension, rounded up."""
    return outward(x.square().sum(-1), x.shape[-1]).sqrt() * (1 + 4 * UNIT)


def _as_double(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=like.device).detach()
