"""Binary layers: weights and inputs of two values each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.cells.checks import check_sizes
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.signs import Estimator, ReSTE, sign


class Scale(ABC):
    """A frozen value: the positive factor of the signs of a filter."""

    @abstractmethod
    def of(self, weight: Tensor) -> Tensor:
        """One factor a filter, zero for a filter of zeros; broadcastable against `weight`.

        Args:
            weight: Standardised, the first dimension over filters.
        """


@final
@dataclass(frozen=True)
class PowerOfTwo(Scale):
    """``2^round(log2 mean |w|)``: a shift of bits; no gradient passes through it [1].

    References:
        [1] Qin, Gong, Liu, Shen, Wei, Yu, Song. Forward and backward information retention for
        accurate binary neural networks. CVPR 2020.
    """

    @override
    def of(self, weight: Tensor) -> Tensor:
        return torch.exp2(torch.log2(_mean_size(weight.detach())).round())


@final
@dataclass(frozen=True)
class MeanSize(Scale):
    """``mean |w|``: the nearest multiple of the signs in the 2-norm [1].

    References:
        [1] Rastegari, Ordonez, Redmon, Farhadi. XNOR-Net. ECCV 2016.
    """

    @override
    def of(self, weight: Tensor) -> Tensor:
        return _mean_size(weight)


def standardised(weight: Tensor) -> Tensor:
    """``(w - mean) / std`` over each filter, in float64; a filter of equal weights becomes zeros.

    Invariant to the scale of each filter, from 1e-30 to 1e30 and beyond. Float64 whatever the
    weights are stored in: a copy of a network in a higher precision then has the same signs.

    Args:
        weight: The first dimension over filters.
    """
    over = tuple(range(1, weight.ndim))
    # nothing below depends on this factor, which keeps the squares within the range of floats
    size = weight.detach().double().abs().amax(over, keepdim=True)
    scaled = weight.double() / torch.where(size > 0, size, torch.ones_like(size))
    centred = scaled - scaled.mean(over, keepdim=True)
    variance = centred.square().mean(over, keepdim=True)
    # a smaller deviation is nothing but the rounding of the mean
    flat = variance <= 1e-28
    deviation = torch.where(flat, torch.ones_like(variance), variance).sqrt()
    return torch.where(flat, torch.zeros_like(centred), centred / deviation)


class BinaryLayer(nn.Module):
    """``y = L(sign(x))`` with the weights ``s sign(w^)`` of a linear layer ``L``.

    ``w^ = (w - mean) / std`` over each filter and ``s = scale(w^)``. Only ``w`` is a parameter, and
    it is real; training sees the estimator in place of the derivative of either sign.

    There is no Lipschitz constant through a sign of inputs, and no certificate.

    Args:
        shape: Of ``w``, the first dimension over filters.
        estimator: Stands for the derivative of the sign; `ReSTE` by default.
        scale: Of the signs; `PowerOfTwo` by default.
        binary_inputs: Whether the sign of the inputs is taken.
        dtype: Of the parameters.

    Raises:
        ConfigError: A filter has a single weight, of which standardisation leaves nothing.
        ShapeError: A size is not positive.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        estimator: Estimator | None = None,
        scale: Scale | None = None,
        binary_inputs: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if prod(shape[1:]) < 2:
            raise ConfigError(
                f"Binary weights of shape {shape} have one weight a filter, of which "
                "standardisation leaves nothing; expected at least 2.",
                hint="use a layer with real weights here.",
            )
        self.estimator = estimator or ReSTE()
        self.scale = scale or PowerOfTwo()
        self.binary_inputs = binary_inputs
        self.done = 1.0  # part of the run that is over, see `anneal`
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        nn.init.normal_(self.weight, 0.0, prod(shape[1:]) ** -0.5)

    def explicit(self) -> Tensor:
        """The weights that run, ``s sign(w^)``, on the tape."""
        weight = standardised(self.weight)
        return (self.scale.of(weight) * self._sign(weight)).to(self.weight.dtype)

    def _sign(self, x: Tensor) -> Tensor:
        return sign(x, self.estimator, self.done if self.training else 1.0)

    def _entered(self, x: Tensor, dims: int, channels: int) -> Tensor:
        """The inputs after their sign, checked."""
        if x.ndim != dims or x.shape[1] != channels:
            places = ("batch", str(channels), "height", "width")[:dims]
            raise ShapeError(
                f"The input has shape {tuple(x.shape)}, expected ({', '.join(places)}).",
                hint="check the number of channels of the layer before.",
            )
        return self._sign(x) if self.binary_inputs else x


