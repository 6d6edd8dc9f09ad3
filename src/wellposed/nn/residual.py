"""Residual blocks with a type of their own, so that certificates know what they compute."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ShapeError


@final
class Residual(nn.Module):
    """``y = x + body(x)``.

    Args:
        body: Any module whose outputs have the shape of its inputs.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.shape != x.shape:
            raise ShapeError(
                f"The body maps {tuple(x.shape)} to {tuple(y.shape)}; a residual block needs equal "
                "shapes."
            )
        return x + y
