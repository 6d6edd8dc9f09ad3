"""Corruptions that know nothing of the network: noise and continuous image inversion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.errors import ConfigError


@dataclass(frozen=True)
class Corruption(ABC):
    """Moves an image by at most `eps` in the max norm and keeps it in [0, 1].

    Args:
        eps: Amplitude in pixel units, in [0, 1].
    """

    eps: float

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise ConfigError(f"`eps` must lie in [0, 1], got {self.eps}.")

    @abstractmethod
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The corrupted images.

        Args:
            x: Images in [0, 1], shape (batch, ...).
            generator: Source of randomness, if there is any.
        """


@final
@dataclass(frozen=True)
class UniformNoise(Corruption):
    """``clip(x + eps u, 0, 1)`` with independent ``u`` uniform in [-1, 1]."""

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return (x + self.eps * (2 * noise - 1)).clamp(0, 1)


@final
@dataclass(frozen=True)
class Inversion(Corruption):
    """``(1 - eps) x + eps (1 - x) = x + eps (1 - 2 x)``: the image fades into its negative.

    Continuous in `eps`: the image at 0, uniform grey at 1/2, the negative at 1. No pixel moves by
    more than `eps`, so it is one point of the max-norm ball and a certificate for that ball covers
    it. It never leaves [0, 1]: nothing is clipped.

    The study that this repeats [1] names the corruption; its exact formula was not at hand, so
    this definition is ours, and curves drawn with it are not to be laid over published ones.

    References:
        [1] Jafarpour, Davydov, Proskurnikov, Bullo. Robust implicit networks via non-Euclidean
        contractions. NeurIPS 2021. arXiv 2106.03194.
    """

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + self.eps * (1 - 2 * x)


@final
@dataclass(frozen=True)
class GaussianNoise:
    """``clip(x + sigma n, 0, 1)`` with independent standard normal ``n``: bounded in no norm.

    Args:
        sigma: Standard deviation in pixel units, not negative.

    Raises:
        ConfigError: It is negative or not finite.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < inf:
            raise ConfigError(f"`sigma` must be finite and not negative, got {self.sigma}.")

    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The corrupted images.

        Args:
            x: Images in [0, 1], shape (batch, ...).
            generator: Source of randomness.
        """
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return (x + self.sigma * noise).clamp(0, 1)
