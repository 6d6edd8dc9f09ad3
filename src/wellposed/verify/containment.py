"""Preactivation bounds that carry their proof: a box whose image lies strictly inside it.

Bounds found by any method become a certificate here: a box near them is looked for that its image
leaves nowhere, every bound is proved again, and what follows is used instead of what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.assume import implied
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.fallback import injection
from wellposed.certify.growth import Search, grow
from wellposed.certify.interval import image_of
from wellposed.certify.tighten import Stage
from wellposed.certify.wellposed import Wellposed
from wellposed.certify.zonotope import zonotope
from wellposed.core.sets import Box, Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError
from wellposed.verify.proof import FAR, Step

_ROUNDS = 40  # of interval arithmetic
_ROOM = 1e-9  # by which a box is wider than its image, as a part of its size


@final
@dataclass(frozen=True, eq=False)
class Contained:
    """Bounds of all preactivations on one region, with everything a certificate says of them.

    Args:
        scope: The region with the bounds that the steps prove.
        steps: What proves them.
        point: An input of the region, shape (d,).
        anchor: The approximate equilibrium there, shape (n,).
    """

    scope: Scope
    steps: tuple[Step, ...]
    point: Tensor
    anchor: Tensor

    def then(self, stages: Sequence[Stage], scope: Scope) -> Contained:
        """The same with rounds of `tighten`, which started from this scope and led to `scope`."""
        n = scope.lower.shape[1]
        more: list[Step] = []
        for stage in stages:
            # a system of blocks has its outputs behind the others
            own = stage.neuron < n
            side = torch.where(stage.upper[own], -1, 1)
            more.append(
                Step.further(stage.neuron[own], side, stage.multipliers[own][:, :n].float())
            )
        return replace(self, steps=(*self.steps, *more), scope=scope)

    def and_then(self, step: Step, scope: Scope) -> Contained:
        """The same with one more step, which led to `scope`."""
        return replace(self, steps=(*self.steps, step), scope=scope)


@torch.no_grad()
def contain(system: DenseSystem, scope: Scope, wellposed: Wellposed) -> Contained:
    """Prove preactivation bounds anew, where possible as narrow as those of `scope`.

    If ``v*`` at one input lies inside an open box, and from ``v`` in that box, and in what is
    known, follow bounds strictly inside, these bounds hold on the whole connected region. Known is
    `lipschitz_scope`. Where the network is a max-norm contraction the rest follows by interval
    arithmetic. Elsewhere boxes are grown from the equilibrium at the centre, and what they imply
    is the best of the zonotope (fixed-point CROWN with parallel lines), of fixed-point CROWN, and
    of each neuron's own equation.

    Args:
        system: The network, with one-kink activations.
        scope: A batch of one region with bounds, proved or only believed.
        wellposed: Witness of well-posedness.

    Raises:
        ShapeError: The scope is not a batch of one.
    """
    if len(scope.lower) != 1:
        raise ShapeError(f"The scope holds {len(scope.lower)} regions, expected 1.")
    point = scope.region.centre
    anchor = equilibrium(system.network, point, wellposed).z
    if wellposed.kind == "max-norm":
        found = _by_intervals(system, scope)
        if found is not None:
            return Contained(found[0], (found[1],), point[0], anchor[0])
    known = lipschitz_scope(system, scope.region, wellposed, anchor)
    held = Contained(known, (), point[0], anchor[0])
    found = _grown(system, known, system.network.preactivation(anchor, point))
    if found is not None:
        held = held.and_then(found[1], found[0])
    return _shrunk(system, held)


def lipschitz_scope(
    system: DenseSystem, region: Region, wellposed: Wellposed, anchor: Tensor
) -> Scope:
    """Bounds that need no assumption, from the witness alone, around a state at the centre.

    With ``v = W z + U c + b`` for a state z and ``f >= |W (phi(v) - z) + U (x - c)|``,

        max norm    ``|v* - v| <= f + |W| eta max_i f_i / g_i``,  ``g = margin eta``
        monotone    ``|v* - v|_i <= f_i + ||W_i||_(1/Lam) ||f||_Lam / m``

    *Proof.* ``phi(v)`` is the equilibrium of an injection that differs by at most f; see
    `LipschitzBound`, whose bound in the metric is not always the better one.

    Args:
        system: The network.
        region: A batch of one region.
        wellposed: The witness.
        anchor: ``z``, shape (1, n).
    """
    network, W = system.network, system.network.W
    centre, n = region.centre, system.n
    v = network.preactivation(anchor, centre)
    q = injection(network, region)
    middle = centre @ network.U.mT + network.b
    flow = anchor.abs() @ W.abs().mT + centre.abs() @ network.U.abs().mT + network.b.abs()
    off = (network.phi(v) - anchor).abs() + 4 * UNIT * (anchor.abs() + v.abs())
    f = torch.maximum(q.upper - middle, middle - q.lower) + off @ W.abs().mT
    f = outward(f + 4 * rounding(system.terms) * (flow + v.abs()), n) + TINY
    if wellposed.kind == "max-norm":
        eta = wellposed.weights
        away = (f / (wellposed.margin * eta)).amax() * (W.abs() @ eta)
    else:
        root = wellposed.weights.sqrt()
        away = torch.linalg.vector_norm(W / root, dim=1)
        away = away * torch.linalg.vector_norm(root * f) / wellposed.margin
    spread = outward(f + away, 4 * n)
    slack = 4 * UNIT * (v.abs() + spread)
    return Scope.of(system, region, Box(v - spread - slack, v + spread + slack))


Found = tuple[Scope, Step]


def _by_intervals(system: DenseSystem, scope: Scope) -> Found | None:
    """The given box itself, a little wider; then its image, until that is strictly inside."""
    network, region = system.network, scope.region
    q = injection(network, region)
    lower, upper = scope.lower, scope.upper
    for _ in range(_ROUNDS):
        held = Scope.of(system, region, Box(lower, upper))
        image = image_of(network, q, Box(lower, upper))
        room = _ROOM * (1 + held.size)
        low, high = image.lower, image.upper
        if bool(((low > lower + room / 4) & (high < upper - room / 4)).all()):
            return Scope.of(system, region, image), Step.of_intervals(lower[0], upper[0])
        lower, upper = low - room, high + room
        if not bool((torch.isfinite(lower) & torch.isfinite(upper)).all()):
            break
    return None


def _grown(system: DenseSystem, known: Scope, v: Tensor) -> Found | None:
    """A box grown from the equilibrium at the centre until its zonotope lies inside."""
    network, region = system.network, known.region
    q = injection(network, region)

    def image(index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        found, plain = (
            zonotope(network, region, Box(low, high)),
            image_of(network, q, Box(low, high)),
        )
        low = torch.maximum(torch.maximum(found.lower, plain.lower), known.lower)
        return low, torch.minimum(torch.minimum(found.upper, plain.upper), known.upper)

    near = zonotope(network, region, Box(v - 1e-9, v + 1e-9))
    grown = grow(image, v, torch.maximum(near.upper - v, v - near.lower), Search(rounds=0))
    start = grown.start
    outside = (start.lower <= known.lower) & (start.upper >= known.upper)
    if not bool(grown.proved.all()) or bool(outside.all()):
        return None
    lower, upper = torch.maximum(start.lower, known.lower), torch.minimum(start.upper, known.upper)
    scope, step = _image(system, Scope.of(system, region, Box(lower, upper)))
    room = _ROOM * (1 + scope.size)
    # what is known is not assumed, whatever rounding makes of it elsewhere
    low, high = start.lower > known.lower - room, start.upper < known.upper + room
    inside = (~low | (scope.lower > start.lower + room / 4)).all()
    inside &= (~high | (scope.upper < start.upper - room / 4)).all()
    if not bool(inside):
        return None
    far = torch.full_like(lower, FAR)
    box = torch.where(low, start.lower, -far), torch.where(high, start.upper, far)
    return scope, replace(step, lower=box[0][0], upper=box[1][0])


def _shrunk(system: DenseSystem, held: Contained, rounds: int = 6) -> Contained:
    """What is known implies better bounds, again and again while a round takes a share off."""
    n = system.n
    for _ in range(rounds):
        before = held.scope
        scope, step = _image(system, before)
        width = before.upper - before.lower
        gain = torch.cat([scope.lower - before.lower, before.upper - scope.upper])
        # rows that gain little are left out
        better = (gain > 0.01 * width).flatten()
        if not bool(better.any()):
            break
        low = torch.where(better[:n], scope.lower, before.lower)
        high = torch.where(better[n:], scope.upper, before.upper)
        more = Step.further(step.neuron[better], step.side[better], step.multiplier[better])
        held = held.and_then(more, Scope.of(system, before.region, Box(low, high)))
        if float((high - low).sum()) > 0.98 * float(width.sum()):
            break
    return held


def _image(system: DenseSystem, scope: Scope) -> Found:
    """What the bounds of a scope imply, and the rows that show it."""
    n = system.n
    first = implied(system, scope)
    values, p = torch.cat([first.lower[0], -first.upper[0]]), first.multipliers[0]
    for other in _parallel(system, scope):
        own = _sides(system, scope, other.double())
        p = torch.where((own > values)[:, None], other, p)
        values = torch.maximum(values, own)
    low = torch.maximum(values[None, :n], scope.lower)
    high = torch.minimum(-values[None, n:], scope.upper)
    neuron, side = torch.arange(n).repeat(2), torch.tensor([1, -1]).repeat_interleave(n)
    step = Step.of_rows(scope.lower[0], scope.upper[0], (neuron, side, p))
    return Scope.of(system, scope.region, Box(low, torch.maximum(low, high))), step


def _parallel(system: DenseSystem, scope: Scope) -> tuple[Tensor, Tensor]:
    """Multipliers of the zonotope, shape (2 n, n): ``p = lam [S]``, ``lam`` a row of ``P W``.

    ``P = (I - W [S])^-1`` with the slopes S of the chords. With neuron i on the line of its own
    phase, row i of P becomes a multiple of itself; the second result has that.
    """
    network, n = system.network, system.n
    kink, low, high = network.slope, scope.lower[0], scope.upper[0]
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, high / (high - low)))
    slope = kink + (1 - kink) * share
    eye = torch.eye(n, dtype=torch.float64)
    lam = torch.linalg.solve_ex(eye - network.W * slope, network.W)[0]
    own, diagonal = torch.diagonal(lam), torch.arange(n)
    is_open = (low < 0) & (high > 0)
    parts: list[Tensor] = []
    for side, phase in ((1.0, kink), (-1.0, torch.ones_like(kink))):
        at = torch.where(is_open, phase, slope)
        scale = side / (1 - (at - slope) * own)
        p = scale[:, None] * lam * slope
        p[diagonal, diagonal] = scale * own * at
        parts.append(p)
    plain = torch.cat([lam * slope, -lam * slope])
    return plain.float().nan_to_num(0, 0, 0), torch.cat(parts).float().nan_to_num(0, 0, 0)


def _sides(system: DenseSystem, scope: Scope, p: Tensor) -> Tensor:
    """Lower bounds of every ``v_i`` and then of every ``-v_i``, with the phase trick."""
    n, net = system.n, system.network
    neuron = torch.arange(n).repeat(2)
    side = torch.tensor([1.0, -1.0]).double().repeat_interleave(n)
    rows = Rows(side[:, None] * net.W[neuron], side[:, None] * net.U[neuron], side * net.b[neuron])
    part = scope.select(torch.zeros(2 * n, dtype=torch.long))
    own = torch.nn.functional.one_hot(neuron, n).bool()
    crossing = own & (part.lower < 0) & (part.upper > 0)
    low = torch.where(crossing & (side < 0)[:, None], 0.0, part.lower)
    high = torch.where(crossing & (side > 0)[:, None], 0.0, part.upper)
    value = dual_bound(system, part.within(low, high), rows, p)
    return torch.where(crossing.any(1), value.clamp(max=0.0), value)
