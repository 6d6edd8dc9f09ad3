"""A cell around any module: nothing is guaranteed, everything is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import Cell
from wellposed.cells.lifting import module_map
from wellposed.core.maps import Map
from wellposed.errors import ShapeError


@final
class FreeCell(Cell):
    """``z = f(z, x)`` for any module `f`; existence and uniqueness are the user's business.

    The parameters of `f` are explicit inputs of the fixed point, so that derivatives of every
    order are right; its buffers are constants.

    Args:
        f: Called as ``f(z, x)``, with a result of the shape of ``z``.
        start: Where the iteration starts: the shape of one state (zeros), or a function of ``x``
            that returns first iterates, batch first; `None` means zeros of the shape of ``x``.
    """

    def __init__(
        self, f: nn.Module, *, start: tuple[int, ...] | Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.f = f
        self._start = start

    @override
    def bind(self, x: Tensor) -> Map:
        return module_map(self.f, (x,), (True,))

    @override
    def start(self, x: Tensor, map_: Map) -> Tensor:
        if callable(self._start):
            first = self._start(x).detach()
            if first.ndim < 2 or first.shape[0] != x.shape[0]:
                raise ShapeError(
                    f"`start` returned shape {tuple(first.shape)} for a batch of {x.shape[0]}; "
                    "expected (batch, ...).",
                )
            return first
        shape = tuple(x.shape[1:]) if self._start is None else self._start
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = next((p.dtype for p in self.f.parameters()), torch.float32)
        return (
            torch.zeros_like(x[:, :0].flatten(1).sum(1), dtype=dtype)
            .reshape(-1, *[1] * len(shape))
            .expand(-1, *shape)
            .clone()
        )

    @override
    def extra_repr(self) -> str:
        return "" if self._start is None or callable(self._start) else f"start={self._start}"
