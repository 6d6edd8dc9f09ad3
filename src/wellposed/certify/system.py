"""What the dual bound needs of a network: products with its couplings, and its activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.core.activations import flat_slope
from wellposed.core.scalar import Activation


@final
@dataclass(frozen=True, eq=False)
class Neurons:
    """The elementwise function of all neurons: one activation, identities among them.

    Args:
        activation: ``phi``.
        linear: Neurons whose function is the identity instead, shape (n,), boolean.
    """

    activation: Activation
    linear: Tensor

    @cached_property
    def kink(self) -> Tensor | None:
        """``s`` where ``phi(v) = max(v, s v)``, shape (n,); `None` for any other function."""
        s = flat_slope(self.activation)
        if s is None:
            return None
        # two numbers alone would meet in float32, where 0.7 is less than 0.7
        return torch.where(self.linear, 1.0, torch.full(self.linear.shape, s, dtype=torch.float64))

    def __call__(self, v: Tensor) -> Tensor:
        """``phi(v)`` for preactivations of shape (..., n)."""
        if self.kink is not None:
            return torch.maximum(v, self.kink * v)
        return torch.where(self.linear, v, self.activation(v))

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Computed bounds of ``phi`` on intervals, not yet rounded outward."""
        low, high = self.activation.image(lower, upper)
        return torch.where(self.linear, lower, low), torch.where(self.linear, upper, high)

    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the difference quotients on intervals."""
        low, high = self.activation.slope_range(lower, upper)
        one = torch.ones_like(low)
        return torch.where(self.linear, one, low), torch.where(self.linear, one, high)


class System(ABC):
    """An equilibrium network ``v = W z + U x + b, z = phi(v)`` seen from its adjoint side."""

    @property
    @abstractmethod
    def n(self) -> int:
        """States."""

    @property
    @abstractmethod
    def d(self) -> int:
        """Inputs."""

    @property
    @abstractmethod
    def bias(self) -> Tensor:
        """``b``, shape (n,), float64."""

    @property
    @abstractmethod
    def neurons(self) -> Neurons:
        """``phi``."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """At least as many as the products in any component of ``W z + U x`` or its adjoint."""

    @abstractmethod
    def pull(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """``(W^T p, U^T p)`` for multipliers of shape (N, n): shapes (N, n) and (N, d)."""

    @abstractmethod
    def reach(self, z: Tensor, x: Tensor) -> Tensor:
        """An upper bound of ``|W| z + |U| x`` for nonnegative (B, n) and (B, d)."""

    @abstractmethod
    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows ``(W_i, U_i)`` of some neurons: shapes (N, n) and (N, d)."""

    @abstractmethod
    def adjoint(self, row: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """An approximate ``p = sigma(lam)``, ``lam = row + W^T p``.

        Args:
            row: Objectives on the states, shape (N, n).
            below: Slope taken where ``lam >= 0``, in [0, 1], shape (N, n).
            above: Slope taken where ``lam < 0``, in [0, 1], shape (N, n).

        Returns:
            Shape (N, n). Nothing that is proved depends on its accuracy.
        """
