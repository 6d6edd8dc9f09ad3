"""Residual blocks that average instead of adding, so that a Lipschitz constant stays."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError


@final
class Blend(nn.Module):
    """``y = (1 - t) x + t body(x)`` with a learned ``t = sigmoid(s)`` in [0, 1].

    If the body has Lipschitz constant ``L`` in some p-norm, the block has at most ``max(1, L)``;
    ``x + body(x)`` has ``1 + L``.

    Args:
        body: Any module whose outputs have the shape of its inputs.
        weight: ``t`` at the start, in (0, 1).

    Raises:
        ConfigError: `weight` leaves (0, 1).
        ShapeError: The body changes the shape (when called).
    """

    def __init__(self, body: nn.Module, weight: float = 0.5) -> None:
        super().__init__()
        if not 0 < weight < 1:
            raise ConfigError(f"`weight` must lie in (0, 1), got {weight}.")
        self.body = body
        self.logit = nn.Parameter(torch.logit(torch.tensor(float(weight))))

    @property
    def t(self) -> Tensor:
        """The weight of the body, a scalar."""
        return torch.sigmoid(self.logit)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.shape != x.shape:
            raise ShapeError(
                f"The body maps {tuple(x.shape)} to {tuple(y.shape)}; a residual block needs equal "
                "shapes."
            )
        t = self.t
        return (1 - t) * x + t * y
