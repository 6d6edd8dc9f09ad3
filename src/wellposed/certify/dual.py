"""Lower bounds of linear functions of an equilibrium, from any multiplier: weak duality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.box import value_slack
from wellposed.certify.system import Neurons, System
from wellposed.core.sets import Box
from wellposed.core.sets import Region as Region
from wellposed.core.spectra import TINY, outward, rounding

PIECES = 8  # a smooth activation is bounded on so many parts of an interval


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Linear functions ``r z + s x + t`` of states and inputs, one a row.

    Args:
        state: ``r``, shape (N, n).
        input: ``s``, shape (N, d), or `None` for zero.
        offset: ``t``, shape (N,).
    """

    state: Tensor
    input: Tensor | None
    offset: Tensor

    def __neg__(self) -> Rows:
        return Rows(-self.state, None if self.input is None else -self.input, -self.offset)

    def select(self, index: Tensor) -> Rows:
        """Some of the rows."""
        s = self.input
        return Rows(self.state[index], None if s is None else s[index], self.offset[index])


@final
@dataclass(frozen=True, eq=False)
class Scope:
    """A batch of regions with proved bounds of all preactivations on them.

    Args:
        region: Inputs, a batch of N.
        lower: ``l <= v*(x)`` for every input, shape (N, n), float64.
        upper: ``v*(x) <= h``, shape (N, n).
        state: Largest ``|phi(v)|``, shape (N, n).
        size: Largest sum of the absolute values of the terms of ``v = W z + U x + b`` and of ``v``.
        input: Largest ``|x|``, shape (N, d).
    """

    region: Region
    lower: Tensor
    upper: Tensor
    state: Tensor
    size: Tensor
    input: Tensor

    @classmethod
    def of(cls, system: System, region: Region, bounds: Box) -> Scope:
        """The scope of proved preactivation bounds of shape (N, n)."""
        lower, upper = bounds.lower.double(), bounds.upper.double()
        low, high = system.neurons.image(lower, upper)
        v = torch.maximum(lower.abs(), upper.abs())
        slack = value_slack(system.neurons.activation, v, torch.maximum(low.abs(), high.abs()))
        state = torch.maximum(low.abs(), high.abs()) + slack
        box = region.box
        x = torch.maximum(box.lower.abs(), box.upper.abs())
        size = outward(system.reach(state, x) + system.bias.abs() + v, 4)
        return cls(region, lower, upper, state, size, x)

    @property
    def bounds(self) -> Box:
        """The preactivation bounds."""
        return Box(self.lower, self.upper)

    def select(self, index: Tensor) -> Scope:
        """One scope for each entry of `index`, which may repeat."""
        return Scope(
            self.region.select(index),
            self.lower[index],
            self.upper[index],
            self.state[index],
            self.size[index],
            self.input[index],
        )

    def replace_bounds(self, where: Tensor, other: Scope) -> Scope:
        """The same regions with the entries of `other` at the marked places, in order."""
        fields = ("lower", "upper", "state", "size")
        held = {name: getattr(self, name).clone() for name in fields}
        for name, value in held.items():
            value[where] = getattr(other, name)
        return replace(self, **held)

    def within(self, lower: Tensor, upper: Tensor) -> Scope:
        """The part where the preactivations lie in narrower intervals."""
        return replace(self, lower=lower, upper=upper)


@torch.no_grad()
def dual_bound(system: System, scope: Scope, rows: Rows, p: Tensor) -> Tensor:
    """A proved lower bound of ``min_x r z*(x) + s x + t`` from any multiplier ``p``.

    ``L(p) = t + p b + min_x (s + U^T p) x + sum_i min_v ( lam_i phi_i(v) - p_i v )`` with
    ``lam = r + W^T p``, ``x`` in the region and ``v`` in ``[l_i, h_i]``. *Proof.* Add
    ``p (W z + U x + b - v) = 0`` to the objective and minimise every term by itself (weak duality).
    Over all ``p`` its maximum is the linear programme with the convex hull of the graph of each
    ``phi_i``; with one linear piece a neuron it is the exact minimum. Fixed-point CROWN is one
    choice of ``p`` (see `System.adjoint`); neither it nor any other has to be accurate.

    Computed in float64. With ``N`` terms the error is at most ``gamma_N`` times the sum of the
    absolute values of all terms, which ``|p| size + |r| state + |s| input + |t|`` bounds; three
    times that is subtracted.

    Args:
        system: The network.
        scope: One a row: regions and intervals of ``v``; an interval may be narrower than what is
            proved, and then the bound holds where ``v`` lies in it.
        rows: Objectives.
        p: Multipliers, shape (N, n); NaN gives no bound (-inf).

    Returns:
        Shape (N,).
    """
    p = p.double()
    wp, up = system.pull(p)
    lam = rows.state + wp
    d = up if rows.input is None else rows.input + up
    value = rows.offset + p @ system.bias + scope.region.minimum(d[:, None])[:, 0]
    value = value + inner(system.neurons, lam, p, scope.lower, scope.upper).sum(1)
    size = (p.abs() * scope.size + rows.state.abs() * scope.state).sum(1) + rows.offset.abs()
    if rows.input is not None:
        size = size + (rows.input.abs() * scope.input).sum(1)
    slack = 3 * rounding(system.terms + system.n + system.d + 64) * size + TINY * 1e6
    return (value - slack).nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def inner(neurons: Neurons, lam: Tensor, p: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``min_v lam phi(v) - p v`` over ``[lower, upper]``, elementwise.

    Exact up to rounding for one kink; a lower bound, from the slopes on `PIECES` parts of the
    interval, for any other activation.
    """
    kink = neurons.kink
    if kink is not None:
        # phi(v) = max(v, s v): linear on either side of zero
        ends = torch.minimum(lam * neurons(lower) - p * lower, lam * neurons(upper) - p * upper)
        inside = (lower < 0) & (upper > 0)
        return torch.where(inside, ends.clamp(max=0), ends)
    best = torch.full_like(lam, torch.inf)
    width = (upper - lower) / PIECES
    for k in range(PIECES):
        a = lower + k * width
        b = upper if k == PIECES - 1 else lower + (k + 1) * width
        best = torch.minimum(best, _piece(neurons, lam, p, a, torch.maximum(a, b)))
    return best


def _piece(neurons: Neurons, lam: Tensor, p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A lower bound of ``g(v) = lam phi(v) - p v`` on ``[a, b]`` from its slopes there.

    With slopes in ``[m, M]``, ``g >= g(a) + m (v - a)`` and ``g >= g(b) - M (b - v)``: the smallest
    value of the larger line is at an end, or where the two cross.
    """
    low, high = neurons.slope_range(a, b)
    reach = torch.maximum(a.abs(), b.abs())
    slack = lam.abs() * value_slack(neurons.activation, reach, neurons(reach)) * 2
    ga, gb, w = lam * neurons(a) - p * a, lam * neurons(b) - p * b, b - a
    # slopes are computed to a few units
    m = torch.minimum(lam * low, lam * high) - p - 1e-14 * (lam.abs() + p.abs())
    M = torch.maximum(lam * low, lam * high) - p + 1e-14 * (lam.abs() + p.abs())
    cross = ga + m * ((ga - gb + M * w) / (M - m).clamp(min=TINY)).clamp(min=0).minimum(w)
    value = torch.where(m >= 0, ga, torch.where(M <= 0, gb, cross.minimum(ga).minimum(gb)))
    error = 1e-14 * (ga.abs() + gb.abs() + (m.abs() + M.abs()) * w)
    return value - slack - error