@final
class BinaryConv2d(BinaryLayer):
    """Convolution of the signs of the inputs with binary kernels, without a bias.

    What lies outside the image is zero, after the sign was taken.

    Args:
        in_channels: Of the images.
        out_channels: Of the result.
        kernel_size: Side of the kernels.
        stride: Of the result.
        padding: Zeros on each side.
        dilation: Distance of the taps.
        groups: A divisor of both numbers of channels.
        estimator: Stands for the derivative of the sign; `ReSTE` by default.
        scale: Of the signs; `PowerOfTwo` by default.
        binary_inputs: Whether the sign of the inputs is taken.
        dtype: Of the parameters.

    Raises:
        ConfigError: `groups` is no common divisor, or a filter has a single weight.
        ShapeError: A size is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        estimator: Estimator | None = None,
        scale: Scale | None = None,
        binary_inputs: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size,
            stride=stride, dilation=dilation, groups=groups, padding=padding + 1,
        )  # fmt: skip
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"`groups` is {groups}, expected a divisor of {in_channels} and {out_channels}."
            )
        super().__init__(
            (out_channels, in_channels // groups, kernel_size, kernel_size),
            estimator=estimator,
            scale=scale,
            binary_inputs=binary_inputs,
            dtype=dtype,
        )
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @override
    def forward(self, x: Tensor) -> Tensor:
        entered = self._entered(x, 4, self.weight.shape[1] * self.groups)
        return F.conv2d(
            entered, self.explicit(), None, self.stride, self.padding, self.dilation, self.groups
        )

    @override
    def extra_repr(self) -> str:
        out, into, side, _ = self.weight.shape
        return f"{into * self.groups}, {out}, {side}, stride={self.stride}, {self.estimator}"


@final
class BinaryLinear(BinaryLayer):
    """Product of the signs of the inputs with a binary matrix, without a bias.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        estimator: Stands for the derivative of the sign; `ReSTE` by default.
        scale: Of the signs; `PowerOfTwo` by default.
        binary_inputs: Whether the sign of the inputs is taken.
        dtype: Of the parameters.

    Raises:
        ConfigError: There is a single input.
        ShapeError: A size is not positive.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        estimator: Estimator | None = None,
        scale: Scale | None = None,
        binary_inputs: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(
            (out_features, in_features),
            estimator=estimator,
            scale=scale,
            binary_inputs=binary_inputs,
            dtype=dtype,
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self._entered(x, 2, self.weight.shape[1]), self.explicit())

    @override
    def extra_repr(self) -> str:
        out, into = self.weight.shape
        return f"{into}, {out}, {self.estimator}"


def takes_signs(model: nn.Module) -> bool:
    """Whether some layer takes signs of its inputs: derivatives to inputs are stand-ins then."""
    return any(isinstance(m, BinaryLayer) and m.binary_inputs for m in model.modules())


def anneal(model: nn.Module, done: float) -> None:
    """Tell every binary layer how much of the training run is over.

    In evaluation mode a layer's stand-in is that of the end of the run.

    Args:
        model: Any module.
        done: In [0, 1].

    Raises:
        ConfigError: `done` is outside of [0, 1].
    """
    if not 0 <= done <= 1:
        raise ConfigError(f"`done` must lie in [0, 1], got {done}.")
    for module in model.modules():
        if isinstance(module, BinaryLayer):
            module.done = done


def real_stem(model: nn.Sequential) -> nn.Sequential:
    """The layers in front of the first sign: what a certificate can be about.

    Args:
        model: A sequence; a child that takes signs anywhere in it ends the stem.
    """
    layers: list[nn.Module] = []
    for child in model:
        if takes_signs(child):
            break
        layers.append(child)
    return nn.Sequential(*layers)


def _mean_size(weight: Tensor) -> Tensor:
    return weight.abs().mean(tuple(range(1, weight.ndim)), keepdim=True)
