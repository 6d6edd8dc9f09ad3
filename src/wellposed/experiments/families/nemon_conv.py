"""The convolutional NEMON: a state on a grid, average pooling and a linear readout."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.nemon import NemonConv2d
from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, layer
from wellposed.training.settings import Settings


@final
class NemonConv(Settings):
    """Convolutional equilibrium layer, average pooling and a linear readout.

    Args:
        kind: ``"nemon-conv"``.
        channels: Of the state.
        kernel: Odd side of the input and state kernels.
        stride: Of the input convolution.
        padding: What lies outside the image.
        pool: Side of the averaged squares before the readout; 1 for none.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the layer.
    """

    kind: Literal["nemon-conv"] = "nemon-conv"
    channels: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "zeros"
    pool: int = Field(default=2, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"


def build(section: NemonConv, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The pooling does not divide the state.
    """
    channels, height, width = shape
    cell = NemonConv2d(
        channels,
        section.channels,
        image=(height, width),
        kernel=section.kernel,
        padding=section.padding,
        stride=section.stride,
        margin=section.margin,
        activation=names.activation(section.activation),
    )
    sides = [(side - 1) // section.stride + 1 for side in (height, width)]
    return [layer(cell, solve), *pooled(section.channels, sides, section.pool, classes)]


def pooled(channels: int, sides: list[int], pool: int, classes: int) -> list[nn.Module]:
    """Average pooling, if its side is above 1, and a linear readout of a state on a grid.

    Raises:
        ConfigError: The pooling does not divide the state.
    """
    if any(side % pool for side in sides):
        raise ConfigError(
            f"`model.pool` is {pool}, which does not divide the state's sides {sides}.",
            hint="a remainder would be dropped: choose a divisor, or 1 for no pooling.",
        )
    features = channels * prod(side // pool for side in sides)
    front: list[nn.Module] = [nn.AvgPool2d(pool)] if pool > 1 else []
    return [*front, nn.Flatten(), nn.Linear(features, classes)]
