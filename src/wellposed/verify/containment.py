"""Preactivation bounds that carry their proof: a box whose image lies strictly inside it.

Bounds found by any method become a certificate here: the box is inflated a little, every bound is
proved again by one multiplier, and what follows is used instead of the bounds that were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.assume import implied
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Scope
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.tighten import Stage
from wellposed.certify.wellposed import Wellposed
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.verify.certificate import Bounds

_INFLATE = 1e-6
_GROW = 0.02


@final
@dataclass(frozen=True, eq=False)
class Contained:
    """Bounds of all preactivations on one region, with everything a certificate says of them.

    Args:
        scope: The region with the bounds that the stages prove.
        bounds: The stages.
        point: An input of the region, shape (d,).
        anchor: The approximate equilibrium there, shape (n,).
    """

    scope: Scope
    bounds: Bounds
    point: Tensor
    anchor: Tensor

    def then(self, stages: Sequence[Stage], scope: Scope) -> Contained:
        """The same with rounds of `tighten`, which started from this scope and led to `scope`."""
        held, first = self.bounds, int(self.bounds.stage.max()) + 1
        sides = [torch.where(stage.upper, -1, 1) for stage in stages]
        numbers = [torch.full_like(s.neuron, first + k) for k, s in enumerate(stages)]
        bounds = replace(
            held,
            multiplier=torch.cat([held.multiplier, *(s.multipliers for s in stages)]),
            neuron=torch.cat([held.neuron, *(s.neuron for s in stages)]),
            side=torch.cat([held.side, *sides]),
            stage=torch.cat([held.stage, *numbers]),
        )
        return replace(self, bounds=bounds, scope=scope)


@torch.no_grad()
def contain(
    system: DenseSystem, scope: Scope, wellposed: Wellposed, *, rounds: int = 30
) -> Contained:
    """Prove preactivation bounds anew, from a box around those of `scope`, by assume and guarantee.

    If ``v*`` at one input lies inside an open box, and from ``v`` in that box follow bounds
    strictly inside, these bounds hold on the whole connected region. The bounds of one assumption
    are those of fixed-point CROWN with the phase trick, or of the neuron's own equation if they are
    better. A box that is not contained grows where it fails.

    Args:
        system: The network, with one-kink activations.
        scope: A batch of one region with bounds, proved or only believed.
        wellposed: Witness of well-posedness.
        rounds: At most so many boxes.

    Raises:
        NotCertifiableError: No box was contained.
        ShapeError: The scope is not a batch of one.
    """
    if len(scope.lower) != 1:
        raise ShapeError(f"The scope holds {len(scope.lower)} regions, expected 1.")
    point = scope.region.centre
    anchor = equilibrium(system.network, point, wellposed).z
    lower, upper = scope.lower, scope.upper
    # a max-norm contraction maps a box and any multiple of eta around it into less than that
    eta = wellposed.weights if wellposed.kind == "max-norm" else torch.ones_like(lower[0])
    width = upper - lower
    reach = _INFLATE * torch.maximum(width, (width / eta).amax() * eta) + 1e-9
    lower, upper = lower - reach, upper + reach
    inside = torch.zeros(system.n, dtype=torch.bool)
    for _ in range(rounds):
        found = implied(system, Scope.of(system, scope.region, Box(lower, upper)))
        low, high = found.lower[0], found.upper[0]
        inside = (low > lower[0]) & (high < upper[0])
        if bool(inside.all()):
            n = system.n
            neuron, side = torch.arange(n).repeat(2), torch.tensor([1, -1]).repeat_interleave(n)
            p = found.multipliers[0]
            bounds = Bounds(lower[0], upper[0], p, neuron, side, torch.zeros(2 * n).long())
            proved = Scope.of(system, scope.region, Box(low[None], high[None]))
            return Contained(proved, bounds, point[0], anchor[0])
        spread = _GROW * (high - low).clamp(min=0) + 1e-9
        lower = torch.where(low > lower, lower, low - spread)
        upper = torch.where(high < upper, upper, high + spread)
        if not bool((torch.isfinite(lower) & torch.isfinite(upper)).all()):
            break
    raise NotCertifiableError(
        f"{int((~inside).sum())} of {system.n} preactivations leave their box again after {rounds} "
        "rounds.",
        hint="the region may be too large for these bounds.",
    )
