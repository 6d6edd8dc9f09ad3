"""Checks of a gradient: finite differences, grad modes, transforms of the tape."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellposed.errors import AuditError
from wellposed.gradients.base import Gradient
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Stopping


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradient` found.

    Args:
        error: Largest relative error of a first derivative against the dense solution.
        passed: Names of the checks that passed, in order.
    """

    error: float
    passed: list[str] = field(default_factory=list[str])


def check_gradient(
    gradient: Gradient, *, exact: bool = True, size: int = 6, tolerance: float = 1e-8, seed: int = 0
) -> GradientReport:
    """Check a gradient on ``z = tanh(W z + x)``, float64, spectral norm of ``W`` 0.5.

    The value must be the solver's; the tape must depend on grad mode alone; the backward pass must
    be repeatable and reach every listed tensor. With `exact`, first derivatives must equal those of
    the dense linear solve and second ones finite differences of the first.

    Args:
        gradient: The object under test.
        exact: Whether it claims to be exact; otherwise only its cosine must be positive.
        size: Length of the state.
        tolerance: Largest admissible relative error of an exact gradient.
        seed: Of the random problem.

    Raises:
        AuditError: Names the first check that failed.
    """
    generator = torch.Generator().manual_seed(seed)
    w, x, g = (torch.randn(n, size, dtype=torch.float64, generator=generator) for n in (size, 3, 3))
    w = (0.5 * w / torch.linalg.matrix_norm(w, 2)).requires_grad_()
    x.requires_grad_()
    stopping, passed = Stopping(rtol=1e-14, atol=1e-15, max_evaluations=2000), list[str]()

    def value(w: Tensor, x: Tensor) -> Tensor:
        start = torch.zeros(3, size, dtype=torch.float64)
        return fixed_point(_tanh_map, start, w, x, gradient=gradient, stopping=stopping).value

    z = value(w, x)
    _require("value solves the equation", (z - _tanh_map(z, w, x)).abs().max() < 1e-9, passed)
    with torch.no_grad():
        _require("no_grad leaves no tape", not value(w, x).requires_grad, passed)
    free = value(w.detach(), x)
    _require("one input suffices", free.requires_grad, passed)
    once = torch.autograd.grad((z * g).sum(), (w, x), retain_graph=True)
    again = torch.autograd.grad((z * g).sum(), (w, x), retain_graph=True)
    same = all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    _require("backward is repeatable", same, passed)

    dense = _dense(w.detach(), z.detach(), g)
    pairs = list(zip(once, dense, strict=True))
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not exact:
        _require("the direction is not opposed", all((a * b).sum() > 0 for a, b in pairs), passed)
        return GradientReport(error, passed)
    _require(
        f"first derivatives within {tolerance:g} (got {error:.3g})", error <= tolerance, passed
    )
    v = torch.randn(3, size, dtype=torch.float64, generator=generator)

    def slope(x: Tensor, *, graph: bool) -> Tensor:
        loss = value(w, x).pow(2).sum()
        return torch.autograd.grad(loss, x, create_graph=graph)[0]

    (second,) = torch.autograd.grad((slope(x, graph=True) * v).sum(), x)
    h = 1e-5
    plus, minus = (slope((x + s * h * v).detach().requires_grad_(), graph=False) for s in (1, -1))
    gap = float((second - (plus - minus) / (2 * h)).norm() / second.norm())
    _require(f"second derivatives (relative error {gap:.3g})", gap <= 1e-6, passed)
    return GradientReport(error, passed)


def _tanh_map(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ w.mT + x)


def _dense(w: Tensor, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``<g, z*>`` with respect to ``W`` and ``x`` by linear solves."""
    slope = 1 - z**2
    flow = torch.stack(
        [
            d * torch.linalg.solve(torch.eye(len(w), dtype=w.dtype) - (d[:, None] * w).mT, c)
            for d, c in zip(slope, g, strict=True)
        ]
    )
    return flow.mT @ z, flow


def _require(name: str, holds: Tensor | bool, passed: list[str]) -> None:
    if not bool(holds):
        raise AuditError(
            f"Gradient check failed: {name}.", hint=f"checks passed before: {passed or 'none'}."
        )
    passed.append(name)
