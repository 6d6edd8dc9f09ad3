"""The fixed point as an `autograd.Function`, right to any order in reverse and forward mode.

The Function takes the map's tensors as explicit inputs and saves its own *output*. Differentiating
its backward pass therefore meets the fixed point again, and the adjoint and tangent equations,
being fixed points themselves, are put on the tape the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from wellposed.core.linear_maps import LinearMap
from wellposed.core.maps import AffineMap, Map
from wellposed.core.peel import AS_IT_IS, Outside, forward_mode, plain, transforming, wrapped
from wellposed.errors import ConfigError, NonConvergenceWarning
from wellposed.gradients.base import Problem, autocasting, steady_precision
from wellposed.gradients.firstorder import pull_back
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import (
    AdjointReport,
    Solution,
    Solver,
    Stopping,
    Tally,
    describe,
    solve_with_image,
)
from wellposed.solvers.krylov import LinearSolver, Stationary
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.solvers.splitting import Reflected
from wellposed.solvers.transposed import Transposed

_HALF_RTOL = 1e-2
_CANONICAL = (Auto, Jacobi)
_FAITHFUL = (Picard, Reflected)


@dataclass(frozen=True)
class Adjoint:
    """How linear equations are solved.

    Args:
        solver: Of ``u = M u + g``.
        rtol: Relative tolerance; `None` takes thrice the forward tolerance: a gradient feels the
            error of the state in the state, the slopes and the cotangent, and that of the adjoint
            once. An exact adjoint makes gradients of NEMONs in training better by a tenth only.
        max_evaluations: Budget of products a sample.
        report: Whether the outcome is recorded and a miss of the tolerance warned about.
    """

    solver: LinearSolver
    rtol: float | None = None
    max_evaluations: int = 2000
    report: bool = True

    def stopping(self, forward: Stopping, dtype: torch.dtype, *, coarse: bool) -> Stopping:
        """Tolerances of the equation; `coarse` if its products run in mixed precision."""
        rtol = self.rtol
        first = forward.first_look
        if rtol is None:
            rtol = max(3 * forward.tolerances(dtype)[0], 8 * torch.finfo(dtype).eps)
            if coarse:
                rtol = max(rtol, _HALF_RTOL)
            if type(self.solver) is Stationary:
                # plain iteration is as fast as the forward one and has less to reach
                first = max(first - 1, 1)
        return _stopping_of(rtol, self.max_evaluations, first)

    def record(self, report: AdjointReport, found: Solution) -> None:
        """Write down how the equation was solved; warn if it was not."""
        if not self.report:
            return
        report.tally = tally = found.tally.plain()
        if not found.clean and int(torch.count_nonzero(tally.read()[2])):
            warnings.warn(
                f"Adjoint equation: {describe(tally)} The gradient is not exact.",
                NonConvergenceWarning,
                stacklevel=3,
            )


@cache
def _stopping_of(rtol: float, budget: int, first: int) -> Stopping:
    return Stopping(rtol, 0.0, budget, first)


@dataclass(eq=False)
class Equation:
    """What the Function needs besides tensors; `solution` is written by its forward pass.

    Args:
        map_: In the form that is differentiated: the canonical one.
        solver: Of the fixed point.
        stopping: Its tolerances.
        adjoint: How the linear equations are solved.
        report: Filled by the backward pass.
        given: The form that the solver was given, with the same fixed points.
        linear: Whether this is itself an adjoint or tangent equation.
        solution: Without its graph.
        image: What the canonical form makes of it, if that is known.
        own: Whether the tensors of `map_` are those that the Function was given.
    """

    map_: Map
    solver: Solver
    stopping: Stopping
    adjoint: Adjoint
    report: AdjointReport
    given: Map | None = None
    linear: bool = False
    solution: Solution | None = None
    image: Tensor | None = None
    own: bool = False

    def solve(self, tensors: tuple[Tensor, ...], start: Tensor | None) -> Tensor:
        """Solve for these numbers, off the tape."""
        solver, given = self.solver, self.given
        map_ = given or (self.map_ if self.own else self.map_.with_tensors(tensors)).canonical()
        with steady_precision(map_):
            if self.linear and isinstance(map_, LinearMap):
                found = self.adjoint.solver.solve(map_, self.stopping)
            else:
                found, image = solve_with_image(map_, start, solver, self.stopping)
                # plain iteration and splittings leave the map as it was given
                kept = given is None or (given is self.map_ and isinstance(solver, _FAITHFUL))
                self.image = image if kept else None
        value = found.value
        if wrapped(value):
            # a transform's wrappers die with it: what is kept must be plain numbers
            found = Solution(plain(value), Tally(*map(plain, found.tally.read())))
        self.solution = found
        return value

    def take(self) -> Solution | None:
        """The solution, handed over: its value belongs to the graph that holds this equation.

        Kept here, it would close a circle, and every tensor of the graph would wait for the
        garbage collector.
        """
        found, self.solution = self.solution, None
        return found


def attach_equation(problem: Problem, adjoint: Adjoint) -> Solution:
    """Solve and put the value on the tape by implicit differentiation."""
    # the adjoint is best conditioned on the canonical form, whatever form the solver iterates;
    # with the diagonal kept apart its derivatives cost the least
    # (a splitting has the inverse of the map as it was given, and its own way with slopes)
    # (where plain iteration has no use for the canonical form, `pull_back` forms it off the tape)
    given, solver = problem.map_, problem.solver
    fit = type(adjoint.solver) is Transposed or type(solver) is Picard
    map_ = given if fit and _given(given) else given.resolved()
    tensors = map_.tensors
    report = AdjointReport()
    # these iterate the canonical form, which need not be formed twice;
    # a transform hands the Function other numbers than those that the given form holds
    same = type(solver) in _CANONICAL or any(map(wrapped, tensors))
    node = Equation(map_, solver, problem.stopping, adjoint, report, given=None if same else given)
    value = _apply(node, problem.start, tensors)
    found = node.take()
    assert found is not None
    return found.on_tape(value, report if adjoint.report else None)


def _given(map_: Map) -> bool:
    return isinstance(map_, AffineMap) and map_.raw


class FixedPoint(torch.autograd.Function):
    """``z*(tensors)`` with derivatives of every order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(node: Equation, start: Tensor | None, *tensors: Tensor) -> Tensor:  # pyright: ignore
        """Solve."""
        return node.solve(tensors, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore
        """Save the output itself: whoever differentiates it meets this Function again."""
        node, _, *tensors = inputs
        ctx.node = node
        ctx.save_for_backward(output, *tensors)
        if transforming() or forward_mode():
            ctx.save_for_forward(output, *tensors)
        kind = output.device.type
        ctx.cast = (
            (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The adjoint equation."""
        (g,) = grads
        if torch._C._functorch.is_legacy_batchedtensor(g):  # pyright: ignore
            raise ConfigError(
                "Batched cotangents (`is_grads_batched=True`, `vectorize=True`) cannot pass a "
                "fixed point.",
                hint="use `torch.func.jacrev`, which can.",
            )
        z, *tensors = ctx.saved_tensors
        node: Equation = ctx.node
        map_, needed = node.map_, ctx.needs_input_grad[2:]
        with _precision_of(ctx.cast, map_, z):
            if not torch.is_grad_enabled() and not wrapped(g):
                adjoint = node.adjoint
                found, out = pull_back(
                    map_ if node.own else map_.with_tensors(tuple(tensors)),
                    z,
                    g,
                    needed,
                    solver=adjoint.solver,
                    stopping=_stopping(node, z),
                    image=node.image,
                )
                adjoint.record(node.report, found)
                return (None, None, *out)
            f = _function(map_)

            def transposed(z: Tensor, *args: Tensor) -> Callable[[Tensor], Tensor]:
                pull = vjp(lambda s: f(s, *args), z)[1]
                return lambda u: pull(u)[0]

            u = _linear(node, transposed, g, z, tensors)
            pulled = vjp(lambda *args: f(z, *args), *tensors)[1](u)
            return (None, None, *(p if n else None for p, n in zip(pulled, needed, strict=True)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # pyright: ignore
        """The tangent equation."""
        z, *tensors = ctx.saved_tensors
        node: Equation = ctx.node
        f = _function(node.map_)
        moved = tuple(
            torch.zeros_like(t) if d is None else d
            for t, d in zip(tensors, tangents[2:], strict=True)
        )

        def forward(z: Tensor, *args: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda v: jvp(lambda s: f(s, *args), (z,), (v,))[1]

        with _precision_of(ctx.cast, node.map_, z):
            direct = jvp(lambda *args: f(z, *args), tuple(tensors), moved)[1]
            return _linear(node, forward, direct, z, tensors)


class _Direct(Outside):
    """The same outside function transforms, where PyTorch calls it with far less ado.

    (A Function with `setup_context` has its signature inspected at every call.)
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, node: Equation, start: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        value = node.solve(tensors, start)
        FixedPoint.setup_context(ctx, (node, start, *tensors), value)
        return value

    backward = FixedPoint.backward
    jvp = FixedPoint.jvp


def _apply(node: Equation, start: Tensor | None, tensors: tuple[Tensor, ...]) -> Tensor:
    if transforming():
        return FixedPoint.apply(node, start, *tensors)  # pyright: ignore
    if any(map(wrapped, tensors)):
        # of a transform that is over: `apply` takes what is left of it off
        return _Direct.apply(node, start, *tensors)  # pyright: ignore
    node.own = True
    return _Direct.call(node, start, *tensors)


def _function(map_: Map) -> Callable[..., Tensor]:
    # a map that is given to a splitting keeps its diagonal until here
    return lambda z, *tensors: map_.with_tensors(tensors).resolved()(z)


def _stopping(node: Equation, z: Tensor) -> Stopping:
    if node.linear:
        return node.stopping
    coarse = autocasting(z) and not isinstance(node.map_, AffineMap)
    return node.adjoint.stopping(node.stopping, z.dtype, coarse=coarse)


def _precision_of(
    cast: tuple[str, torch.dtype] | None, map_: Map, z: Tensor
) -> AbstractContextManager[object]:
    """The mixed precision of the forward pass, whatever surrounds the backward pass."""
    if cast is not None and not isinstance(map_, AffineMap):
        return torch.autocast(cast[0], dtype=cast[1])
    return torch.autocast(z.device.type, enabled=False) if autocasting(z) else AS_IT_IS


def _linear(
    node: Equation,
    make: Callable[..., Callable[[Tensor], Tensor]],
    rhs: Tensor,
    z: Tensor,
    tensors: list[Tensor],
) -> Tensor:
    """Solve ``u = M(z, tensors) u + rhs`` as a fixed point on the tape."""
    flags = node.map_.batched
    # inside a function transform a Jacobian product cannot be rebuilt on fewer rows
    flags = None if flags is None or wrapped(rhs) or wrapped(z) else (True, *flags)
    map_ = LinearMap(make, rhs, (z, *tensors), flags)
    stopping = _stopping(node, z)
    below = Equation(map_, node.solver, stopping, node.adjoint, node.report, linear=True)
    u = _apply(below, rhs, map_.tensors)
    found = below.take()
    if found is not None:
        node.adjoint.record(node.report, found)
    return u
