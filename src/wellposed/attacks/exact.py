"""Exact layers: how an attack sees a network, and which of its answers can be believed.

An attack through a truncated gradient, or through solves that stopped early, looks like robustness
and is none (gradient masking). Attacks therefore run every equilibrium layer with the exact
implicit gradient and the tolerance of evaluation, whatever it is trained with, and keep the status
of every solve.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.core.maps import AffineMap
from wellposed.core.peel import plain
from wellposed.gradients.base import Gradient, Problem
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium, OnFailure
from wellposed.solvers.base import Solution, Status, Stopping


@final
@dataclass(eq=False)
class Solves:
    """The solves since `clear`, one entry a layer that ran: what was asked and what was found."""

    solutions: list[Solution] = field(default_factory=list[Solution])
    problems: list[Problem] = field(default_factory=list[Problem])

    def clear(self) -> None:
        """Forget what was recorded."""
        self.solutions.clear()
        self.problems.clear()

    def converged(self, rows: int) -> Tensor:
        """Whether all solves of a sample reached their tolerance, bool of shape (rows,).

        A layer that regroups samples cannot be read row by row: one failure there counts for all.
        """
        good = torch.ones(rows, dtype=torch.bool)
        for solution in self.solutions:
            done = plain(solution.status).cpu() == Status.CONVERGED
            mine = _first(done, rows)
            good &= bool(done.all()) if mine is None else mine
        return good

    def evaluations(self, rows: int) -> Tensor:
        """Evaluations that each sample took part in, summed over layers, int64 of shape (rows,)."""
        total = torch.zeros(rows, dtype=torch.long)
        for solution in self.solutions:
            count = plain(solution.evaluations).cpu()
            mine = _first(count, rows)
            total += int(count.amax()) if mine is None else mine
        return total

    def error_bound(self, rows: int) -> Tensor:
        """Certified distance of the only solve to its fixed point, a sample, float64.

        Zero if no equilibrium was solved; infinite where nothing is proved, which includes networks
        of several equilibrium layers.
        """
        if not self.solutions:
            return torch.zeros(rows, dtype=torch.float64)
        bound = self.solutions[0].error_bound
        mine = None if bound is None or len(self.solutions) > 1 else _first(bound, rows)
        return torch.full((rows,), inf, dtype=torch.float64) if mine is None else mine.double()


def _first(values: Tensor, rows: int) -> Tensor | None:
    """The entries of the samples; `None` if they do not correspond to samples."""
    # a layer may fill its batch up to whole blocks of rows, at the end
    return values[:rows] if rows <= len(values) < rows + AffineMap.block else None


@final
@dataclass(frozen=True, eq=False)
class _Recording(Gradient):
    """The exact implicit gradient, writing each solution down."""

    solves: Solves
    inner: Implicit

    @override
    def attach(self, problem: Problem) -> Solution:
        solution = self.inner.attach(problem)
        self.solves.solutions.append(solution)
        self.solves.problems.append(problem)
        return solution


_DIRECTION = 1e-4
"""Relative tolerance of adjoint equations. In single precision a splitting may stay above a tenth
of the forward tolerance for ever, and would spend its budget on digits that no step needs."""


@contextmanager
def exact_layers(model: nn.Module, stopping: Stopping | None = None) -> Generator[Solves]:
    """Evaluation mode, exact implicit gradients, no parameter gradients; undone on leaving.

    Args:
        model: Any module; its `Equilibrium` layers are the ones that change.
        stopping: Tolerances and budget of every solve; by default those of the dtype, with a
            layer's own evaluation budget if that is larger.

    Yields:
        The record of the solves. Nothing is raised when one of them fails: read `Solves.converged`.
    """
    solves = Solves()
    training = {module: module.training for module in model.modules()}
    asked = {p: p.requires_grad for p in model.parameters()}
    layers = [module for module in model.modules() if isinstance(module, Equilibrium)]
    before = [(e, e.gradient, e.eval_stopping) for e in layers]
    reactions: list[OnFailure | None] = [e.on_failure for e in layers]
    try:
        model.eval()
        for p in asked:
            p.requires_grad_(False)
        for layer, gradient, own in before:
            # a layer that is implicit already keeps its own adjoint solver
            inner = gradient if isinstance(gradient, Implicit) else Implicit()
            if stopping is None and inner.rtol is None:
                # a step needs a direction; the points it leads to are what is judged
                inner = replace(inner, rtol=_DIRECTION)
            budget = max(Stopping().max_evaluations, own.max_evaluations if own else 0)
            layer.gradient = _Recording(solves, inner)
            layer.eval_stopping = stopping or Stopping(max_evaluations=budget)
            layer.on_failure = "ignore"
        yield solves
    finally:
        for (layer, gradient, own), reaction in zip(before, reactions, strict=True):
            layer.gradient, layer.eval_stopping, layer.on_failure = gradient, own, reaction
        for p, flag in asked.items():
            p.requires_grad_(flag)
        for module, mode in training.items():
            module.training = mode


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """``logit_y - max_{j != y} logit_j``: a sample is classified rightly if this is positive.

    A tie counts as wrong, and so does NaN.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own - others.amax(1)


def believable(logits: Tensor, solves: Solves) -> Tensor:
    """Samples whose solves converged and whose logits are numbers, bool of shape (batch,)."""
    return solves.converged(len(logits)).to(logits.device) & torch.isfinite(logits).all(1)
