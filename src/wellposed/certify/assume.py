"""Assume and guarantee with fixed-point CROWN: boxes that contain what they imply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.fallback import confirmed
from wellposed.certify.growth import Search, grow
from wellposed.certify.wellposed import Wellposed
from wellposed.certify.zonotope import zonotope
from wellposed.core.sets import Box, Region
from wellposed.core.spectra import outward, rounding

_BATCH = 1024
_CHOICES = (Lower.ADAPTIVE, Lower.PARALLEL)


@final
@dataclass(frozen=True, eq=False)
class Implied:
    """What follows for every preactivation from bounds of all of them.

    Args:
        lower: Shape (B, n).
        upper: Shape (B, n).
        multipliers: Of the lower bounds, then of the upper ones, shape (B, 2 n, n), float32.
    """

    lower: Tensor
    upper: Tensor
    multipliers: Tensor


@torch.no_grad()
def implied(system: DenseSystem, scope: Scope) -> Implied:
    """Bounds of all preactivations under the assumption that those of `scope` hold.

    Each is the better one of fixed-point CROWN and of the neuron's own equation with intervals for
    the others. Zero bounds a neuron where its sign is the other one, so that only inputs on which
    ``v_i`` has the sign of the bound are looked at (the phase trick).

    Args:
        system: The network.
        scope: A batch of B regions.
    """
    net, n, count = system.network, system.n, len(scope.lower)
    image = torch.arange(count).repeat_interleave(2 * n)
    neuron = torch.arange(n).repeat(2 * count)
    sign = torch.tensor([1.0, -1.0]).double().repeat_interleave(n).repeat(count)
    bounds: list[Tensor] = []
    kept: list[Tensor] = []
    for at in torch.arange(len(image)).split(_BATCH):
        which, side = neuron[at], sign[at, None]
        rows = Rows(side * net.W[which], side * net.U[which], side[:, 0] * net.b[which])
        part = scope.select(image[at])
        own = torch.nn.functional.one_hot(which, n).bool()
        crossing = own & (part.lower < 0) & (part.upper > 0)
        low = torch.where(crossing & (side < 0), 0.0, part.lower)
        high = torch.where(crossing & (side > 0), 0.0, part.upper)
        part = part.within(low, high)
        tried = [crown(system, part, rows, _CHOICES)[1].float(), _own(system, part, which, side)]
        values = [dual_bound(system, part, rows, p.double()) for p in tried]
        better = values[1] > values[0]
        value = torch.where(better, values[1], values[0])
        bounds.append(torch.where(crossing.any(1), value.clamp(max=0.0), value))
        kept.append(torch.where(better[:, None], tried[1], tried[0]))
    proved = torch.cat(bounds).reshape(count, 2, n)
    return Implied(proved[:, 0], -proved[:, 1], torch.cat(kept).reshape(count, 2 * n, n))


def _own(system: DenseSystem, part: Scope, which: Tensor, side: Tensor) -> Tensor:
    """Multipliers that solve each neuron's own equation and bound all others by intervals."""
    rows = torch.arange(len(which))
    slope = torch.where(part.upper[rows, which] > 0, 1.0, _flat(system)[which])
    pull = system.network.W[which, which] * slope
    p = torch.zeros(len(which), system.n, dtype=torch.float64)
    p[rows, which] = side[:, 0] * pull / (1 - pull)
    return p.float()


def _flat(system: DenseSystem) -> Tensor:
    """The slope below zero, where there is one."""
    kink = system.neurons.kink
    return torch.zeros(system.n, dtype=torch.float64) if kink is None else kink


@torch.no_grad()
def crown_enclosure(
    system: DenseSystem,
    region: Region,
    wellposed: Wellposed | None = None,
    search: Search | None = None,
) -> tuple[Box, Tensor]:
    """Boxes of preactivations grown from the centre's equilibrium until they contain what follows.

    **Theorem.** Let ``x -> v*(x)`` be continuous on a connected region, ``v*(c)`` in the open box
    ``(l, h)`` for one input c, and let ``l <= v*(x) <= h`` imply ``v*(x)`` in a closed box T inside
    ``(l, h)``. Then ``v*(x)`` is in T for every input. *Proof.* The inputs with ``v*`` in the open
    box and those with ``v*`` in the closed one are the same set; it is open, closed and not empty.

    The implication is weak duality (`dual_bound`) with the multipliers of fixed-point CROWN, which
    contains where the zonotope does not; it takes 2 n rows a step and a region.

    Args:
        system: A network that is shown to be well posed.
        region: Flat, shape (B, d).
        wellposed: A witness; searched for if absent, checked against the weights in any case.
        search: How long.

    Returns:
        The boxes, shape (B, n), and whether each is proved; where it is not it must not be used.

    Raises:
        NotCertifiableError: The network is not shown to be well posed.
    """
    network = system.network
    witness = confirmed(network, wellposed)
    centre = region.centre.flatten(1)
    z, error = equilibrium(network, centre, witness)
    v = network.preactivation(z, centre)
    off = _anchor_error(system, z, centre, error)

    def image(index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scope = Scope.of(system, region.select(index), Box(low, high))
        found = implied(system, scope)
        return found.lower, found.upper

    near = zonotope(network, region, Box(v - 1e-9, v + 1e-9))
    reach = torch.maximum(near.upper - v, v - near.lower)
    grown = grow(image, v, reach, search or Search())
    anchored = (grown.start.lower < v - off) & (v + off < grown.start.upper)
    return grown.box, grown.proved & anchored.all(1)


def _anchor_error(system: DenseSystem, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
    """Bound of ``|v*(x) - v|`` for the computed ``v = W z + U x + b`` and ``|z* - z| <= error``."""
    net = system.network
    zero = torch.zeros_like(x)
    size = system.reach(z.abs(), x.abs()) + net.b.abs()
    moved = system.reach(error.expand_as(z), zero)
    return outward(moved + 2 * rounding(system.terms + 4) * size, 4).nan_to_num(torch.inf)
