"""Spectral rescaling: layers of norm at most one, by dividing rows; AOL is its first step."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from wellposed.core.correlated import row_scales
from wellposed.errors import ConfigError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@final
class SpectralRescale(nn.Module):
    """``W -> [1/t] W`` with ``t_i = (sum_j |P_ij|)^(2^-T)``, ``P = (W W^T)^(2^(T-1))`` [1].

    ``P <= [sum_j |P_ij|]`` in the order of symmetric matrices, and roots keep that order: hence
    ``W W^T <= [t]^2``, for any `T`. A convolution is correlated with itself instead; its norm is
    then at most one for images of any size, padded with zeros or circular, at any stride. `T = 1`
    is the almost orthogonal layer [2]; each step halves the logarithm of what is wasted, and
    doubles the kernel. A row of zeros stays one and has a finite gradient.

    Scales are computed in float64 with bounds of their rounding, and of that of the weights that
    are returned.

    Args:
        steps: ``T``.
        groups: Parts of the channels that do not see each other.

    Raises:
        ConfigError: `steps` or `groups` is not positive.

    References:
        [1] Delattre, Barthelemy, Allauzen. Spectral norm of convolutional layers with circular and
        zero paddings. 2024, arXiv 2402.00240.
        [2] Prach, Lampert. Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks. ECCV 2022, arXiv 2208.03160.
    """

    def __init__(self, steps: int = 3, groups: int = 1) -> None:
        super().__init__()
        if steps < 1 or groups < 1:
            raise ConfigError(
                f"Needs steps >= 1 and groups >= 1, got steps={steps} and groups={groups}."
            )
        self.steps, self.groups = steps, groups

    @override
    def forward(self, weight: Tensor) -> Tensor:
        parts = weight.unflatten(0, (self.groups, -1))
        t = torch.cat([_scales(part, self.steps) for part in parts])
        # entries are rounded once more: what that adds to the norm is bounded by |W|
        rank = min(parts.shape[1:3]) * prod(weight.shape[2:])
        room = 1 + (4 + 2 * sqrt(rank)) * torch.finfo(weight.dtype).eps
        return (weight / (t * room).reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight as it is: what is assigned gets rescaled."""
        return weight

    @override
    def extra_repr(self) -> str:
        return f"steps={self.steps}, groups={self.groups}"


def spectral_rescale(layer: nn.Module, steps: int = 3) -> nn.Module:
    """Make the norm of a linear layer at most one, by a parametrisation of its weight.

    Args:
        layer: `nn.Linear` or a convolution, transposed ones included; changed in place.
        steps: ``T`` of `SpectralRescale`.

    Returns:
        The same layer. `torch.nn.utils.parametrize.remove_parametrizations` makes it plain again.

    Raises:
        ConfigError: The layer is of another kind, or pads such that it copies pixels.
    """
    groups = 1
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        groups = layer.groups
        _check_padding(layer)
    elif not isinstance(layer, nn.Linear):
        raise ConfigError(f"{type(layer).__name__} is neither a linear layer nor a convolution.")
    parametrize.register_parametrization(layer, "weight", SpectralRescale(steps, groups))
    return layer


def _scales(weight: Tensor, steps: int) -> Tensor:
    """Row scales, one for rows of zeros."""
    held = weight.detach().flatten(1)
    empty = (held == 0).all(1)
    t = row_scales(weight, steps) if not bool(empty.all()) else held.new_ones(len(held)).double()
    return torch.where(empty, 1.0, t)


def _check_padding(layer: Any) -> None:
    mode = layer.padding_mode
    wraps = mode == "circular" and not isinstance(layer.padding, str)
    if wraps:
        rows = zip(layer.padding, layer.kernel_size, layer.dilation, strict=True)
        wraps = any(2 * p > d * (k - 1) for p, k, d in rows)
    if mode in ("reflect", "replicate") or wraps:
        raise ConfigError(
            f"{layer} copies pixels (padding mode {mode!r}), so that rescaled rows do not bound "
            "its norm by one.",
            hint="pad with zeros, or circularly by at most half of the kernel.",
        )
