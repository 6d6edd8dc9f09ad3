"""The linear map that a convolution and the normalisation behind it are together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellposed.core.operators import Convolution
from wellposed.errors import ConfigError
from wellposed.nn.binary import BinaryConv2d


def effective_operator(body: nn.Module, image: tuple[int, int]) -> Convolution:
    """``[g] K`` with the kernel ``K`` that runs and the gain ``g = gamma / sqrt(var + eps)``.

    The running variance is taken as given; kernel and ``gamma`` are on the tape, the kernel of a
    binary layer through its estimators. The sign in front of a binary kernel is left out: this is
    the norm of an operator, and says nothing about the constant of the layer.

    Args:
        body: Holds one `nn.Conv2d` or `BinaryConv2d`, and at most one `nn.BatchNorm2d`.
        image: Height and width of the inputs.

    Raises:
        ConfigError: There is another number of convolutions or normalisations, or the convolution
            has groups, dilation, or a padding other than half its odd kernel in zeros.
    """
    convolutions = [m for m in body.modules() if isinstance(m, (nn.Conv2d, BinaryConv2d))]
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    if len(convolutions) != 1 or len(norms) > 1:
        raise ConfigError(
            f"A link with an effective operator holds one convolution and at most one "
            f"`BatchNorm2d`, got {len(convolutions)} and {len(norms)}.",
            hint="compare features instead, with `FeatureStrength`.",
        )
    convolution = convolutions[0]
    kernel = convolution.explicit() if isinstance(convolution, BinaryConv2d) else convolution.weight
    stride = _stride(convolution, kernel)
    if norms:
        kernel = _gain(norms[0]).reshape(-1, 1, 1, 1) * kernel
    return Convolution(kernel, image, "zeros", stride)


def _stride(convolution: nn.Conv2d | BinaryConv2d, kernel: Tensor) -> int:
    """The stride of a convolution that an operator of this library can be."""
    height, width = kernel.shape[2:]
    stride, padding = _pair(convolution.stride), _pair(convolution.padding)
    dilation = _pair(convolution.dilation)
    mode = convolution.padding_mode if isinstance(convolution, nn.Conv2d) else "zeros"
    plain = convolution.groups == 1 and dilation == (1, 1) and mode == "zeros"
    if not (
        plain
        and height % 2
        and width % 2
        and padding == (height // 2, width // 2)
        and stride[0] == stride[1]
    ):
        raise ConfigError(
            f"{convolution} has no effective operator here: expected an odd kernel, half of it in "
            "zeros on each side, one stride, and neither groups nor dilation.",
            hint="compare features instead, with `FeatureStrength`.",
        )
    return stride[0]


def _gain(norm: nn.BatchNorm2d) -> Tensor:
    variance = norm.running_var
    if variance is None:
        raise ConfigError(
            "A `BatchNorm2d` without running statistics has no gain of its own.",
            hint="construct it with `track_running_stats=True`.",
        )
    gain = torch.rsqrt(variance.detach() + norm.eps)
    return gain if norm.weight is None else norm.weight * gain  # pyright: ignore


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, tuple):
        first, second = value  # pyright: ignore
        return int(first), int(second)  # pyright: ignore
    return (value, value) if isinstance(value, int) else (-1, -1)
