"""What every family shares: names in TOML, the solver section, the layer around a cell."""

from __future__ import annotations

from typing import Annotated, TypedDict, final

from pydantic import AfterValidator, Field
from torch import nn

from wellposed.cells.base import Cell
from wellposed.core.activations import ACTIVATIONS
from wellposed.experiments import names
from wellposed.gradients.base import Gradient
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Solver, Stopping
from wellposed.training.settings import Settings

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def _activation(name: str) -> str:
    names.known(name, ACTIVATIONS, "activation")
    return name


def _solver(name: str) -> str:
    names.known(name, {"default": None, **names.SOLVERS}, "solver")
    return name


def _gradient(name: str) -> str:
    names.known(name, names.GRADIENTS, "gradient")
    return name


ActivationName = Annotated[str, AfterValidator(_activation)]
SolverName = Annotated[str, AfterValidator(_solver)]
GradientName = Annotated[str, AfterValidator(_gradient)]


class Options(TypedDict):
    """The arguments of an equilibrium layer that a section says."""

    solver: Solver | None
    gradient: Gradient
    stopping: Stopping
    eval_stopping: Stopping


@final
class Solve(Settings):
    """How equilibria are found and differentiated.

    Args:
        solver: Name, or ``"default"`` for the cell's own.
        gradient: Name.
        train_rtol: Relative tolerance in training.
        eval_rtol: Relative tolerance in evaluation.
        max_evaluations: Budget a sample.
    """

    solver: SolverName = "default"
    gradient: GradientName = "implicit"
    train_rtol: float = Field(default=1e-4, gt=0, lt=1)
    eval_rtol: float = Field(default=1e-5, gt=0, lt=1)
    max_evaluations: int = Field(default=1000, ge=1)

    def options(self) -> Options:
        """What the section says, for the layer."""
        return Options(
            solver=names.solver(self.solver),
            gradient=names.gradient(self.gradient),
            stopping=Stopping(self.train_rtol, max_evaluations=self.max_evaluations),
            eval_stopping=Stopping(self.eval_rtol, max_evaluations=self.max_evaluations),
        )


def layer(cell: Cell, solve: Solve) -> Equilibrium:
    """The equilibrium layer of a cell with the solver, gradient and tolerances of a section."""
    return Equilibrium(cell, **solve.options())


def flat(dropout: float = 0.0) -> list[nn.Module]:
    """What comes before a dense layer: images as vectors, with dropout if it is positive."""
    return [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
