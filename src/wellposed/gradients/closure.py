"""Implicit first derivatives of a function that captures tensors it does not list.

What a closure captures cannot be an input of an `autograd.Function`. The function is therefore
applied once more to the fixed point, on the tape, so that autograd itself reaches the captured
tensors; only the cotangent is replaced by the adjoint state. A second derivative through that
construction would be wrong, silently, and is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wellposed.core.linear_maps import LinearMap
from wellposed.core.maps import Map
from wellposed.core.peel import wrapped
from wellposed.errors import ConfigError, HigherOrderError
from wellposed.gradients.base import Problem, autocasting
from wellposed.gradients.firstorder import transposed_of
from wellposed.gradients.function import Adjoint
from wellposed.solvers.base import AdjointReport, Solution, first_iterate


def captures(problem: Problem) -> bool:
    """Whether the function reaches tensors that want a gradient and are not among its arguments.

    Found by evaluating it once on arguments without history.

    Raises:
        ConfigError: A captured tensor belongs to a `torch.func` transform.
    """
    if not problem.closure or not torch.is_grad_enabled():
        return False
    map_ = problem.map_.detach()
    start = first_iterate(map_, problem.start)
    probe = map_(start)
    inputs = (start, *map_.tensors)
    if _level(probe) > max(_level(t) for t in inputs) or (wrapped(probe) and probe.requires_grad):
        raise ConfigError(
            "The function captures a tensor of a torch.func transform, which cannot be followed "
            "through a closure.",
            hint="list it: `fixed_point(f, z0, w, x)` with `f(z, w, x)`, or pass an `nn.Module`.",
        )
    return probe.requires_grad


def attach_closure(problem: Problem, adjoint: Adjoint) -> Solution:
    """Solve and put the value on the tape, captured tensors included; first order only."""
    solution, report = problem.run(), AdjointReport()
    z = solution.value
    fz = problem.map_(z)
    coarse = autocasting(z)
    stopping = adjoint.stopping(problem.stopping, z.dtype, coarse=coarse)
    pull = _Pull(problem.map_.detach(), adjoint, stopping, report)
    value: Tensor = _Reattach.apply(pull, z, fz)  # pyright: ignore
    return solution.on_tape(value, report if adjoint.report else None)


def _level(x: Tensor) -> int:
    return torch._C._functorch.maybe_get_level(x) if wrapped(x) else -1  # pyright: ignore


class _Pull:
    """Turns the cotangent of the fixed point into that of one application of the function."""

    def __init__(self, map_: Map, adjoint: Adjoint, stopping: Any, report: AdjointReport) -> None:
        self.map_, self.adjoint, self.stopping, self.report = map_, adjoint, stopping, report

    def __call__(self, z: Tensor, g: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            fz = self.map_(z)
        with torch.no_grad():
            linear = LinearMap(lambda: transposed_of(fz, z), g.detach())
            found = self.adjoint.solver.solve(linear, self.stopping)
        self.adjoint.record(self.report, found)
        return found.value


class _Reattach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: _Pull, z: Tensor, fz: Tensor) -> Tensor:  # pyright: ignore
        ctx.pull, kind = pull, z.device.type
        ctx.cast = kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.save_for_backward(z, fz)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        z, fz = ctx.saved_tensors
        kind, enabled, dtype = ctx.cast
        with torch.autocast(kind, enabled=enabled, dtype=dtype):
            u = ctx.pull(z, g)
        if torch.is_grad_enabled():
            # linked to the graph: whoever differentiates the gradient meets the refusal
            u = _Refuse.apply(u, g, fz)  # pyright: ignore
        return None, None, u  # pyright: ignore


class _Refuse(torch.autograd.Function):
    """Passes a first derivative on and raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *_links: Tensor) -> Tensor:  # pyright: ignore
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise HigherOrderError(
            "A second derivative was asked for through a function that captures tensors: they are "
            "not inputs of the fixed point, so the result would be wrong.",
            hint="pass an `nn.Module`, or a function `f(z, *args)` with its tensors as `args`.",
        )
