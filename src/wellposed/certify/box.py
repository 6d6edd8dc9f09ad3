"""Boxes around the equilibria of all inputs of a box, iterated from outside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.loop import Loop
from wellposed.core.activations import resolvent
from wellposed.core.affine import Affine
from wellposed.core.scalar import Activation
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Jacobi


@final
@dataclass(frozen=True, eq=False)
class EquilibriumBox:
    """What holds for every input of a box.

    Args:
        state: Contains the equilibrium ``z*(u)``.
        preactivation: Contains ``A z*(u) + B u + b``.
        steps: Steps of the box iteration that were taken.
    """

    state: Box
    preactivation: Box
    steps: int


@torch.no_grad()
def equilibrium_box(
    affine: Affine,
    region: Box,
    *,
    steps: int = 100,
    rtol: float = 1e-9,
    loop: Loop | None = None,
) -> EquilibriumBox:
    """Enclose the equilibria of all inputs of `region`; sound after any number of steps [1].

    Let ``F`` map a box of states to the box of ``psi(A_off z + B u + b)`` over that box and the
    inputs. If a box contains ``z*(u)`` for every input, so does its intersection with its image,
    because ``z* = psi(A_off z* + B u + b)``. The first box is the componentwise Lipschitz bound
    around any ``z``: ``|z*(u) - z| <= K r + (I - [g]|A_off|)^-1 |z - psi(A_off z + q)|`` with
    ``r`` the radius of the inputs and ``q`` taken at their centre. (Iterates from zero approach the
    box from inside and are no enclosures.) Every operation is rounded outward; for ReLU the limit
    is that of the embedded network of [1].

    Args:
        affine: Explicit weights.
        region: A batch of input boxes, shape (batch, *in_shape).
        steps: At most this many steps; 0 gives the Lipschitz box.
        rtol: A sample is done when none of its widths shrinks by more than this fraction of its
            largest one, whatever its batch mates do.
        loop: The componentwise bound of `affine`, if it is at hand.

    Raises:
        ShapeError: `region` does not fit the inputs.
        NotCertifiableError: See `Loop`.

    References:
        [1] Jafarpour, Abate, Davydov, Bullo, Coogan. Robustness certificates for implicit neural
        networks: a mixed monotone contractive approach. L4DC 2022, arXiv 2112.05310.
    """
    loop = loop or Loop(affine)
    if region.shape[1:] != loop.in_shape or len(region.shape) != len(loop.in_shape) + 1:
        raise ShapeError(
            f"The region has shape {region.shape}, expected (batch, "
            f"{', '.join(map(str, loop.in_shape))}).",
            hint="`box.unsqueeze()` makes a batch of one box.",
        )
    region = Box(region.lower.detach().double().cpu(), region.upper.detach().double().cpu())
    image = _Image.of(loop, region)
    box = _outer_start(loop, image, region)
    taken = 0
    flat = (len(region.lower), *[1] * (box.lower.ndim - 1))
    moving = torch.ones(flat, dtype=torch.bool)
    while taken < steps and bool(moving.any()):
        taken += 1
        lower, upper = image.states(box)
        lower = torch.where(moving, torch.maximum(lower, box.lower), box.lower)
        upper = torch.where(moving, torch.minimum(upper, box.upper), box.upper)
        shrunk = ((lower - box.lower) + (box.upper - upper)).flatten(1).amax(1)
        widest = (upper - lower).flatten(1).amax(1)
        box = Box(lower, upper)
        moving &= (shrunk > rtol * widest + TINY).reshape(flat)
    return EquilibriumBox(box, image.preactivations(box), taken)


def _outer_start(loop: Loop, image: _Image, region: Box) -> Box:
    centre = region.centre
    z = solve(loop.affine.bind(centre), centre.new_zeros(len(centre), *loop.out_shape), Jacobi(),
              Stopping(rtol=1e-10, max_evaluations=300)).value  # fmt: skip
    z = z.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    lower, upper = replace(image, radius=image.slack).states(Box(z, z))
    miss = torch.maximum(upper - z, z - lower).clamp(min=0) * (1 + 4 * UNIT)
    reach = loop.forward(outward(loop.inject(region.radius) + miss))
    slack = 2 * UNIT * (z.abs() + reach)
    return Box(z - reach - slack, z + reach + slack)


@dataclass(frozen=True, eq=False)
class _Image:
    """The inclusion-isotone map from boxes of states to boxes of states.

    Args:
        loop: Weights and gains.
        middle: Computed ``B c + b`` at the centre ``c`` of the inputs.
        slack: Rounding error of `middle`.
        radius: ``|B| r`` with the radius ``r`` of the inputs, plus `slack`.
    """

    loop: Loop
    middle: Tensor
    slack: Tensor
    radius: Tensor

    @classmethod
    def of(cls, loop: Loop, region: Box) -> _Image:
        B, bias = loop.affine.B, loop.affine.bias
        centre, size = region.centre, B.absolute()
        middle = B.apply(centre) + bias
        slack = outward(size.apply(centre.abs()) + bias.abs(), B.terms)
        slack = slack * (2 * rounding(B.terms + 4)) + TINY
        return cls(
            loop, middle, slack, outward(outward(size.apply(region.radius), B.terms) + slack)
        )

    def sums(self, box: Box) -> tuple[Tensor, Tensor]:
        """Bounds of ``A_off z + B u + b`` over a box of states and the inputs."""
        off = self.loop.off
        size, m = off.absolute(), box.centre
        s = off.apply(m) + self.middle
        # one product gives the spread and the rounding error of the centre at once
        gamma = 2 * rounding(off.terms + 6)
        spread = outward(size.apply(box.radius + gamma * m.abs()), off.terms)
        spread = outward(spread + self.radius + gamma * (self.middle.abs() + s.abs()), 4)
        return s - spread, s + spread

    def states(self, box: Box) -> tuple[Tensor, Tensor]:
        """Bounds of the next states."""
        phi = self.loop.affine.activation
        v = self.preactivations(box)
        low, high = phi.image(v.lower, v.upper)
        reach = torch.maximum(v.lower.abs(), v.upper.abs())
        return low - value_slack(phi, reach, low), high + value_slack(phi, reach, high)

    def preactivations(self, box: Box) -> Box:
        """Bounds of ``v = A z + B u + b`` where ``z = phi(v)`` holds in every neuron."""
        phi, a = self.loop.affine.activation, self.loop.diagonal
        low, high = self.sums(box)
        if not bool((a != 0).any()):
            return Box(low, high)
        # v increases with s because dv/ds = 1 / (1 - d a) > 0
        return Box(resolve_bound(phi, a, low, -1.0), resolve_bound(phi, a, high, 1.0))


def resolve_bound(phi: Activation, a: Tensor, s: Tensor, sign: float) -> Tensor:
    """A bound of ``v = a z + s`` with ``z = phi(v)``: from above for sign 1, below for -1.

    The equation ``g(v) = v - a phi(v) - s = 0`` has slopes ``1 - d a`` of at least `floor`, so that
    a computed ``v`` is within ``|g(v)| / floor`` of its root.
    """
    v = a * resolvent(phi, a, s) + s
    value = phi(v)
    g = v - a * value - s
    error = a.abs() * (value_slack(phi, v, value) + 4 * UNIT * value.abs())
    error = error + 4 * UNIT * (v.abs() + s.abs()) + g.abs()
    floor = torch.ones_like(a)
    for d in phi.slopes:
        floor = torch.minimum(floor, (1 - d * a) - 4 * UNIT * (1 + (d * a).abs()))
    return v + sign * (error / floor * (1 + 16 * UNIT) + TINY)


def value_slack(phi: Activation, v: Tensor, value: Tensor) -> Tensor:
    """Bound of the rounding error of ``phi(v)`` in float64: a few units of value and argument."""
    if phi.homogeneous:
        return 4 * UNIT * value.abs()
    return 64 * UNIT * (1 + v.abs()) + 4 * UNIT * value.abs()
