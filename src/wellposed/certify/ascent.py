"""Better multipliers by ascent on the dual bound: all slopes and offsets at once."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, Scope, dual_bound, inner
from wellposed.certify.system import System

RATE = 0.1  # first step, in units of each row's mean multiplier
_DECAY = 0.95


def improve(
    system: System, scope: Scope, rows: Rows, p: Tensor, *, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """Multipliers with larger dual bounds, and the bounds that they prove.

    ``L(p)`` of `dual_bound` is concave and piecewise linear in ``p``. Its largest value is that of
    the linear programme over all relaxations between two lines, so that ascent on ``p`` optimises
    the slopes of every neuron and the multipliers of every fixed phase together. Adam with steps
    in units of the multipliers; the best point met counts, so that nothing is ever lost.

    Args:
        system: The network, in any form.
        scope: One a row.
        rows: Objectives.
        p: Where to start, such as the multipliers of `crown`, shape (N, n).
        steps: Evaluations of value and gradient.

    Returns:
        Multipliers of shape (N, n) and proved bounds of shape (N,), not below those of `p`.
    """
    start = p.detach().double()
    best, value = start, dual_bound(system, scope, rows, start)
    # a neuron that no row uses keeps the multiplier zero
    unit = RATE * start.abs().mean(1, keepdim=True).clamp(min=1e-12)
    moving = scope.upper > scope.lower
    point, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        uphill = torch.where(moving, _gradient(system, scope, rows, point), 0.0)
        first = 0.9 * first + 0.1 * uphill
        second = 0.99 * second + 0.01 * uphill.square()
        push = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-30)
        point = point + unit * _DECAY**step * push
        bound = dual_bound(system, scope, rows, point)
        better = bound > value
        value = torch.where(better, bound, value)
        best = torch.where(better[:, None], point, best)
    return best, value


def _gradient(system: System, scope: Scope, rows: Rows, p: Tensor) -> Tensor:
    """A supergradient of ``L`` at ``p``: how far the minimisers violate ``v = W z + U x + b``."""
    with torch.enable_grad():
        p = p.detach().requires_grad_(True)
        wp, up = system.pull(p)
        d = up if rows.input is None else rows.input + up
        value = p @ system.bias + scope.region.minimum(d[:, None])[:, 0]
        lam = rows.state + wp
        value = value + inner(system.neurons, lam, p, scope.lower, scope.upper).sum(1)
        (found,) = torch.autograd.grad(value.sum(), p)
    return found.nan_to_num(0.0, 0.0, 0.0)
