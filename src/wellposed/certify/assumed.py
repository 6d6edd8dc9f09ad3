"""Bounds of a row where it is small: what follows if it were, or that it cannot be."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.system import System
from wellposed.certify.tighten import one_sided
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, outward, rounding

WEIGHTS = (0.5, 2.0, 8.0, 32.0)  # of the row, in units of widths
CHOICES = (Lower.ADAPTIVE, Lower.PARALLEL)
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
    assumed = replace(rows, offset=rows.offset - limit)
    inside, found = scope, plain
    for _ in range(rounds):
        span = -crown(system, inside, -rows)[0] - found
        inside = _narrowed(system, inside, assumed, span)
        found, _ = crown(system, inside, rows)
    return torch.maximum(plain, torch.minimum(found, limit))


def _narrowed(system: System, scope: Scope, assumed: Rows, span: Tensor) -> Scope:
    """The same regions with the bounds of the unstable neurons where ``assumed <= 0``.

    ``sign v_i >= min_x ( sign v_i + gamma (m - c) )`` there; `span` is the range of ``m``.
    """
    which, neuron = ((scope.lower < 0) & (scope.upper > 0)).nonzero(as_tuple=True)
    if not len(which):
        return scope
    w, u = system.rows(neuron)
    own, given, part = Rows(w, u, system.bias[neuron]), assumed.select(which), scope.select(which)
    width = (scope.upper - scope.lower)[which, neuron]
    unit = (width / span.clamp(min=TINY)[which]).nan_to_num(0.0, 0.0, 0.0)
    best: list[Tensor] = []
    for above in (False, True):
        signed = -own if above else own
        options = (above, CHOICES)
        tried = [
            one_sided(system, part, neuron, _sum(part, signed, given, k * unit), options)
            for k in WEIGHTS
        ]
        best.append(torch.stack([bound for bound, _ in tried]).amax(0))
    lower, upper = scope.lower.clone(), scope.upper.clone()
    lower[which, neuron] = torch.maximum(lower[which, neuron], best[0])
    upper[which, neuron] = torch.minimum(upper[which, neuron], -best[1])
    return Scope.of(system, scope.region, Box(lower, torch.maximum(lower, upper)))


def _sum(scope: Scope, own: Rows, given: Rows, gamma: Tensor) -> Rows:
    """``own + gamma given``, from below on the scope."""
    assert own.input is not None
    g = gamma[:, None]
    s = torch.zeros_like(own.input) if given.input is None else given.input
    # the sums are rounded, by more than what `dual_bound` sees where two coefficients cancel
    size = ((own.state.abs() + g * given.state.abs()) * scope.state).sum(1)
    size = size + ((own.input.abs() + g * s.abs()) * scope.input).sum(1)
    size = size + own.offset.abs() + gamma * given.offset.abs()
    slack = outward(rounding(8) * size, 4 + own.state.shape[1] + s.shape[1])
    offset = own.offset + gamma * given.offset - slack
    return Rows(own.state + g * given.state, own.input + g * s, offset)
