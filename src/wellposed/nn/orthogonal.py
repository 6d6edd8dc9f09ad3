"""Linear layers with orthonormal rows or columns."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.utils import parametrizations

from wellposed.errors import ConfigError


def orthogonal(
    layer: nn.Linear, *, method: Literal["cayley", "matrix_exp", "householder"] = "cayley"
) -> nn.Linear:
    """Keep the weight of a linear layer orthogonal, by the parametrisation of `torch`.

    Its rows are orthonormal if it has at most as many outputs as inputs, its columns otherwise: all
    singular values are one, up to rounding (about 1e-6 in float32). Nothing is taken at its word:
    a certificate measures the explicit weights.

    Args:
        layer: Changed in place; its weight becomes the orthogonal matrix near it that the method
            gives.
        method: ``"cayley"``, ``(I + A)(I - A)^-1`` of a skew matrix, cheapest; ``"matrix_exp"``;
            ``"householder"``, products of reflections.

    Returns:
        The same layer. `torch.nn.utils.parametrize.remove_parametrizations` makes it plain again.

    Raises:
        ConfigError: The layer is no `nn.Linear`, is complex or of a half precision.
    """
    if not isinstance(layer, nn.Linear):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"{type(layer).__name__} is not a linear layer.",
            hint="a convolution of norm at most one: `wellposed.nn.rescale.spectral_rescale`.",
        )
    if layer.weight.dtype.itemsize < 4 or layer.weight.is_complex():
        raise ConfigError(f"Orthogonal weights need float32 or float64, got {layer.weight.dtype}.")
    parametrizations.orthogonal(layer, orthogonal_map=method)
    return layer
