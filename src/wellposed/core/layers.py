"""Linear layers of `torch.nn` as operators on inputs of a given shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from wellposed.core.convolutions import GeneralConvolution, convolution
from wellposed.core.operators import Dense, Operator
from wellposed.core.transposed import Adjoint
from wellposed.errors import NotCertifiableError, ShapeError


@singledispatch
def from_module(module: nn.Module, in_shape: Sequence[int]) -> Operator:
    """What a linear layer does to one input, without its bias.

    Args:
        module: `nn.Linear`, `nn.Conv1d` to `nn.Conv3d`, `nn.ConvTranspose1d` to
            `nn.ConvTranspose3d`; the weights stay attached, so that norms can be differentiated.
        in_shape: Shape of one input, (channels, sides) for convolutions.

    Raises:
        NotCertifiableError: The module is none of them.
        ShapeError: The input does not fit the layer.
    """
    del in_shape
    raise NotCertifiableError(
        f"{type(module).__name__} is not a linear layer with an operator here.",
        hint="register one with `@wellposed.core.layers.from_module.register`.",
    )


@from_module.register
def _linear(module: nn.Linear, in_shape: Sequence[int]) -> Operator:
    if tuple(in_shape) != (module.in_features,):
        raise ShapeError(
            f"A linear layer of {module.in_features} features cannot be applied to one vector of "
            f"shape {tuple(in_shape)}.",
            hint="on inputs with more dimensions it acts on each row apart; give one row.",
        )
    return Dense(module.weight)


@from_module.register(nn.Conv1d)
@from_module.register(nn.Conv2d)
@from_module.register(nn.Conv3d)
def _convolution(module: Any, in_shape: Sequence[int]) -> Operator:
    _check(module, in_shape)
    return convolution(
        module.weight,
        in_shape[1:],
        padding=module.padding,
        outside=module.padding_mode,
        stride=module.stride,
        dilation=module.dilation,
        groups=module.groups,
    )


@from_module.register(nn.ConvTranspose1d)
@from_module.register(nn.ConvTranspose2d)
@from_module.register(nn.ConvTranspose3d)
def _transposed(module: Any, in_shape: Sequence[int]) -> Operator:
    _check(module, in_shape)
    weight: Tensor = module.weight
    sides: list[int] = []
    margin: list[tuple[int, int]] = []
    rows = zip(
        in_shape[1:],
        weight.shape[2:],
        module.stride,
        module.padding,
        module.output_padding,
        module.dilation,
        strict=True,
    )
    for n, k, s, p, extra, d in rows:
        sides.append((n - 1) * s - 2 * p + d * (k - 1) + extra + 1)
        # what is appended to the result is in front of no window of the convolution
        margin.append((p, p - extra))
    forward = GeneralConvolution(
        weight, tuple(sides), tuple(margin), "zeros", module.stride, module.dilation, module.groups
    )
    return Adjoint(forward)


def _check(module: Any, in_shape: Sequence[int]) -> None:
    if len(in_shape) != module.weight.ndim - 1 or in_shape[0] != module.in_channels:
        raise ShapeError(
            f"{module} needs inputs of {module.in_channels} channels and "
            f"{module.weight.ndim - 2} sides, got shape {tuple(in_shape)}."
        )
