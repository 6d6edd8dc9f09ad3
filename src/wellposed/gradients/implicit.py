"""Implicit differentiation: ``dz* = (I - J)^-1 (df/dtheta) dtheta``, right to any order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from wellposed.errors import ConfigError
from wellposed.gradients.base import Gradient, Problem
from wellposed.gradients.closure import attach_closure, captures
from wellposed.gradients.function import Adjoint, attach_equation
from wellposed.solvers.base import Solution
from wellposed.solvers.krylov import LinearSolver, Stationary
from wellposed.solvers.splitting import Reflected
from wellposed.solvers.transposed import Transposed


@final
@dataclass(frozen=True)
class Implicit(Gradient):
    """The exact gradient ``u = J^T u + g``, ``dL/dtheta = (df/dtheta)^T u``.

    Right to any order in reverse and forward mode, and under `torch.func`. It is as exact as the
    two solves: an adjoint equation that misses its tolerance is reported in `Solution.adjoint` and
    by a `NonConvergenceWarning`. A function that captures tensors (a closure) has first derivatives
    only; the second raises `HigherOrderError`.

    Args:
        adjoint: Solves the linear adjoint equation; `None` takes the transposed splitting if the
            forward solver is one, and `Stationary` for every other.
        rtol: Relative tolerance of that solve; `None` takes thrice the forward tolerance, and
            gradients are then hardly worse than with an exact solve (`Adjoint`).
        max_evaluations: Budget of vector-Jacobian products a sample.
    """

    adjoint: LinearSolver | None = None
    rtol: float | None = None
    max_evaluations: int = 2000
    _usual: Adjoint = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rtol is not None and not 0 <= self.rtol < 1:
            raise ConfigError(f"`rtol` must lie in [0, 1), got {self.rtol}.")
        if self.max_evaluations < 1:
            raise ConfigError(f"`max_evaluations` must be at least 1, got {self.max_evaluations}.")
        usual = Adjoint(self.adjoint or Stationary(), self.rtol, self.max_evaluations)
        object.__setattr__(self, "_usual", usual)

    @override
    def attach(self, problem: Problem) -> Solution:
        adjoint = self._usual
        if self.adjoint is None and isinstance(problem.solver, Reflected):
            adjoint = Adjoint(Transposed(problem.solver), self.rtol, self.max_evaluations)
        if captures(problem):
            return attach_closure(problem, adjoint)
        return attach_equation(problem, adjoint) if problem.differentiable else problem.run()
