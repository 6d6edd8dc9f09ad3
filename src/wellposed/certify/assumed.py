"""Bounds of a row where it is small: what follows if it were, or that it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.system import System
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, outward, rounding

WEIGHTS = (0.5, 2.0, 8.0, 32.0)  # of the row, in units of widths
PART = 1e-3  # of the missing margin, which is assumed not to be exceeded


@torch.no_grad()
def assumed_bound(system: System, scope: Scope, rows: Rows, *, rounds: int = 2) -> Tensor:
    """``min_x m(x)`` of rows ``m = r z* + s x + t`` from below, by assuming that it is small.

    Every input has ``m > c``, or it lies in ``S = {m <= c}``; hence ``m >= min(c, min_S m)`` for
    any ``c``. On ``S`` preactivations are bounded more narrowly: for any ``gamma >= 0``
    ``v_i >= min_x ( v_i + gamma (m - c) )``, as what is added is not positive there [1]. Each
    unstable neuron is bounded so from both sides, with several ``gamma`` and the phase trick of
    `tighten`, and fixed-point CROWN bounds the row on the narrower intervals. Where ``S`` is empty,
    every bound holds on it, and ``m > c`` follows as soon as one of them says so. Here ``c`` is
    a thousandth of what CROWN misses; a row that it proves positive keeps its bound.

    Args:
        system: The network.
        scope: One a row, proved.
        rows: Objectives.
        rounds: How often the neurons are bounded; each narrows the next.

    Returns:
        Proved lower bounds of shape (N,), never below those of `crown`.

    References:
        [1] Kotha, Brix, Kolter, Dvijotham, Zhang. Provably bounding neural network preimages.
        NeurIPS 2023, arXiv 2302.01404 (there of inputs, for explicit networks).
    """
    plain, _ = crown(system, scope, rows)
    limit = PART * (-plain).clamp(min=0.0).nan_to_num(posinf=0.0)
    inside = scope
    for _ in range(rounds):
        inside = _narrowed(system, inside, _Assumption(rows, limit))
    found, _ = crown(system, inside, rows)
    return torch.maximum(plain, torch.minimum(found, limit))


@final
@dataclass(frozen=True, eq=False)
class _Assumption:
    """``m <= c``, one a row."""

    rows: Rows
    limit: Tensor


def _narrowed(system: System, scope: Scope, assumed: _Assumption) -> Scope:
    """The same regions with the bounds of the unstable neurons where the assumption holds."""
    which, neuron = ((scope.lower < 0) & (scope.upper > 0)).nonzero(as_tuple=True)
    if not len(which):
        return scope
    rows = assumed.rows
    span = -crown(system, scope, -rows)[0] - crown(system, scope, rows)[0]
    width = (scope.upper - scope.lower)[which, neuron]
    unit = (width / span.clamp(min=TINY)[which]).nan_to_num(0.0, 0.0, 0.0)
    lower, upper = scope.lower.clone(), scope.upper.clone()
    for sign in (1.0, -1.0):
        tried = [
            _bound(system, scope, (which, neuron), (sign, weight * unit), assumed)
            for weight in WEIGHTS
        ]
        best = torch.stack(tried).amax(0)
        if sign > 0:
            lower[which, neuron] = torch.maximum(lower[which, neuron], best)
        else:
            upper[which, neuron] = torch.minimum(upper[which, neuron], -best)
    return Scope.of(system, scope.region, Box(lower, torch.maximum(lower, upper)))


def _bound(
    system: System,
    scope: Scope,
    at: tuple[Tensor, Tensor],
    factors: tuple[float, Tensor],
    assumed: _Assumption,
) -> Tensor:
    """``sign v_i >= min_x ( sign v_i + gamma (m - c) )`` where ``m <= c``; proved."""
    (which, neuron), (sign, gamma) = at, factors
    w, u = system.rows(neuron)
    part, given, limit = scope.select(which), assumed.rows.select(which), assumed.limit[which]
    s = torch.zeros_like(u) if given.input is None else given.input
    g = gamma[:, None]
    away = given.offset - limit
    own = Rows(
        sign * w + g * given.state, sign * u + g * s, sign * system.bias[neuron] + gamma * away
    )
    # a sum of two coefficients is rounded, by more than what `dual_bound` sees if they cancel
    state = ((w.abs() + g * given.state.abs()) * part.state).sum(1)
    size = state + ((u.abs() + g * s.abs()) * part.input).sum(1)
    size = size + system.bias[neuron].abs() + gamma * (given.offset.abs() + limit)
    slack = outward(rounding(8) * size, 4 + system.n + system.d)
    trick = system.neurons.kink is not None
    if trick:
        # only where `sign v_i <= 0` can the bound be negative
        low, high = part.lower.clone(), part.upper.clone()
        (high if sign > 0 else low)[torch.arange(len(neuron)), neuron] = 0.0
        part = part.within(low, high)
    bound, _ = crown(system, part, own, (Lower.ADAPTIVE, Lower.PARALLEL))
    bound = (bound - slack).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    return bound.clamp(max=0.0) if trick else bound
