"""Cells: the equilibrium equation of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.core.affine import Affine
from wellposed.core.maps import Map
from wellposed.errors import ShapeError


class Cell(nn.Module, ABC):
    """The equation ``z = f(z, x)``; knows nothing of solvers and certificates."""

    @abstractmethod
    def bind(self, x: Tensor) -> Map:
        """Inject the inputs once and return the map to iterate."""

    def start(self, x: Tensor, map_: Map) -> Tensor:
        """The first iterate for inputs `x`."""
        first = map_.start()
        if first is None:
            raise ShapeError(f"{type(self).__name__} must say where its iteration starts.")
        return first.detach()


class AffineCell(Cell):
    """A cell ``z = phi(A z + B x + b)``: one method makes everything else work."""

    @abstractmethod
    def explicit(self) -> Affine:
        """The weights after parametrisation: the only place where parameters become weights."""

    @override
    def bind(self, x: Tensor) -> Map:
        affine = self.explicit()
        if x.shape[1:] != affine.B.in_shape:
            raise ShapeError(
                f"The input has shape {tuple(x.shape)}, expected (batch, "
                f"{', '.join(map(str, affine.B.in_shape))}).",
                hint="put `nn.Flatten()` or a reshape before the layer.",
            )
        weight = affine.B.weight
        if x.dtype != weight.dtype and not _castable(x, weight):
            raise ShapeError(
                f"The input has dtype {x.dtype}, the cell's weights {weight.dtype}; both must be "
                "equal.",
                hint=f"convert the input with `.to({weight.dtype})` or the layer with "
                f"`.to({x.dtype})`; only torch.autocast mixes precisions.",
            )
        return affine.bind(x)


def _castable(x: Tensor, weight: Tensor) -> bool:
    # automatic mixed precision converts between these and leaves float64 alone
    wide = torch.float64 in (x.dtype, weight.dtype)
    return not wide and torch.is_autocast_enabled(x.device.type)
