"""Zonotope boxes of a well-posed network: grown from a point, contained by their own image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.box import value_slack
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.fallback import LipschitzBound, checked, injection
from wellposed.certify.growth import Grown, Search, grow, shrink
from wellposed.certify.interval import image_of
from wellposed.certify.relax import neurons_of
from wellposed.certify.transformer import Transformer
from wellposed.certify.wellposed import Wellposed
from wellposed.core.boxes import Box, below, product
from wellposed.core.network import Network
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward

_CHUNK = 2**24  # numbers in the largest tensor that is formed at a time


@final
@dataclass(frozen=True, eq=False)
class Enclosure:
    """Bounds of the preactivations of all equilibria over a batch of regions.

    Args:
        preactivation: ``l <= v*(x) <= h`` for every input of the region, shape (B, n); proved in
            every row.
        contained: Whether the method proved its own box, shape (B,); elsewhere the row is the
            Lipschitz box, which needs no method.
        unique: Whether the equilibrium is proved to be unique, shape (B,).
        steps: Steps of the search.
        method: What proves the rows that are contained.
    """

    preactivation: Box
    contained: Tensor
    unique: Tensor
    steps: int
    method: str


@torch.no_grad()
def zonotope(network: Network, region: Region, box: Box) -> Box:
    """Bounds of ``v*(x)`` for inputs of `region` whose ``v*(x)`` lies in `box`; in closed form.

    ``P (U x + b + W c) +- |P W| mu`` over the region, ``P = (I - W S)^-1`` for slopes ``S`` and
    offsets ``c +- mu`` of parallel lines around each activation on its interval; each bound with
    its own neuron's phase fixed (`Transformer.conditional`). Where none is proved that of `box` is
    returned.

    Args:
        network: Slopes of the activation in [0, 1].
        region: Inputs, flat, shape (B, d).
        box: Preactivations, shape (B, n).
    """
    region = checked(network, region)
    lower, upper = box.lower.double().clone(), box.upper.double().clone()
    for part in _chunks(network, len(lower)):
        low, high = lower[part], upper[part]
        new_low, new_high = Transformer(network, region.select(part), low, high).conditional()
        lower[part] = torch.where(torch.isfinite(new_low), new_low, low)
        upper[part] = torch.where(torch.isfinite(new_high), new_high, high)
    return Box(lower, upper)


@torch.no_grad()
def zonotope_margins(
    network: Network,
    region: Region,
    box: Box,
    rows: Tensor,
    *,
    inputs: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Proved lower bounds of ``rows z*(x) + inputs x + offset`` over each region.

    ``(I - S W) z = S (U x + b) + c + [mu] eta``, so that for any ``L`` near ``rows (I - S W)^-1``
    the value is ``L S (U x + b) + L c +- |L| mu + R z`` with ``R = rows - L (I - S W)``, and ``z``
    in the image of `box`.

    Args:
        network: The network.
        region: Inputs, shape (B, d).
        box: Proved bounds of the preactivations, shape (B, n).
        rows: On the states, shape (B, R, n).
        inputs: On the inputs, shape (B, R, d); zero if absent.
        offset: Shape (B, R); zero if absent.

    Returns:
        Shape (B, R), float64; -inf where nothing is proved.
    """
    neurons = neurons_of(network)
    region = checked(network, region)
    rows = rows.double()
    found = torch.empty(rows.shape[:2], dtype=torch.float64)
    for part in _chunks(network, len(rows)):
        low, high = box.lower[part].double(), box.upper[part].double()
        t = Transformer(network, region.select(part), low, high)
        s = None if inputs is None else inputs[part].double()
        ends = [end.abs() for end in neurons.image(low, high)]
        state = torch.maximum(*ends)
        reach = torch.maximum(low.abs(), high.abs())
        state = state + value_slack(network.activation, reach, state)
        found[part] = _margins(t, state, rows[part], s)
    if offset is None:
        return found
    found = found + offset
    return found - 4 * UNIT * (found.abs() + offset.abs())


