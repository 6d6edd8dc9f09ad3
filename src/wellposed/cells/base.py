"""Cells: the equilibrium equation of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.checks import check_input
from wellposed.core.affine import Affine
from wellposed.core.maps import Map
from wellposed.solvers.base import Solver


class Cell(nn.Module, ABC):
    """The equation ``z = f(z, x)``; its certificates are measured elsewhere."""

    preferred: ClassVar[Solver | None] = None
    """The solver that is proved to converge, where the usual one is not."""

    @abstractmethod
    def bind(self, x: Tensor) -> Map:
        """Inject the inputs once and return the map to iterate."""

    def start(self, x: Tensor, map_: Map) -> Tensor | None:
        """The first iterate for inputs `x`; `None` for that of the form that is iterated."""
        return None


class AffineCell(Cell):
    """A cell ``z = phi(A z + B x + b)``: one method makes everything else work."""

    @abstractmethod
    def explicit(self) -> Affine:
        """The weights after parametrisation: the only place where parameters become weights."""

    @override
    def bind(self, x: Tensor) -> Map:
        affine = self.explicit()
        check_input(x, affine.B.in_shape, affine.B.weight)
        return affine.bind(x)
