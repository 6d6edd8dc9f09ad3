"""Krawczyk boxes of a network: existence and uniqueness of equilibria, without a hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.box import value_slack
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.fallback import checked
from wellposed.certify.growth import Search, grow, shrink
from wellposed.certify.system import Neurons
from wellposed.core.boxes import Box, below, product
from wellposed.core.network import Network
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding

SLOPES = 1e-14  # error of a computed slope of a smooth activation
_CHUNK = 2**24  # numbers in the largest tensor that is formed at a time


@final
@dataclass(frozen=True, eq=False)
class KrawczykBox:
    """What holds for every input of a batch of regions.

    Args:
        box: For a network the preactivations, for a general cell the states, shape (B, n). Where
            `exists` is false it is the last box that was tried, and proves nothing.
        exists: Whether every input of the region has an equilibrium in the box, and `searched`
            holds no equilibrium outside `box`, shape (B,).
        unique: Whether, in addition, every input has at most one in `searched`, shape (B,).
        searched: The larger box about which this was proved.
        steps: Of the search.
    """

    box: Box
    exists: Tensor
    unique: Tensor
    searched: Box
    steps: int


def slopes_from(neurons: Neurons, start: Tensor, lower: Tensor, upper: Tensor) -> Box:
    """Difference quotients of ``phi`` between `start` and any point of ``[lower, upper]``.

    For ``phi(v) = max(v, a v)`` the quotient is monotone in the other point, so that the ends
    bound it; other activations are bounded by the quotients of all pairs.
    """
    kink = neurons.kink
    if kink is None:
        low, high = neurons.slope_range(lower, upper)
        return Box(torch.minimum(low - SLOPES, high), torch.maximum(high + SLOPES, low))
    on = start > 0
    # the line from a point on one branch to the end on the other one
    down = (start - kink * lower.clamp(max=0)) / (start - lower.clamp(max=0)).clamp(min=TINY)
    up = (upper.clamp(min=0) - kink * start) / (upper.clamp(min=0) - start).clamp(min=TINY)
    one = torch.ones_like(start)
    low = torch.where(on, torch.where(lower < 0, down * (1 - 8 * UNIT), one), kink)
    high = torch.where(on, one, torch.where(upper > 0, up * (1 + 8 * UNIT), kink))
    low, high = torch.maximum(low, kink), torch.minimum(high, one)
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def halves(slopes: Box) -> tuple[Tensor, Tensor]:
    """Centre and radius of intervals of slopes, the radius rounded up."""
    middle = slopes.lower / 2 + slopes.upper / 2
    radius = torch.maximum(slopes.upper - middle, middle - slopes.lower)
    return middle, radius * (1 + 4 * UNIT) + torch.where(radius > 0, UNIT, 0.0)


def inverse(system: Tensor) -> Tensor:
    """An approximate inverse of each matrix; zero where there is none."""
    P, info = torch.linalg.inv_ex(system)
    broken = (info != 0) | ~torch.isfinite(P).flatten(1).all(1)
    return torch.where(broken[:, None, None], torch.zeros_like(P), P)


@torch.no_grad()
def krawczyk_image(
    network: Network, region: Region, start: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """The Krawczyk image ``T`` of a box of preactivations, from below and above [1].

    ``v`` in ``[l, h]`` is an equilibrium at x if and only if ``v = v0 + P (W (S - Sc) (v - v0) +
    U x + b + W phi(v0) - v0) + (I - P (I - W Sc)) (v - v0)``, with ``S`` the difference quotients
    of ``phi`` between v and v0 (if ``P`` is nonsingular, which strict containment implies). The
    right-hand side maps the box into

        ``v0 + P (U x + b + W phi(v0) - v0) +- ( |P W| Sr + |I - P (I - W Sc)| ) r``

    with ``r = max(h - v0, v0 - l)``. Hence, if T lies strictly inside ``[l, h]`` then every x has
    an equilibrium there (Brouwer), and all that are in ``[l, h]`` lie in T. ``v0`` need not solve
    anything; it has to lie in the box.

    Args:
        network: Any weights, any activation.
        region: Inputs, flat, shape (B, d).
        start: ``v0``, shape (B, n).
        lower: ``l <= v0``, shape (B, n).
        upper: ``h >= v0``, shape (B, n).

    References:
        [1] Krawczyk. Newton-Algorithmen zur Bestimmung von Nullstellen mit Fehlerschranken.
        Computing 4, 1969; slopes after Hansen.
    """
    neurons = Neurons(network.activation, network.linear)
    W, U, n = network.W, network.U, network.n
    middle, radius = halves(slopes_from(neurons, start, lower, upper))
    P = inverse(torch.eye(n, dtype=torch.float64) - W * middle[:, None, :])
    reach = torch.maximum(upper - start, start - lower) * (1 + 4 * UNIT) + TINY
    gamma = 3 * rounding(2 * n + network.d + 64)
    z = neurons(start)
    error = value_slack(network.activation, start, z) @ W.abs().mT
    constant = product(P, (network.b - start) + z @ W.mT)
    low, high = region.extent(P @ U)
    spread = outward(product((P @ W).abs(), radius * reach), n) + product(P.abs(), error)
    box = region.box
    largest = torch.maximum(box.lower.abs(), box.upper.abs()) @ U.abs().mT
    summed = largest + network.b.abs() + start.abs() + (z.abs() + radius * reach) @ W.abs().mT
    slack = spread + gamma * product(P.abs(), summed) + defect(P, W, middle, reach)
    slack = outward(slack + TINY, n)
    low, high = (low + constant) - slack + start, (high + constant) + slack + start
    last = 8 * UNIT * (start.abs() + slack + constant.abs() + low.abs() + high.abs())
    inside = ((start >= lower) & (start <= upper)).all(1, keepdim=True)
    low, high = below(low, last), -below(-high, last)
    return torch.where(inside, low, -torch.inf), torch.where(inside, high, torch.inf)


def defect(P: Tensor, W: Tensor, slope: Tensor, reach: Tensor) -> Tensor:
    """An upper bound of ``|I - P (I - W [slope])| reach``."""
    n = W.shape[-1]
    eye = torch.eye(n, dtype=torch.float64)
    E = eye - P @ (eye - W * slope[:, None, :])
    size = reach + product(P.abs(), reach + product(W.abs(), slope.abs() * reach))
    return outward(product(E.abs(), reach) + 3 * rounding(2 * n + 64) * size, n)


@torch.no_grad()
def krawczyk_unique(network: Network, lower: Tensor, upper: Tensor) -> Tensor:
    """Whether no input has two equilibria with preactivations in the box, shape (B,).

    Two of them satisfy ``v - v' = G' (v - v')`` with ``|G'| <= G = |P W| Sr + |I - P (I - W Sc)|``
    for slopes of *arbitrary* pairs of the box; ``G e < e`` for some ``e > 0`` excludes that.
    (Slopes from one point do not, and neither does `krawczyk_image`.)
    """
    neurons = Neurons(network.activation, network.linear)
    low, high = neurons.slope_range(lower, upper)
    if neurons.kink is None:
        low, high = low - SLOPES, high + SLOPES
    else:
        low, high = (
            torch.where(lower >= 0, 1.0, neurons.kink),
            torch.where(upper > 0, 1.0, neurons.kink),
        )
    middle, radius = halves(Box(torch.minimum(low, high), torch.maximum(low, high)))
    W, n = network.W, network.n
    eye = torch.eye(n, dtype=torch.float64)
    P = inverse(eye - W * middle[:, None, :])
    PW = (P @ W).abs()
    gamma = 3 * rounding(2 * n + 64)

    def product_above(e: Tensor) -> Tensor:
        flow = product(PW, radius * e) + gamma * product(P.abs(), product(W.abs(), radius * e))
        return outward(flow + defect(P, W, middle, e), n)

    system = eye - PW * radius[:, None, :]
    e, _ = torch.linalg.solve_ex(system, torch.ones_like(lower))
    e = torch.where(torch.isfinite(e) & (e > 0), e, 1.0)
    return (product_above(e) < e).all(1)


@torch.no_grad()
def krawczyk(
    network: Network,
    region: Region,
    *,
    start: Tensor | None = None,
    search: Search | None = None,
) -> KrawczykBox:
    """Boxes around an equilibrium of each region's centre that prove existence, and uniqueness.

    A box is grown until its `krawczyk_image` lies strictly inside; then it is intersected with its
    images, and tested by `krawczyk_unique`.

    Args:
        network: Any weights; any activation with known slopes, monotone or not.
        region: Inputs, flat, shape (B, d).
        start: Where boxes grow from, shape (B, n); an approximate equilibrium if absent.
        search: How long.

    Raises:
        ShapeError: The region does not fit.
    """
    region = checked(network, region)
    v = approximate_equilibrium(network, region.box.centre) if start is None else start.double()
    size = max(1, _CHUNK // (network.n * max(network.n, network.d)))
    parts = [
        _search(network, region.select(k), v[k], search or Search())
        for k in torch.arange(len(v)).split(size)
    ]
    return KrawczykBox(
        _joined([p.box for p in parts]),
        torch.cat([p.exists for p in parts]),
        torch.cat([p.unique for p in parts]),
        _joined([p.searched for p in parts]),
        max(p.steps for p in parts),
    )


def _search(network: Network, region: Region, start: Tensor, search: Search) -> KrawczykBox:
    def image(index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        # after shrinking the start may lie outside: slopes are then taken from the nearest point
        v = torch.maximum(torch.minimum(start[index], high), low)
        return krawczyk_image(network, region.select(index), v, low, high)

    low, high = image(torch.arange(len(start)), start, start)
    grown = grow(image, start, torch.maximum(high - start, start - low), search)
    box = shrink(image, grown.box, grown.proved.nonzero()[:, 0], search.rounds)
    unique = grown.proved & krawczyk_unique(network, box.lower, box.upper)
    return KrawczykBox(box, grown.proved, unique, grown.start, grown.steps)


def _joined(boxes: list[Box]) -> Box:
    return Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
