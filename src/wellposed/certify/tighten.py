"""Tighter preactivation bounds: fixed-point CROWN on every unstable neuron, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.system import System
from wellposed.core.sets import Box

BATCH = 1024  # rows bounded at a time


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """One round of tightening of one region: what a checker needs to repeat it.

    Args:
        neuron: Which preactivations were bounded, shape (K,).
        upper: Whether from above, shape (K,), boolean.
        multipliers: One row each, shape (K, n).
    """

    neuron: Tensor
    upper: Tensor
    multipliers: Tensor


@torch.no_grad()
def tighten(
    system: System,
    scope: Scope,
    *,
    rounds: int = 3,
    choices: Sequence[Lower] = (Lower.ADAPTIVE, Lower.PARALLEL),
    shrink: float = 0.02,
) -> tuple[Scope, list[list[Stage]]]:
    """Bound every unstable preactivation by fixed-point CROWN, with the phase trick, in rounds.

    To bound ``v_i`` from above only inputs with ``v_i >= 0`` matter: the row of neuron i is bounded
    with ``v_i`` in ``[0, h_i]``, and the new bound is the larger of 0 and the result; from below
    alike with ``[l_i, 0]``.

    Args:
        system: The network, with one-kink activations or any others (then without the trick).
        scope: A batch of regions with proved bounds.
        rounds: At most so many.
        choices: Of lower slopes; the best counts.
        shrink: A region is done when its total width shrank by less than this fraction, whatever
            the others of its batch do.

    Returns:
        The tighter scope, and for every region the stages that prove it.
    """
    proofs: list[list[Stage]] = [[] for _ in range(len(scope.lower))]
    active = torch.ones(len(proofs), 1) > 0
    for _ in range(rounds):
        is_open = (scope.lower < 0) & (scope.upper > 0) & active
        image, neuron = is_open.nonzero(as_tuple=True)
        if not len(image):
            break
        lower, upper = scope.lower.clone(), scope.upper.clone()
        found = [_bound(system, scope, image, neuron, (side, choices)) for side in (False, True)]
        lower[image, neuron] = torch.maximum(lower[image, neuron], found[0][0])
        upper[image, neuron] = torch.minimum(upper[image, neuron], -found[1][0])
        for k in range(len(proofs)):
            mine = image == k
            if bool(mine.any()):
                proofs[k].append(_stage(neuron[mine], [p[mine] for _, p in found]))
        before = (scope.upper - scope.lower).sum(1)
        scope = Scope.of(system, scope.region, Box(lower, torch.maximum(lower, upper)))
        after = (scope.upper - scope.lower).sum(1)
        active &= (before - after > shrink * before)[:, None]
    return scope, proofs


def _stage(neuron: Tensor, found: list[Tensor]) -> Stage:
    side = torch.arange(2).repeat_interleave(len(neuron)) == 1
    return Stage(neuron.repeat(2), side, torch.cat(found))


def _bound(
    system: System,
    scope: Scope,
    image: Tensor,
    neuron: Tensor,
    options: tuple[bool, Sequence[Lower]],
) -> tuple[Tensor, Tensor]:
    """Proved lower bounds of ``v_i``, or of ``-v_i`` for `upper`, and their multipliers."""
    bounds: list[Tensor] = []
    proofs: list[Tensor] = []
    sign = -1.0 if options[0] else 1.0
    for at, which in zip(image.split(BATCH), neuron.split(BATCH), strict=True):
        w, u = system.rows(which)
        rows = Rows(sign * w, sign * u, sign * system.bias[which])
        bound, p = one_sided(system, scope.select(at), which, rows, options)
        bounds.append(bound)
        proofs.append(p)
    return torch.cat(bounds), torch.cat(proofs)


def one_sided(
    system: System,
    scope: Scope,
    neuron: Tensor,
    rows: Rows,
    options: tuple[bool, Sequence[Lower]],
) -> tuple[Tensor, Tensor]:
    """Rows that bound a neuron from below, or its negative for `upper`, with the phase trick.

    Args:
        system: The network.
        scope: One a row.
        neuron: Which one each row bounds, shape (K,).
        rows: Their values are at most ``v_i``, or ``-v_i``, wherever the bound is to hold.
        options: Whether from above, and the choices of lower slopes.

    Returns:
        Proved bounds of shape (K,) and multipliers of shape (K, n).
    """
    upper, choices = options
    if system.neurons.kink is None:
        return crown(system, scope, rows, choices)
    low, high = scope.lower.clone(), scope.upper.clone()
    (low if upper else high)[torch.arange(len(neuron)), neuron] = 0.0
    bound, p = crown(system, scope.within(low, high), rows, choices)
    return bound.clamp(max=0.0), p
