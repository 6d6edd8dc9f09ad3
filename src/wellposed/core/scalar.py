"""The interface of an activation: a scalar function whose difference quotients are bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Activation(ABC):
    """An elementwise function ``phi`` whose difference quotients lie in `slopes`."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def slopes(self) -> tuple[float, float]:
        """Smallest and largest difference quotient over the whole line, rounded outward."""

    @property
    def homogeneous(self) -> bool:
        """Whether ``phi(t v) = t phi(v)`` for ``t >= 0``."""
        return False

    @property
    def monotone(self) -> bool:
        """Whether the function is weakly increasing."""
        return self.slopes[0] >= 0

    @property
    def steepest(self) -> float:
        """Largest absolute slope."""
        return max(abs(s) for s in self.slopes)

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """``phi(v)``."""

    @abstractmethod
    def slope(self, v: Tensor) -> Tensor:
        """``phi'(v)``; at a kink the slope that PyTorch's autograd takes."""

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value on ``[lower, upper]``."""
        return self(lower), self(upper)

    @abstractmethod
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the difference quotients between points of ``[lower, upper]``."""
