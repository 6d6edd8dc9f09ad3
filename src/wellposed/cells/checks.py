"""Checks of arguments and inputs of cells, and slack that keeps bounds true after rounding."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from wellposed.core.activations import Activation, resolvent_range
from wellposed.core.operators import Padding
from wellposed.errors import ConfigError, ShapeError


def check_margin(margin: float) -> float:
    """A logarithmic norm for which an equilibrium is proved to exist."""
    if not margin < 1:
        raise ConfigError(
            f"`margin` must be below 1, got {margin}: it bounds the logarithmic norm of A, and the "
            "equilibrium is only proved to exist below 1.",
            hint="0 is the published choice; 0.9 is already slow to solve.",
        )
    return float(margin)


def check_modulus(margin: float) -> float:
    """A modulus of strong monotonicity for which an equilibrium is proved to exist."""
    if not (margin > 0 and isfinite(margin)):
        raise ConfigError(
            f"`margin` must be positive and finite, got {margin}: the equilibrium is only "
            "proved to exist for a strongly monotone `I - A`.",
            hint="1 is a good choice.",
        )
    return float(margin)


def check_odd(**sides: int) -> None:
    """Kernels with a centre."""
    for name, side in sides.items():
        if side % 2 == 0:
            raise ConfigError(f"`{name}` must be odd, got {side}.")


def check_padding(padding: Padding) -> Padding:
    """What lies outside the image."""
    if padding not in ("zeros", "circular"):
        raise ConfigError(f'`padding` must be "zeros" or "circular", got {padding!r}.')
    return padding


def check_kernel(side: int, image: Sequence[int], name: str) -> None:
    """A kernel that fits on the image it acts on: the input's or the state's, by `name`."""
    if side > min(image):
        raise ShapeError(
            f"The {name} kernel has side {side}, larger than the {name}'s image of "
            f"{image[0]} x {image[1]}.",
            hint="use a smaller kernel, a smaller stride or fewer tiers.",
        )


def check_cone(activation: Activation) -> Activation:
    """An activation with slopes in [0, 1]."""
    low, high = activation.slopes
    if low < 0 or high > 1:
        raise ConfigError(
            f"{activation.name} has slopes in [{low}, {high}]; this cell is only well posed for "
            "slopes in [0, 1].",
            hint="use ReLU, leaky ReLU, tanh, sigmoid, softplus or ELU, or an `InfNormCell` with "
            f"`bound` below {1 / activation.steepest:.3f}.",
        )
    if not resolvent_range(activation)[1] >= 1:
        raise ConfigError(f"{activation.name} is too steep for this cell.")
    return activation


def check_sizes(**sizes: int) -> None:
    """Sizes of at least one."""
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"`{name}` must be at least 1, got {size}.")


def strictly(weight: Tensor) -> float:
    """Factor just above 1 that absorbs the rounding of a row sum and of the weights themselves.

    Row sums of absolute values are pairwise in every kernel used here, with a relative error of a
    few units; the ratio of two weights of the norm costs some more.
    """
    return 1 + 32 * torch.finfo(weight.dtype).eps


def check_input(x: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    """A batch of inputs of the right shape, in the precision of the weights.

    Raises:
        ShapeError: It is not.
    """
    if x.shape[1:] != shape:
        raise ShapeError(
            f"The input has shape {tuple(x.shape)}, expected (batch, "
            f"{', '.join(map(str, shape))}).",
            hint="put `nn.Flatten()` or a reshape before the layer.",
        )
    if x.dtype != weight.dtype and not _castable(x, weight):
        raise ShapeError(
            f"The input has dtype {x.dtype}, the cell's weights {weight.dtype}; both must be "
            "equal.",
            hint=f"convert the input with `.to({weight.dtype})` or the layer with "
            f"`.to({x.dtype})`; only torch.autocast mixes precisions.",
        )


def _castable(x: Tensor, weight: Tensor) -> bool:
    # automatic mixed precision converts between these and leaves float64 alone
    wide = torch.float64 in (x.dtype, weight.dtype)
    return not wide and torch.is_autocast_enabled(x.device.type)
