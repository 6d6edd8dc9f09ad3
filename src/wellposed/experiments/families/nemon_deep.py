"""A dense NEMON behind strided convolutions."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.nemon import NemonCell
from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, layer
from wellposed.training.settings import Settings


@final
class NemonDeep(Settings):
    """Strided convolutions with ReLU, a dense equilibrium layer and a linear readout.

    Args:
        kind: ``"nemon-deep"``.
        channels: Of each convolution, in order.
        kernel: Side of the kernels.
        stride: Of the convolutions.
        padding: Zeros on each side.
        states: Neurons of the equilibrium layer.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the equilibrium layer.
    """

    kind: Literal["nemon-deep"] = "nemon-deep"
    channels: tuple[int, ...] = (16, 32)
    kernel: int = Field(default=4, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: int = Field(default=1, ge=0)
    states: int = Field(default=100, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"


def build(section: NemonDeep, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The convolutions leave nothing of the image.
    """
    channels, *sides = shape
    front: list[nn.Module] = []
    for out in section.channels:
        front += [
            nn.Conv2d(channels, out, section.kernel, section.stride, section.padding),
            nn.ReLU(),
        ]
        channels = out
        sides = [
            (side + 2 * section.padding - section.kernel) // section.stride + 1 for side in sides
        ]
    if min(sides) < 1:
        raise ConfigError(
            f"`model.channels` {section.channels} with kernel {section.kernel} and stride "
            f"{section.stride} leave nothing of an image of {shape[1]} x {shape[2]} pixels.",
            hint="use fewer convolutions, a smaller stride or more padding.",
        )
    phi = names.activation(section.activation)
    cell = NemonCell(channels * prod(sides), section.states, margin=section.margin, activation=phi)
    return [*front, nn.Flatten(), layer(cell, solve), nn.Linear(section.states, classes)]
