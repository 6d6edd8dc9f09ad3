"""Gradient: how a fixed point that was found is put on the tape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.maps import Map
from wellposed.solvers.base import Solution, Solver, Stopping, solve


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A fixed-point problem and how to solve it.

    Args:
        map_: The map; its tensors carry the autograd history.
        start: First iterates, without history.
        solver: Proposes iterates.
        stopping: Tolerances and budget.
        closure: Whether the map may depend on tensors that it does not list, so that only first
            derivatives with respect to those it lists can be right.
    """

    map_: Map
    start: Tensor
    solver: Solver
    stopping: Stopping
    closure: bool = False

    def run(self) -> Solution:
        """Solve, off the tape."""
        return solve(self.map_, self.start, self.solver, self.stopping)

    @property
    def differentiable(self) -> bool:
        """Whether anything asks for a gradient."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in self.map_.tensors)


class Gradient(ABC):
    """A frozen value: turns a problem into a solution whose value is on the tape."""

    @abstractmethod
    def attach(self, problem: Problem) -> Solution:
        """Solve and put the value on the tape; the graph depends on grad mode alone."""
