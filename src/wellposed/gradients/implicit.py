"""Implicit differentiation: ``dz* = (I - J)^-1 (df/dtheta) dtheta``, right to any order.

The fixed point is an `autograd.Function` of the map's tensors as explicit inputs that saves its
own *output*. Differentiating the backward pass therefore meets the fixed point again, and the
adjoint and tangent equations, being fixed points themselves, are put on the tape the same way.

A backward pass that builds no graph takes a cheap path instead: the analytic transpose for affine
maps, one graph of the map and repeated vector-Jacobian products for any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.func import jvp, vjp
from typing_extensions import override

from wellposed.core.maps import AffineMap, LinearMap, Map
from wellposed.core.peel import plain, wrapped
from wellposed.errors import HigherOrderError, NonConvergenceWarning
from wellposed.gradients.base import Gradient, Problem
from wellposed.solvers.base import AdjointReport, Solution, Status, Stopping, describe, solve
from wellposed.solvers.krylov import LinearSolver, Stationary


@final
@dataclass(frozen=True)
class Implicit(Gradient):
    """The exact gradient ``u = J^T u + g``, ``dL/dtheta = (df/dtheta)^T u``.

    Args:
        adjoint: Solves the linear adjoint equation.
        rtol: Relative tolerance of that solve; `None` takes a tenth of the forward tolerance.
        max_evaluations: Budget of vector-Jacobian products.
    """

    adjoint: LinearSolver = field(default_factory=Stationary)
    rtol: float | None = None
    max_evaluations: int = 2000

    @override
    def attach(self, problem: Problem) -> Solution:
        if not _tracked(problem):
            return problem.run()
        # the adjoint is best conditioned on the canonical form, whatever form the solver iterates
        map_ = problem.map_.canonical()
        node = _Equation(replace(problem, map_=map_), self, AdjointReport(), given=problem.map_)
        value = FixedPoint.apply(node, problem.start, *map_.tensors)
        assert node.solution is not None  # noqa: S101 - set by the forward pass, just run
        return replace(node.solution, value=value, adjoint=node.report)

    def stopping(self, forward: Stopping, dtype: torch.dtype) -> Stopping:
        """Tolerances of the adjoint equation."""
        rtol = self.rtol
        if rtol is None:
            rtol = max(0.1 * forward.tolerances(dtype)[0], 8 * torch.finfo(dtype).eps)
        return Stopping(rtol, 0.0, self.max_evaluations)


def _tracked(problem: Problem) -> bool:
    # under torch.func a tensor may be a dual number or a batch without saying so in requires_grad
    return problem.differentiable or any(wrapped(t) for t in problem.map_.tensors)


@dataclass(eq=False)
class _Equation:
    """What the Function needs besides tensors; `solution` is written by its forward pass."""

    problem: Problem
    gradient: Implicit
    report: AdjointReport
    solution: Solution | None = None
    given: Map | None = None
    linear: bool = False

    def solve(self, tensors: tuple[Tensor, ...], start: Tensor) -> Tensor:
        problem = self.problem
        plain_call = self.given is not None and not any(map(wrapped, (start, *tensors)))
        map_ = self.given if plain_call and self.given else problem.map_.with_tensors(tensors)
        if self.linear:
            assert isinstance(map_, LinearMap)  # noqa: S101 - built so in `_linear`
            found = self.gradient.adjoint.solve(map_, problem.stopping)
        else:
            found = solve(map_, start, problem.solver, problem.stopping)
        self.solution = found
        return found.value


class FixedPoint(torch.autograd.Function):
    """``z*(tensors)`` with derivatives of every order in reverse and forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(node: _Equation, start: Tensor, *tensors: Tensor) -> Tensor:
        return node.solve(tensors, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        node, _, *tensors = inputs
        ctx.node = node
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)
        kind = output.device.type
        ctx.cast = kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        z, *tensors = ctx.saved_tensors
        node: _Equation = ctx.node
        kind, enabled, dtype = ctx.cast
        with torch.autocast(kind, enabled=enabled, dtype=dtype):
            if not torch.is_grad_enabled() and not wrapped(g):
                needed = ctx.needs_input_grad[2:]
                map_ = node.problem.map_.with_tensors(tuple(t.detach() for t in tensors))
                return (None, None, *_cheap(node, map_, z.detach(), g, needed))
            if node.problem.closure:
                return (None, None, *_refuse_second(node, z, g, tensors, ctx.needs_input_grad[2:]))
            f = _function(node.problem.map_)

            def transposed(z: Tensor, *args: Tensor) -> Callable[[Tensor], Tensor]:
                pull = vjp(lambda s: f(s, *args), z)[1]
                return lambda u: pull(u)[0]

            u = _linear(node, transposed, g, z, tensors)
            return (None, None, *vjp(lambda *args: f(z, *args), *tensors)[1](u))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        z, *tensors = ctx.saved_tensors
        node: _Equation = ctx.node
        f = _function(node.problem.map_)
        moved = tuple(
            torch.zeros_like(t) if d is None else d
            for t, d in zip(tensors, tangents[2:], strict=True)
        )

        def forward(z: Tensor, *args: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda v: jvp(lambda s: f(s, *args), (z,), (v,))[1]

        direct = jvp(lambda *args: f(z, *args), tuple(tensors), moved)[1]
        return _linear(node, forward, direct, z, tensors)


def _function(map_: Map) -> Callable[..., Tensor]:
    return lambda z, *tensors: map_.with_tensors(tensors)(z)


def _linear(
    node: _Equation,
    make: Callable[..., Callable[[Tensor], Tensor]],
    rhs: Tensor,
    z: Tensor,
    tensors: list[Tensor],
) -> Tensor:
    """Solve ``u = M(z, tensors) u + rhs`` as a fixed point on the tape."""
    flags = node.problem.map_.batched
    # inside a function transform a Jacobian product cannot be rebuilt on fewer rows
    flags = None if flags is None or wrapped(rhs) or wrapped(z) else (True, *flags)
    map_ = LinearMap(make, rhs, (z, *tensors), flags)
    stopping = node.gradient.stopping(node.problem.stopping, z.dtype)
    inner = Problem(map_, rhs, node.problem.solver, stopping)
    below = _Equation(inner, node.gradient, node.report, linear=True)
    u = FixedPoint.apply(below, rhs, *map_.tensors)
    if below.solution is not None:
        _record(node.report, below.solution)
    return u


def _cheap(
    node: _Equation, map_: Map, z: Tensor, g: Tensor, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """First derivatives without a graph of the backward pass."""
    stopping = node.gradient.stopping(node.problem.stopping, z.dtype)
    solver = node.gradient.adjoint
    if isinstance(map_, AffineMap):
        slopes = map_.slopes(z)
        operator = map_.operator

        def transposed(weight: Tensor, d: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda u: operator.with_weight(weight).adjoint(d * u)

        adjoint = LinearMap(transposed, g, (operator.weight, slopes), (False, True))
        found = solver.solve(adjoint, stopping)
        _record(node.report, found)
        flow = slopes * found.value
        out: list[Tensor | None] = [None] * len(needed)
        if needed[0]:
            out[0] = operator.weight_gradient(flow, z)
        if needed[1]:
            out[1] = flow
        if len(needed) > 2 and needed[2]:
            feedback = map_.tensors[2]
            out[2] = (flow * z).sum_to_size(1, *feedback.shape)[0]
        return out
    return _cheap_general(node, map_, z, g, needed, stopping)


def _cheap_general(
    node: _Equation, map_: Map, z: Tensor, g: Tensor, needed: tuple[bool, ...], stopping: Stopping
) -> list[Tensor | None]:
    wanted = [i for i, need in enumerate(needed) if need]
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        tensors = tuple(
            t.detach().requires_grad_() if i in wanted else t for i, t in enumerate(map_.tensors)
        )
        fz = map_.with_tensors(tensors)(z)

    def pull(u: Tensor) -> Tensor:
        (row,) = torch.autograd.grad(fz, z, u.to(fz.dtype), retain_graph=True, allow_unused=True)
        return torch.zeros_like(u) if row is None else row.to(u.dtype)

    found = node.gradient.adjoint.solve(LinearMap(lambda: pull, g), stopping)
    _record(node.report, found)
    grads = iter(
        torch.autograd.grad(
            fz, [tensors[i] for i in wanted], found.value.to(fz.dtype), allow_unused=True
        )
    )
    return [next(grads) if need else None for need in needed]


def _refuse_second(
    node: _Equation, z: Tensor, g: Tensor, tensors: list[Tensor], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    map_ = node.problem.map_.with_tensors(tuple(t.detach() for t in tensors))
    grads = _cheap(node, map_, z.detach(), g.detach(), needed)
    return [None if d is None else Refuse.apply(d, g, z) for d in grads]


class Refuse(torch.autograd.Function):
    """Passes a first derivative on and raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *_links: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise HigherOrderError(
            "A second derivative was asked for through a cell that is a closure: the tensors it "
            "captures are not inputs of the fixed point, so the result would be wrong.",
            hint="pass an `nn.Module`, or a function `f(z, *args)` with its tensors as `args`.",
        )


def _record(report: AdjointReport, found: Solution) -> None:
    report.evaluations = plain(found.evaluations)
    report.residual = plain(found.residual)
    report.status = plain(found.status)
    if bool((report.status != Status.CONVERGED).any()):
        warnings.warn(
            f"Adjoint equation: {describe(found)} The gradient is not exact.",
            NonConvergenceWarning,
            stacklevel=3,
        )
