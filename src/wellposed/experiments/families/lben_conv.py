"""The convolutional Lipschitz-bounded equilibrium network, pooling and an orthogonal readout."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve
from wellposed.experiments.families.nemon_conv import pooled
from wellposed.nn.lben_conv import LBENConv
from wellposed.nn.stiefel import stiefel
from wellposed.training.settings import Settings


@final
class LbenConv(Settings):
    """Convolutional equilibrium network with a bounded 2-norm Lipschitz constant, to the logits.

    Squares of the outputs are averaged, and a linear layer with orthonormal rows makes logits of
    them. An average over ``pool x pool`` pixels divides a 2-norm by `pool`, so that the equilibrium
    layer is given ``pool gamma`` and the whole has `gamma`.

    Args:
        kind: ``"lben-conv"``.
        channels: Of the state.
        outputs: Channels of what is read out of it, pixel by pixel.
        gamma: Bound of the Lipschitz constant from scaled pixels to logits; 0 for none.
        kernel: Odd side of the free state kernels.
        inject: Odd side of the input kernel.
        stride: Of the input convolution.
        padding: What lies outside the image.
        pool: Side of the averaged squares before the readout; 1 for none.
        margin: Of strong monotonicity; positive.
        activation: Of the layer.
    """

    kind: Literal["lben-conv"] = "lben-conv"
    channels: int = Field(default=32, ge=1)
    outputs: int = Field(default=32, ge=1)
    gamma: float = Field(default=1.0, ge=0)
    kernel: int = Field(default=3, ge=1)
    inject: int = Field(default=5, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "circular"
    pool: int = Field(default=2, ge=1)
    margin: float = Field(default=0.1, gt=0)
    activation: ActivationName = "relu"


def build(section: LbenConv, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: The pooling does not divide the state.
        ShapeError: A kernel is larger than its image.
    """
    channels, height, width = shape
    network = LBENConv(
        channels,
        section.channels,
        section.outputs,
        image=(height, width),
        gamma=section.gamma * section.pool or None,
        kernel=section.kernel,
        inject=section.inject,
        padding=section.padding,
        stride=section.stride,
        margin=section.margin,
        activation=names.activation(section.activation),
        **solve.options(),
    )
    *front, last = pooled(section.outputs, list(network.cell.grid), section.pool, classes)
    assert isinstance(last, nn.Linear)
    return [network, *front, stiefel(last)]