def _margins(t: Transformer, state: Tensor, rows: Tensor, inputs: Tensor | None) -> Tensor:
    r, W, U = t.relaxation, t.W, t.U
    # (I - S W)^-1 = I + S P W, hence L = rows + rows S P W
    L = rows + (rows * r.slope[:, None]) @ t.inverse @ W
    p = L * r.slope[:, None]
    R = (rows - L) + p @ W
    on_input = p @ U if inputs is None else p @ U + inputs
    value = t.region.minimum(on_input) + p @ t.network.b + product(L, r.centre)
    terms = product(p.abs(), t.largest @ U.abs().mT + t.network.b.abs() + state @ W.abs().mT)
    terms = terms + product(L.abs(), r.centre.abs() + state) + product(rows.abs(), state)
    if inputs is not None:
        terms = terms + product(inputs.abs(), t.largest)
    lost = product(L.abs(), r.radius) + product(R.abs(), state) + t.gamma * terms
    lost = outward(lost + TINY, t.network.n + 4)
    return below(value - lost, 8 * UNIT * (value.abs() + lost))


@torch.no_grad()
def zonotope_enclosure(
    network: Network,
    region: Region,
    wellposed: Wellposed | None = None,
    *,
    search: Search | None = None,
) -> Enclosure:
    """Boxes grown from the centre's equilibrium until their zonotope image lies inside them.

    **Theorem.** Let the network be well posed with continuous ``x -> v*(x)``, the region connected,
    and ``v*(x0)`` strictly inside ``[l, h]`` for one of its points. If ``T(l, h)``, a bound of the
    ``v*(x)`` that lie in ``[l, h]``, is strictly inside ``[l, h]``, then ``v*(x)`` lies in
    ``T(l, h)`` for every x. *Proof.* The x with ``v*(x)`` in the open box are those with ``v*(x)``
    in the closed one: an open, closed, non-empty set. QED. Here T is `zonotope` intersected with
    plain intervals and with the Lipschitz box, and ``v*(x0)`` at the centre is bounded by the
    witness (the Lipschitz box of a point), so that no solver is trusted.

    After containment the box is intersected with its image again and again, which needs no proof of
    its own.

    Args:
        network: Slopes of the activation in [0, 1].
        region: Inputs, flat, shape (B, d).
        wellposed: A witness; searched for if absent, and always checked against the weights.
        search: How long.

    Raises:
        NotCertifiableError: The network is not shown to be well posed.
        ShapeError: The region does not fit.
    """
    search = search or Search()
    neurons_of(network)
    region = checked(network, region)
    fallback = LipschitzBound(network, wellposed)
    base = fallback(region)
    injections = injection(network, region)
    lower, upper = base.lower.clone(), base.upper.clone()
    contained = torch.zeros(len(lower), dtype=torch.bool)
    taken = 0
    for part in _chunks(network, len(lower)):
        known, inside = base.select(part), region.select(part)
        centre = inside.centre
        anchor = fallback(Box(centre, centre))
        image = _Image(network, inside, injections.select(part), known)
        grown = _grow(image, search)
        held = (anchor.lower > grown.start.lower) & (anchor.upper < grown.start.upper)
        proved = grown.proved & held.all(1)
        found = shrink(image, grown.box, proved.nonzero()[:, 0], search.rounds)
        taken, contained[part] = max(taken, grown.steps), proved
        ok = proved[:, None]
        lower[part] = torch.where(ok, torch.maximum(found.lower, known.lower), known.lower)
        upper[part] = torch.where(ok, torch.minimum(found.upper, known.upper), known.upper)
    return Enclosure(Box(lower, upper), contained, torch.ones_like(contained), taken, "zonotope")


@final
@dataclass(frozen=True, eq=False)
class _Image:
    """The conditional bound: zonotope, intervals, and the box that needs no condition."""

    network: Network
    region: Region
    injection: Box
    base: Box

    def __call__(self, index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        part = self.region.select(index)
        found = Transformer(self.network, part, low, high).conditional()
        plain = image_of(self.network, self.injection.select(index), Box(low, high))
        base = self.base.select(index)
        low = torch.maximum(torch.maximum(found[0], plain.lower), base.lower)
        return low, torch.minimum(torch.minimum(found[1], plain.upper), base.upper)


def _grow(image: _Image, search: Search) -> Grown:
    network, region = image.network, image.region
    v = approximate_equilibrium(network, region.centre)
    low, high = Transformer(network, region, v, v).bounds()
    reach = torch.maximum(high - v, v - low)
    return grow(image, v, reach, search)


def _chunks(network: Network, count: int) -> list[Tensor]:
    size = max(1, _CHUNK // (network.n * max(network.n, network.d)))
    return list(torch.arange(count).split(size)) if count else []
