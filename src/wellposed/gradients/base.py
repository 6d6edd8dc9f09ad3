"""Gradient: how a fixed point that was found is put on the tape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.maps import AffineMap, Map
from wellposed.core.peel import AS_IT_IS, wrapped
from wellposed.solvers.base import Solution, Solver, Stopping, solve


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A fixed-point problem and how to solve it.

    Args:
        map_: The map; its tensors carry the autograd history.
        start: First iterates, without history; `None` for those of the form that is iterated.
        solver: Proposes iterates.
        stopping: Tolerances and budget.
        closure: Whether the map is a plain function, which may depend on tensors that it does not
            list.
    """

    map_: Map
    start: Tensor | None
    solver: Solver
    stopping: Stopping
    closure: bool = False

    def run(self) -> Solution:
        """Solve, off the tape."""
        with steady_precision(self.map_):
            return solve(self.map_, self.start, self.solver, self.stopping)

    @property
    def differentiable(self) -> bool:
        """Whether anything asks for a gradient.

        Inside a `torch.func` transform a tensor may be a dual number or a batch without saying so
        in `requires_grad`.
        """
        tensors = self.map_.leaves
        if any(map(wrapped, tensors)):
            return True
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class Gradient(ABC):
    """A frozen value: turns a problem into a solution whose value is on the tape."""

    @abstractmethod
    def attach(self, problem: Problem) -> Solution:
        """Solve and put the value on the tape; the graph depends on grad mode alone."""


def autocasting(x: Tensor) -> bool:
    """Whether automatic mixed precision is on for the device of `x`."""
    return torch.is_autocast_enabled(x.device.type)


def steady_precision(map_: Map) -> AbstractContextManager[object]:
    """Suspends automatic mixed precision while an affine map is iterated.

    A product rounded to bfloat16 has a relative residual near 4e-3 that no iteration can lower.
    General functions keep their mixed precision; their tolerances are widened instead.
    """
    if isinstance(map_, AffineMap) and autocasting(map_.offset):
        return torch.autocast(map_.offset.device.type, enabled=False)
    return AS_IT_IS
