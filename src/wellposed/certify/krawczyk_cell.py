"""Krawczyk boxes of a general cell ``z = f(z, x)`` with bounded Jacobians."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellposed.certify.growth import Search, grow, shrink
from wellposed.certify.krawczyk import KrawczykBox, halves, inverse
from wellposed.core.boxes import Box, below, product
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError

# points (B, n), (B, d) -> a box around f, shape (B, n)
Value = Callable[[Tensor, Tensor], Box]
# boxes of states and inputs -> boxes of all partial derivatives, shapes (B, n, n) and (B, n, d)
Jacobian = Callable[[Box, Box], tuple[Box, Box]]


@torch.no_grad()
def krawczyk_cell(
    value: Value,
    jacobian: Jacobian,
    region: Region,
    start: Tensor,
    *,
    search: Search | None = None,
) -> KrawczykBox:
    """Boxes of states that prove one and only one equilibrium for every input of each region.

    By the mean value theorem, a row at a time, ``f(z, x) = f(z0, x0) + J (z - z0) + K (x - x0)``
    with rows of Jacobians on the box. Equilibria z are the fixed points of

        ``z0 + P ( f(z0, x0) - z0 + (J - Jc)(z - z0) + K (x - x0) ) + (I - P (I - Jc)) (z - z0)``

    whose image of the box is bounded componentwise. If that lies strictly inside the box, every
    input has an equilibrium there (Brouwer), and because the Jacobians belong to *all* pairs of
    points of the box, the map contracts in a weighted max norm: there is only one.

    Args:
        value: Encloses ``f`` at points, rounding included.
        jacobian: Encloses all partial derivatives on boxes, rounding included; on samples apart.
        region: Inputs, flat, shape (B, d).
        start: Approximate equilibria of the centres of the regions, shape (B, n).
        search: How long.

    Raises:
        ShapeError: `start` does not fit, or a callable returns another shape.
    """
    if start.ndim != 2 or len(start) != region.shape[0]:
        raise ShapeError(
            f"`start` has shape {tuple(start.shape)}, expected ({region.shape[0]}, n)."
        )
    search = search or Search()
    region = region.double() if isinstance(region, Box) else region
    z0 = start.detach().double()

    def image(index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.maximum(torch.minimum(z0[index], high), low)
        return _image(value, jacobian, region.select(index), z, Box(low, high))

    low, high = image(torch.arange(len(z0)), z0, z0)
    grown = grow(image, z0, torch.maximum(high - z0, z0 - low), search)
    box = shrink(image, grown.box, grown.proved.nonzero()[:, 0], search.rounds)
    return KrawczykBox(box, grown.proved, grown.proved.clone(), grown.start, grown.steps)


def _image(
    value: Value, jacobian: Jacobian, region: Region, z: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    x = region.box.centre
    n, d = z.shape[1], x.shape[1]
    f, (J, K) = value(z, x), jacobian(box, region.box)
    for name, found, shape in (("value", f, (n,)), ("J", J, (n, n)), ("K", K, (n, d))):
        if found.shape != (len(z), *shape):
            raise ShapeError(f"`{name}` has shape {found.shape}, expected {(len(z), *shape)}.")
    middle, radius = halves(J)
    K_middle, K_radius = halves(K)
    f_middle, f_radius = halves(f)
    eye = torch.eye(n, dtype=torch.float64)
    system = eye - middle
    P = inverse(system)
    reach = torch.maximum(box.upper - z, z - box.lower) * (1 + 4 * UNIT) + TINY
    gamma = 3 * rounding(2 * n + d + 64)
    # P K (x - x0): the rows P K over the region, less their value at x0
    PK = P @ K_middle
    low, high = region.extent(PK)
    constant = product(P, f_middle - z) - product(PK, x)
    largest = torch.maximum(region.box.lower.abs(), region.box.upper.abs())
    away = region.box.radius
    spread = product(P.abs(), product(radius, reach) + product(K_radius, away) + f_radius)
    E = eye - P @ system
    missed = product(E.abs(), reach)
    summed = product(K_middle.abs(), largest) + f_middle.abs() + z.abs() + reach
    summed = product(P.abs(), summed + product(middle.abs(), reach)) + reach
    slack = outward(spread + missed + gamma * (summed + spread + missed) + TINY, 2 * n + d)
    low, high = low + constant - slack + z, high + constant + slack + z
    last = 8 * UNIT * (z.abs() + slack + constant.abs() + low.abs() + high.abs())
    return below(low, last), -below(-high, last)
