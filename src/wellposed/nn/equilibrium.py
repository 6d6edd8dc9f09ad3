"""The equilibrium layer: a cell, a solver and a gradient."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell, Cell
from wellposed.core.maps import AffineMap, Map
from wellposed.core.peel import plain, wrapped
from wellposed.errors import ConfigError, NonConvergenceError, NonConvergenceWarning
from wellposed.gradients.base import Gradient, Problem
from wellposed.gradients.implicit import Implicit
from wellposed.nn.functional import check_batch, default_stopping
from wellposed.nn.functional import fixed_point as fixed_point
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Solution, Solver, Status, Stopping, Tally, describe
from wellposed.solvers.picard import Picard

_TRAINING_LOOK = 4
"""Hardly any cell is solved to 1e-3 earlier; looking costs more than an evaluation too many."""

OnFailure = Literal["warn", "raise", "ignore"]


@final
class Equilibrium(nn.Module):
    """The layer ``x -> z*`` with ``z* = f(z*, x)``.

    In evaluation mode a sample's output is bitwise the same whatever batch it comes in (affine
    cells on the CPU, with a solver that treats samples apart: Jacobi, Picard, averaged).

    Args:
        cell: The equation.
        solver: Proposes iterates; by default what the cell prefers (monotone cells: operator
            splitting), and `Auto` for other affine cells: nonlinear Jacobi, and an accelerated
            iteration for samples that converge slowly.
        gradient: How the result is put on the tape; implicit by default.
        stopping: Tolerances and budget in training mode (by default rtol 1e-3, looked at from the
            fourth evaluation on).
        eval_stopping: The same in evaluation mode (rtol 1e-5 in float32, 1e-10 in float64).
        on_failure: What to do if samples do not converge: ``"warn"`` (once a layer), ``"raise"``
            or ``"ignore"``; by default warn in training and raise in evaluation.

    Attributes:
        last: The last solution without its graph and map, for reading; not part of the state.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        stopping: Stopping | None = None,
        eval_stopping: Stopping | None = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, Cell):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"`cell` must be a Cell, got {type(cell).__name__}.",
                hint="wrap a module f(z, x) as `FreeCell(f)`.",
            )
        if on_failure is not None and on_failure not in get_args(OnFailure):
            raise ConfigError(
                f"`on_failure` must be one of {get_args(OnFailure)} or None, got {on_failure!r}."
            )
        self.cell = cell
        usual = Auto() if isinstance(cell, AffineCell) else Picard()
        self.solver = solver or cell.preferred or usual
        self.gradient = gradient or Implicit()
        self.stopping = stopping
        self.eval_stopping = eval_stopping
        self.on_failure: OnFailure | None = on_failure
        self.last: Solution | None = None
        self._warned = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.solve(x).value

    def solve(self, x: Tensor) -> Solution:
        """The fixed points for inputs `x` with residual, evaluations and status a sample.

        Raises:
            ShapeError: `x` is not a batch of inputs of the cell.
            NonConvergenceError: Samples did not converge and `on_failure` says so.
        """
        check_batch(x, "x")
        rows, fill = len(x), self._fill(x)
        if fill:
            x = torch.cat([x, x.new_zeros(fill, *x.shape[1:])])
        map_ = self.cell.bind(x)
        start = self.cell.start(x, map_)
        stopping = self.stopping if self.training else self.eval_stopping
        if stopping is None:
            stopping = default_stopping(map_, start)
            if self.training:
                # in small states a look costs more than an evaluation does
                cheap = (
                    type(self.solver) is Picard
                    and isinstance(map_, AffineMap)
                    and map_.offset.ndim == 2
                )
                stopping = _in_training(stopping.rtol, self.solver.stride, cheap=cheap)
        solution = self.gradient.attach(Problem(map_, start, self.solver, stopping))
        broken = _broken_inputs(map_, x)
        if broken is not None:
            codes = torch.where(broken, Status.NONFINITE, solution.status).to(torch.int8)
            tally = Tally(solution.residual, solution.evaluations, codes)
            solution = replace(solution, tally=tally, clean=False)
        if fill:
            solution = _first(solution, rows)
        self._react(solution)
        return solution

    def _fill(self, x: Tensor) -> int:
        # a matrix kernel rounds a row alike in every batch only if its blocks of rows are full
        if self.training or not isinstance(self.cell, AffineCell) or wrapped(x):
            return 0
        return -len(x) % AffineMap.block

    def _react(self, solution: Solution) -> None:
        told = Solution(
            plain(solution.value),
            solution.tally.plain(),
            adjoint=solution.adjoint,
            clean=solution.clean,
        )
        # (`nn.Module` looks at whatever is set whether it is a parameter or a module)
        self.__dict__["last"] = told
        action = self.on_failure or ("warn" if self.training else "raise")
        if told.clean or action == "ignore" or not int(torch.count_nonzero(told.status)):
            return
        if action == "raise":
            raise NonConvergenceError(
                describe(told.tally),
                hint="raise `max_evaluations`, choose `solver=Auto()`, or set "
                '`on_failure="warn"` and read `layer.last.status`.',
            )
        if not self._warned:
            self._warned = True
            warnings.warn(describe(told.tally), NonConvergenceWarning, stacklevel=4)

    @override
    def __getstate__(self) -> dict[str, Any]:  # pyright: ignore
        # copies and pickles start afresh: a solution belongs to the layer that found it
        return {**self.__dict__, "last": None}

    @override
    def extra_repr(self) -> str:
        return f"solver={self.solver}, gradient={self.gradient}"


@cache
def _in_training(rtol: float | None, stride: int, *, cheap: bool) -> Stopping:
    rtol = 1e-3 if rtol is None else rtol
    if cheap:
        return Stopping(rtol, first_look=9, every=3)
    # a look in vain costs methods that pay for it four steps: monotone cells were measured to need
    # seven or eight
    return Stopping(rtol, first_look=_TRAINING_LOOK if stride == 1 else 3 * stride - 1)


def _broken_inputs(map_: Map, x: Tensor) -> Tensor | None:
    """Samples with NaN or infinity where a saturating function would hide them."""
    seen = x
    if isinstance(map_, AffineMap):
        if map_.activation.homogeneous:
            return None  # the state is then not finite either, and the solve says so
        seen = map_.offset
    return None if wrapped(seen) else ~torch.isfinite(seen.detach()).flatten(1).all(1)


def _first(solution: Solution, rows: int) -> Solution:
    """The first rows of a solution."""
    map_ = solution.map_
    if map_ is not None and map_.batched is not None:
        tensors = zip(map_.tensors, map_.batched, strict=True)
        map_ = map_.with_tensors(tuple(t[:rows] if flag else t for t, flag in tensors))
    return replace(
        solution,
        value=solution.value[:rows],
        tally=Tally(*(t[:rows] for t in solution.tally.read())),
        map_=map_,
    )
