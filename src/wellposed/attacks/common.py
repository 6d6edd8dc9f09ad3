"""Common corruptions: what happens to images without anybody meaning harm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError


class CommonCorruption(ABC):
    """Changes images and keeps them in [0, 1]; how far a pixel moves has no bound below 1.

    The kinds are some of ImageNet-C [1]; their strengths are those of small images, and ours.

    References:
        [1] Hendrycks, Dietterich. Benchmarking neural network robustness to common corruptions and
        perturbations. ICLR 2019.
    """

    @abstractmethod
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The corrupted images.

        Args:
            x: Images in [0, 1], shape (batch, channels, height, width).
            generator: Source of randomness, if there is any.
        """


@final
@dataclass(frozen=True)
class ShotNoise(CommonCorruption):
    """``clip(n / photons, 0, 1)`` with ``n`` Poisson of mean ``photons x``.

    Args:
        photons: Expected count of a white pixel, positive.
    """

    photons: float = 8.0

    def __post_init__(self) -> None:
        _check("photons", self.photons, self.photons > 0, "positive")

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (torch.poisson(x * self.photons, generator) / self.photons).clamp(0, 1)


@final
@dataclass(frozen=True)
class BoxBlur(CommonCorruption):
    """The mean over squares; the image is continued by its outermost pixels.

    Args:
        side: Of the squares, odd and positive.
    """

    side: int = 3

    def __post_init__(self) -> None:
        _check("side", self.side, self.side > 0 and self.side % 2 == 1, "odd and positive")

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if x.ndim != 4:
            raise ShapeError(
                f"A blur needs images of shape (batch, channels, height, width), got "
                f"{tuple(x.shape)}."
            )
        padded = F.pad(x, [self.side // 2] * 4, mode="replicate")
        return F.avg_pool2d(padded, self.side, stride=1).clamp(0, 1)


@final
@dataclass(frozen=True)
class Contrast(CommonCorruption):
    """``1/2 + factor (x - 1/2)``: the image fades into grey.

    Args:
        factor: In [0, 1].
    """

    factor: float = 0.4

    def __post_init__(self) -> None:
        _check("factor", self.factor, 0 <= self.factor <= 1, "in [0, 1]")

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (0.5 + self.factor * (x - 0.5)).clamp(0, 1)


@final
@dataclass(frozen=True)
class Brightness(CommonCorruption):
    """``clip(x + shift, 0, 1)``.

    Args:
        shift: In [-1, 1].
    """

    shift: float = 0.25

    def __post_init__(self) -> None:
        _check("shift", self.shift, -1 <= self.shift <= 1, "in [-1, 1]")

    @override
    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (x + self.shift).clamp(0, 1)


def _check(name: str, value: float, good: bool, what: str) -> None:
    if not (isfinite(value) and good):
        raise ConfigError(f"`{name}` must be {what}, got {value}.")
