"""Fixed-point CROWN: the adjoint equilibrium's multipliers, with several choices of slopes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.system import Neurons, System


class Lower(Enum):
    """The lower line of an unstable neuron: its slope is that of a piece, or of the upper line."""

    ADAPTIVE = "the piece that leaves the smaller area"
    PARALLEL = "parallel to the upper line"
    FLAT = "the piece of smaller slope"


def slopes(
    neurons: Neurons, lower: Tensor, upper: Tensor, choice: Lower = Lower.ADAPTIVE
) -> tuple[Tensor, Tensor]:
    """Slopes of a lower and of an upper line of ``phi`` on intervals.

    One kink: the upper line joins the ends of the graph; the lower one is parallel to it, or has
    the smaller or the larger slope of the two pieces, whichever encloses the smaller area
    (adaptive). Other activations: the slope of the chord for both.
    """
    kink = neurons.kink
    width = (upper - lower).clamp(min=1e-300)
    if kink is None:
        low, high = neurons.slope_range(lower, upper)
        chord = ((neurons(upper) - neurons(lower)) / width).maximum(low).minimum(high)
        return chord.clamp(0, 1), chord.clamp(0, 1)
    on, off = lower >= 0, upper <= 0
    share = torch.where(on, 1.0, torch.where(off, 0.0, (upper / width).clamp(0, 1)))
    above = kink + (1 - kink) * share
    match choice:
        case Lower.ADAPTIVE:
            below = torch.where(torch.where(on | off, on, upper > -lower), 1.0, kink)
        case Lower.PARALLEL:
            below = above
        case Lower.FLAT:
            below = torch.where(on, 1.0, kink)
    return below, above


def multipliers(system: System, scope: Scope, rows: Rows, choice: Lower = Lower.ADAPTIVE) -> Tensor:
    """Multipliers of fixed-point CROWN for a batch of rows, shape (N, n).

    ``p = sigma(lam)``, ``lam = r + W^T p``, where ``sigma`` takes the slope of the lower line for
    ``lam_i >= 0`` and that of the upper one for ``lam_i < 0``. On a strictly block-triangular ``W``
    this is the backward pass of CROWN [1].

    References:
        [1] Zhang, Weng, Chen, Hsieh, Daniel. Efficient neural network robustness certification
        with general activation functions. NeurIPS 2018, arXiv 1811.00866.
    """
    below, above = slopes(system.neurons, scope.lower, scope.upper, choice)
    return system.adjoint(rows.state, below, above)


@torch.no_grad()
def crown(
    system: System, scope: Scope, rows: Rows, choices: Sequence[Lower] = tuple(Lower)
) -> tuple[Tensor, Tensor]:
    """The best of several fixed-point CROWN bounds of each row, and the multipliers that prove it.

    Args:
        system: The network.
        scope: One a row.
        rows: Objectives.
        choices: Of the lower slope.

    Returns:
        Proved lower bounds of shape (N,) and multipliers of shape (N, n).
    """
    best = torch.full((len(rows.offset),), -torch.inf, dtype=torch.float64)
    found = torch.zeros(len(best), system.n, dtype=torch.float64)
    for choice in choices:
        p = multipliers(system, scope, rows, choice)
        bound = dual_bound(system, scope, rows, p)
        better = bound > best
        best = torch.where(better, bound, best)
        found = torch.where(better[:, None], p, found)
    return best, found
