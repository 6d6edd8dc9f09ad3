"""Convolutional monotone networks: one resolution, and several tiers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.base import Cell
from wellposed.cells.monotone_conv import MonotoneConv2d
from wellposed.cells.multitier import MultiTierCell
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, layer
from wellposed.experiments.families.nemon_conv import pooled
from wellposed.nn.equilibrium import Equilibrium
from wellposed.training.settings import Settings

_FIRST_LOOK = 7
"""No splitting is done earlier in training, and a look costs as much as two steps."""


@final
class MonotoneConv(Settings):
    """Convolutional equilibrium layer with a strongly monotone ``I - A``, pooling, linear readout.

    Args:
        kind: ``"monotone-conv"``.
        channels: Of the state.
        kernel: Odd side of the kernels of ``F`` and ``S``.
        inject: Odd side of the input kernel.
        stride: Of the input convolution.
        padding: What lies outside the image.
        pool: Side of the averaged squares before the readout; 1 for none.
        margin: Modulus of strong monotonicity; positive.
        scaled: Whether the metric of monotonicity is free, one number a channel.
        activation: Of the layer.
    """

    kind: Literal["monotone-conv"] = "monotone-conv"
    channels: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    inject: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "zeros"
    pool: int = Field(default=2, ge=1)
    margin: float = Field(default=1.0, gt=0)
    scaled: bool = False
    activation: ActivationName = "relu"


def build(section: MonotoneConv, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The pooling does not divide the state.
        ShapeError: A kernel is larger than its image.
    """
    channels, height, width = shape
    cell = MonotoneConv2d(
        channels,
        section.channels,
        image=(height, width),
        kernel=section.kernel,
        inject=section.inject,
        padding=section.padding,
        stride=section.stride,
        margin=section.margin,
        scaled=section.scaled,
        activation=names.activation(section.activation),
    )
    return [_layer(cell, solve), *pooled(section.channels, list(cell.grid), section.pool, classes)]


@final
class MultiTier(Settings):
    """Equilibrium layer with states at several resolutions, and a linear readout in two steps.

    Args:
        kind: ``"multi-tier"``.
        channels: Of each tier, finest first; each has half the resolution of the one before.
        kernel: Odd side of the kernels of the state.
        inject: Odd side of the input kernels.
        stride: Of the finest tier's input convolution.
        padding: What lies outside the image.
        features: Channels of the readout's first step, a 1 x 1 convolution on the coarsest grid.
        pool: Side of the averaged squares of that grid; 1 for none.
        margin: Modulus of strong monotonicity; positive.
        activation: Of the layer.
    """

    kind: Literal["multi-tier"] = "multi-tier"
    channels: tuple[int, ...] = (16, 32)
    kernel: int = Field(default=3, ge=1)
    inject: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "zeros"
    features: int = Field(default=32, ge=1)
    pool: int = Field(default=1, ge=1)
    margin: float = Field(default=1.0, gt=0)
    activation: ActivationName = "relu"


def build_tiers(section: MultiTier, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The pooling does not divide the coarsest tier.
        ShapeError: The finest tier cannot be halved often enough.
    """
    channels, height, width = shape
    cell = MultiTierCell(
        channels,
        section.channels,
        image=(height, width),
        kernel=section.kernel,
        inject=section.inject,
        padding=section.padding,
        stride=section.stride,
        margin=section.margin,
        activation=names.activation(section.activation),
    )
    # pixels of the finer tiers are channels of the coarsest grid: a linear mixture of them comes
    # before the readout, which would otherwise have most of the parameters
    mixture = nn.Conv2d(cell.whole, section.features, 1, bias=False)
    readout = pooled(section.features, list(cell.grids[-1]), section.pool, classes)
    return [_layer(cell, solve), mixture, *readout]


def _layer(cell: Cell, solve: Solve) -> Equilibrium:
    made = layer(cell, solve)
    if made.stopping is not None:
        made.stopping = replace(made.stopping, first_look=_FIRST_LOOK)
    return made
