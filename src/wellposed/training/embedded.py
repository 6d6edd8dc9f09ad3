"""The embedded network: boxes of equilibria as the equilibrium of a network of twice the size."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from wellposed.core.affine import Affine
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.errors import ConfigError

Known = TypeVar("Known", Dense, Convolution)


def embedded_map(affine: Affine, centre: Tensor, radius: Tensor) -> AffineMap:
    """The map whose fixed point ``(z_low, z_high)`` is the box of the equilibria over a box [1].

    With the zero-diagonal weights ``A`` of the canonical form, ``A+ = max(A, 0)`` and
    ``A- = min(A, 0)``,

    ``z_low  = psi(A+ z_low + A- z_high + B c + b - |B| r)``,
    ``z_high = psi(A- z_low + A+ z_high + B c + b + |B| r)``,

    which is an affine equilibrium network with weights ``[[A+, A-], [A-, A+]]``: it is solved and
    differentiated exactly like any other. Its contraction factor in the doubled weights is that of
    ``A``. The fixed point is the tightest box that the network maps into itself; iterates are
    none, so this is for training only, and certificates come from `wellposed.certify`.

    Args:
        affine: Explicit weights, on the tape.
        centre: Of the input boxes, shape (batch, *in_shape).
        radius: Of the input boxes, not negative, of the same shape.

    Returns:
        A map over states of shape (batch, 2 n) for dense and (batch, 2 c, h, w) for convolutional
        weights: lower ends first.

    Raises:
        ConfigError: The weights are neither dense nor convolutional.

    References:
        [1] Jafarpour, Abate, Davydov, Bullo, Coogan. Robustness certificates for implicit neural
        networks: a mixed monotone contractive approach. L4DC 2022, arXiv 2112.05310.
    """
    affine = affine.canonical()
    middle = affine.B.apply(centre, affine.bias)
    spread = affine.B.absolute().apply(radius)
    # mixed precision may have lowered the products; the state keeps the weights' precision
    offset = torch.cat([middle - spread, middle + spread], 1).to(affine.bias.dtype)
    a = affine.feedback
    if a is not None:
        a = torch.cat([a.expand(middle.shape[1], *a.shape[1:])] * 2)
    return AffineMap(_doubled(affine.A), offset, affine.activation, a, canonical_form=True)


def _doubled(operator: Operator) -> Operator:
    """``[[M+, M-], [M-, M+]]``."""
    match operator:
        case Dense():
            return Dense(_blocks(operator.matrix))
        case Convolution():
            return replace(operator, kernel=_blocks(operator.kernel))
        case _:
            raise ConfigError(
                f"{type(operator).__name__} weights have no embedded network, expected Dense or "
                "Convolution."
            )


def _blocks(weight: Tensor) -> Tensor:
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    return torch.cat([torch.cat([up, down], 1), torch.cat([down, up], 1)])
