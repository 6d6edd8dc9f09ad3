"""The majorant of a maximum over windows."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.majorant import Linear, Majorant
from wellposed.core.spectra import UNIT


@final
class Maximum(Majorant):
    """The largest component in each of several windows.

    For a pair of inputs every row of ``J`` is a convex combination of the unit vectors of its
    window (mean value theorem), so that ``|J| v`` is at most the largest ``v`` of the window.

    Args:
        maximum: The pooling itself.
        total: The sum over the same windows.
        shape: Shape of one input.
        terms: At least the size of a window, and the number of windows that share a component.
    """

    def __init__(
        self,
        maximum: Callable[[Tensor], Tensor],
        total: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        terms: int,
    ) -> None:
        pooled = maximum(torch.zeros(1, *shape, dtype=torch.float64))
        super().__init__(shape, tuple(pooled.shape[1:]))
        self._maximum = maximum
        self._windows = Linear(total, shape, terms)

    @override
    def apply(self, v: Tensor) -> Tensor:
        return self._maximum(v)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return self._windows.adjoint(c)

    @property
    @override
    def spectral(self) -> float:
        # ||J||_inf <= 1 and ||J||_1 is at most the number of windows that share a component
        shared = self.adjoint(torch.ones(1, *self.out_shape, dtype=torch.float64))
        return sqrt(float(shared.max())) * (1 + 4 * UNIT)

    @property
    @override
    def rule(self) -> str:
        return "the largest of a window moves by at most the largest move"
