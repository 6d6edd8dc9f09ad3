"""Fixed point networks: contractive layers, dense and on a grid, and a free block."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.contractive import ContractiveCell
from wellposed.cells.contractive_conv import ContractiveConv2d
from wellposed.cells.free import FreeCell
from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, flat, layer
from wellposed.experiments.families.nemon_conv import pooled
from wellposed.gradients.implicit import Implicit
from wellposed.nn.blocks import ConvBlock
from wellposed.training.settings import Settings


@final
class Fpn(Settings):
    """Equilibrium layer with ``||A||_2 <= bound`` (fixed point network), linear readout.

    Args:
        kind: ``"fpn"``.
        states: Neurons of the equilibrium layer.
        bound: Upper bound of the 2-norm, the contraction factor; below 1.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["fpn"] = "fpn"
    states: int = Field(default=87, ge=1)
    bound: float = Field(default=0.9, gt=0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class FpnConv(Settings):
    """Contractive convolutional equilibrium layer, average pooling and a linear readout.

    Args:
        kind: ``"fpn-conv"``.
        channels: Of the state.
        kernel: Odd side of the input and state kernels.
        stride: Of the input convolution.
        padding: What lies outside the image.
        pool: Side of the averaged squares before the readout; 1 for none.
        bound: Upper bound of the 2-norm, the contraction factor; below 1.
        activation: Of the layer.
        dropout: Part of the features before the readout that is dropped in training.
    """

    kind: Literal["fpn-conv"] = "fpn-conv"
    channels: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "zeros"
    pool: int = Field(default=2, ge=1)
    bound: float = Field(default=0.9, gt=0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class FreeConv(Settings):
    """A strided convolution, a free residual block as equilibrium layer, and a linear readout.

    Nothing is guaranteed: samples that do not converge are warned about and kept as they are.

    Args:
        kind: ``"free-conv"``.
        channels: Of the first convolution and of the state.
        kernel: Odd side of the kernels of the block.
        groups: Of the normalisation; a divisor of `channels`.
    """

    kind: Literal["free-conv"] = "free-conv"
    channels: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    groups: int = Field(default=4, ge=1)


def build(
    section: Fpn | FpnConv | FreeConv, solve: Solve, shape: Shape, classes: int
) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The sizes do not go together.
    """
    if isinstance(section, FreeConv):
        return _free(section, solve, shape, classes)
    phi = names.activation(section.activation)
    channels, height, width = shape
    if isinstance(section, Fpn):
        cell = ContractiveCell(prod(shape), section.states, bound=section.bound, activation=phi)
        return [*flat(section.dropout), layer(cell, solve), nn.Linear(section.states, classes)]
    cell = ContractiveConv2d(
        channels,
        section.channels,
        image=(height, width),
        kernel=section.kernel,
        padding=section.padding,
        stride=section.stride,
        bound=section.bound,
        activation=phi,
    )
    sides = [(side - 1) // section.stride + 1 for side in (height, width)]
    *front, readout = pooled(section.channels, sides, section.pool, classes)
    drop: list[nn.Module] = [nn.Dropout(section.dropout)] if section.dropout else []
    return [layer(cell, solve), *front, *drop, readout]


def _free(section: FreeConv, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    c, k = section.channels, section.kernel
    if c % section.groups or k % 2 == 0:
        raise ConfigError(
            f"`model.groups` is {section.groups} and `model.kernel` {k}; expected a divisor of the "
            f"{c} channels and an odd number."
        )
    sides = [((side - 1) // 2 + 1 - 1) // 2 + 1 for side in shape[1:]]
    block = ConvBlock(c, c, kernel=k, stride=2, groups=section.groups)
    free = layer(FreeCell(block, start=(c, *sides)), solve)
    free.on_failure = "warn"
    if isinstance(free.gradient, Implicit):
        # an adjoint equation without a solution nearby must not take thousands of products
        free.gradient = Implicit(max_evaluations=solve.max_evaluations)
    front = [nn.Conv2d(shape[0], c, 5, 2, 2), nn.ReLU()]
    return [*front, free, nn.Flatten(), nn.Linear(c * prod(sides), classes)]
