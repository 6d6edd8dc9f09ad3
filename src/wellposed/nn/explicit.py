"""Layers with one hidden row of neurons whose Lipschitz constant is at most one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.core.activations import Activation
from wellposed.errors import ShapeError


@final
@dataclass(frozen=True, eq=False)
class Hidden:
    """``y = K phi(L x + b)``, or ``y = x + K phi(L x + b)``: what runs, and what is certified.

    Args:
        L: From inputs to neurons, shape (n, d).
        b: Shape (n,).
        K: From neurons to outputs, shape (q, n).
        multiplier: Diagonal of a ``Lam`` that proves the constant, shape (n,); a hint.
        activation: ``phi``.
        shortcut: Whether the input is added.
    """

    L: Tensor
    b: Tensor
    K: Tensor
    multiplier: Tensor
    activation: Activation
    shortcut: bool


class ExplicitLayer(nn.Module, ABC):
    """A layer without equilibrium that is 1-Lipschitz in the 2-norm for any parameters.

    It is the Lipschitz-bounded equilibrium network with ``W = 0``; several of them in a row are one
    with a strictly block-triangular ``W`` (`wellposed.nn.embedding`).
    """

    @abstractmethod
    def explicit(self) -> Hidden:
        """The weights after parametrisation: the only place where parameters become weights."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        # mixed precision would lower the weights, and with them the bound
        with torch.autocast(x.device.type, enabled=False):
            weights = self.explicit()
        d = weights.L.shape[1]
        if x.shape[-1:] != (d,):
            raise ShapeError(
                f"{type(self).__name__} takes inputs of shape (batch, {d}), got {tuple(x.shape)}.",
                hint="put `nn.Flatten()` in front of it.",
            )
        z = weights.activation(nn.functional.linear(x, weights.L, weights.b))
        y = nn.functional.linear(z, weights.K)
        return x + y if weights.shortcut else y
