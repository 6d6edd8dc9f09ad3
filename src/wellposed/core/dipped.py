"""Activations that decrease, turn and increase: GELU and SiLU."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from wellposed.core.scalar import Activation

_NEAR = 1e-6  # points nearer than this to a turning point count as if they were beyond it


@dataclass(frozen=True)
class _Dipped(Activation):
    """Decreasing up to `argmin`, then increasing.

    Its derivative falls up to ``-turn``, rises up to ``turn`` and falls again, and takes its
    extreme values, those of `slopes`, at the two points: ``phi''`` has no other zero.
    """

    argmin: ClassVar[float]
    minimum: ClassVar[float]
    turn: ClassVar[float]

    @override
    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        at_lower, at_upper = self(lower), self(upper)
        dips = (lower < self.argmin) & (upper > self.argmin)
        low = torch.where(dips, self.minimum, torch.minimum(at_lower, at_upper))
        return low, torch.maximum(at_lower, at_upper)

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the difference quotients, rounded outward.

        Without ``-turn`` in the interval the derivative is smallest at an end of it, without
        ``turn`` it is largest at one (see `_Dipped`); quotients are means of derivatives.
        """
        least, most = self.slopes
        at_lower, at_upper = self.slope(lower), self.slope(upper)
        slack = 32 * torch.finfo(lower.dtype).eps
        low = (torch.minimum(at_lower, at_upper) - slack).clamp(min=least)
        high = (torch.maximum(at_lower, at_upper) + slack).clamp(max=most)
        low = torch.where(_holds(lower, upper, -self.turn), least, low)
        high = torch.where(_holds(lower, upper, self.turn), most, high)
        # right of its minimiser the function increases
        return torch.where(lower >= self.argmin + _NEAR, low.clamp(min=0), low), high


def _holds(lower: Tensor, upper: Tensor, point: float) -> Tensor:
    return (lower <= point + _NEAR) & (upper >= point - _NEAR)


@final
@dataclass(frozen=True)
class GELU(_Dipped):
    """``v Phi(v)`` with the normal distribution function Phi."""

    name: ClassVar[str] = "gelu"
    argmin: ClassVar[float] = -0.7517915950
    minimum: ClassVar[float] = -0.16997121
    turn: ClassVar[float] = sqrt(2)

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return -0.128905, 1.128905

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return F.gelu(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return torch.special.ndtr(v) + v * torch.exp(-v * v / 2) / sqrt(2 * pi)


@final
@dataclass(frozen=True)
class SiLU(_Dipped):
    """``v / (1 + exp(-v))``."""

    name: ClassVar[str] = "silu"
    argmin: ClassVar[float] = -1.2784645428
    minimum: ClassVar[float] = -0.27846455
    turn: ClassVar[float] = 2.3993572805

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return -0.099841, 1.099841

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return F.silu(v)

    @override
    def slope(self, v: Tensor) -> Tensor:
        s = torch.sigmoid(v)
        return s * (1 + v * (1 - s))
