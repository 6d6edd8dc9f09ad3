"""The equilibrium layer and its functional form: cell (or function), solver and gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from wellposed.cells.base import AffineCell, Cell
from wellposed.core.maps import FunctionMap, Map
from wellposed.core.peel import plain, wrapped
from wellposed.errors import NonConvergenceError, NonConvergenceWarning, ShapeError
from wellposed.gradients.base import Gradient, Problem
from wellposed.gradients.implicit import Implicit
from wellposed.solvers.base import Solution, Solver, Status, Stopping, describe
from wellposed.solvers.picard import Jacobi, Picard

OnFailure = Literal["warn", "raise", "ignore"]


def fixed_point(
    f: Callable[..., Tensor] | nn.Module | Map,
    z0: Tensor,
    *args: Tensor,
    solver: Solver | None = None,
    gradient: Gradient | None = None,
    stopping: Stopping | None = None,
    batched: tuple[bool, ...] | None = None,
) -> Solution:
    """The fixed point ``z* = f(z*, *args)``, differentiable with respect to `args`.

    Args:
        f: A function of ``z`` and `args`, an `nn.Module` (its parameters then get gradients too),
            or a ready `Map`.
        z0: First iterates, batch first.
        args: Every tensor that a gradient shall flow to.
        solver: Proposes iterates.
        gradient: How the result is put on the tape.
        stopping: Tolerances and budget.
        batched: Which of `args` have one row a sample, so that converged samples can leave the
            batch; without it all samples are evaluated until the last has converged.

    Raises:
        ShapeError: `z0` is not a floating-point tensor with a batch dimension.
    """
    _check_state(z0, "z0")
    if isinstance(f, Map):
        map_ = f
    elif isinstance(f, nn.Module):
        map_ = module_map(f, args, batched)
    else:
        map_ = FunctionMap(f, args, batched)
    closure = isinstance(map_, FunctionMap) and not isinstance(f, nn.Module) and _captures(f)
    problem = Problem(
        map_, z0.detach(), solver or Picard(), stopping or Stopping(), closure=closure
    )
    return (gradient or Implicit()).attach(problem)


def module_map(
    module: nn.Module, args: tuple[Tensor, ...], batched: tuple[bool, ...] | None
) -> FunctionMap:
    """The map ``z -> module(z, *args)`` with the module's parameters as explicit tensors."""
    names = [name for name, _ in module.named_parameters()]
    parameters = tuple(module.parameters())
    count = len(args)

    def call(z: Tensor, *tensors: Tensor) -> Tensor:
        values = dict(zip(names, tensors[count:], strict=True))
        return functional_call(module, values, (z, *tensors[:count]))

    flags = None if batched is None else (*batched, *[False] * len(parameters))
    return FunctionMap(call, (*args, *parameters), flags)


def _captures(f: Callable[..., Any]) -> bool:
    """Whether a function closes over tensors or modules, which a gradient would then miss."""
    cells = getattr(f, "__closure__", None) or ()
    contents = [cell.cell_contents for cell in cells]
    return any(
        (isinstance(c, Tensor) and c.requires_grad) or isinstance(c, nn.Module) for c in contents
    )


def _check_state(x: Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise ShapeError(
            f"`{name}` has dtype {x.dtype}, expected a real floating-point dtype.",
            hint="convert with `.float()`; images of uint8 are usually divided by 255 first.",
        )
    if x.ndim < 2:
        raise ShapeError(
            f"`{name}` has shape {tuple(x.shape)}, expected a batch of states: (batch, ...).",
            hint="add a batch dimension with `.unsqueeze(0)`.",
        )


@final
class Equilibrium(nn.Module):
    """The layer ``x -> z*`` with ``z* = f(z*, x)``.

    Args:
        cell: The equation.
        solver: Proposes iterates; by default nonlinear Jacobi for affine cells.
        gradient: How the result is put on the tape; implicit by default.
        stopping: Tolerances and budget in training mode (rtol 1e-4 in float32 by default).
        eval_stopping: The same in evaluation mode (rtol 1e-5).
        on_failure: What to do if samples do not converge: ``"warn"`` (once), ``"raise"`` or
            ``"ignore"``; by default warn in training and raise in evaluation.
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
        self.cell = cell
        self.solver = solver or (Jacobi() if isinstance(cell, AffineCell) else Picard())
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
        """The fixed points for inputs `x` with residual, evaluations and status a sample."""
        _check_state(x, "x")
        map_ = self.cell.bind(x)
        start = self.cell.start(x, map_)
        stopping = self._stopping(start.dtype)
        solution = self.gradient.attach(Problem(map_, start, self.solver, stopping))
        self._react(solution)
        return solution

    def _stopping(self, dtype: torch.dtype) -> Stopping:
        if not self.training:
            return self.eval_stopping or Stopping()
        if self.stopping is not None:
            return self.stopping
        return Stopping(rtol=1e-4 if dtype in (torch.float32, torch.float64) else None)

    def _react(self, solution: Solution) -> None:
        action = self.on_failure or ("warn" if self.training else "raise")
        if action == "ignore" or not len(solution.status):
            return
        if bool((plain(solution.status) == Status.CONVERGED).all()):
            return
        if action == "raise":
            raise NonConvergenceError(
                describe(solution),
                hint="raise `max_evaluations`, choose `solver=Auto()`, or set "
                '`on_failure="warn"` and read `layer.solve(x).status`.',
            )
        if not self._warned:
            self._warned = True
            warnings.warn(describe(solution), NonConvergenceWarning, stacklevel=4)
