"""Orthonormal rows or columns from free numbers, at the price of the shorter side."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from wellposed.errors import ConfigError
from wellposed.nn.sandwich import cayley


@final
class Stiefel(nn.Module):
    """Parametrisation: a free matrix ``(X; Y)`` to ``Q`` with ``Q^T Q = I``, by Cayley.

    ``Q = ( 2 (I + Z)^-1 - I ; -2 Y (I + Z)^-1 )`` with ``Z = X - X^T + Y^T Y``, which are the first
    columns of the Cayley transform of a skew matrix of the longer side. Only a matrix of the
    *shorter* side is inverted; `wellposed.nn.orthogonal` inverts one of the longer side. A wide
    matrix gets orthonormal rows instead.
    """

    @override
    def forward(self, free: Tensor) -> Tensor:
        tall = free if free.shape[0] >= free.shape[1] else free.mT
        side = tall.shape[1]
        Q = torch.cat(cayley(tall[:side], tall[side:]))
        return Q if free.shape[0] >= free.shape[1] else Q.mT


def stiefel(layer: nn.Linear) -> nn.Linear:
    """Keep the weight of a linear layer orthogonal: its 2-norm is one up to rounding.

    It starts at a random orthogonal matrix. Nothing is taken at its word: a certificate measures
    the explicit weights.

    Args:
        layer: Changed in place, of float32 or float64.

    Returns:
        The same layer. `torch.nn.utils.parametrize.remove_parametrizations` makes it plain again.

    Raises:
        ConfigError: The layer is no `nn.Linear`, is complex or of a half precision.
    """
    if not isinstance(layer, nn.Linear):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{type(layer).__name__} is no linear layer.")
    if layer.weight.dtype.itemsize < 4 or layer.weight.is_complex():
        raise ConfigError(f"Orthogonal weights need float32 or float64, got {layer.weight.dtype}.")
    short, long = sorted(layer.weight.shape)
    with torch.no_grad():
        tall = layer.weight if layer.weight.shape[0] == long else layer.weight.mT
        # X - X^T and Y^T Y are of the size of I then: far from the identity, and well conditioned
        tall[:short].normal_(std=1 / sqrt(short))
        tall[short:].normal_(std=1 / sqrt(max(long - short, 1)))
    parametrize.register_parametrization(layer, "weight", Stiefel())
    return layer
