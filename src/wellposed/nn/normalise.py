"""Normalise: the usual scaling of pixels, inside the network so that radii are in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError


@final
class Normalise(nn.Module):
    """``y = (x - mean) / std`` a channel, for images of shape (batch, channels, height, width).

    Its Lipschitz constant is ``1 / min(std)`` in every p-norm (an equality).

    Args:
        mean: One mean a channel.
        std: One standard deviation a channel, positive.

    Raises:
        ConfigError: The two differ in length, or a deviation is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ConfigError(
                f"`mean` has {len(mean)} values and `std` {len(std)}, expected one of each a "
                "channel."
            )
        if not all(0 < value < float("inf") for value in std):
            raise ConfigError(f"`std` must be positive and finite, got {tuple(std)}.")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1))

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ShapeError(
                f"The images have shape {tuple(x.shape)}, expected (batch, {len(self.mean)}, "
                "height, width)."
            )
        return (x - self.mean) / self.std

    @override
    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
