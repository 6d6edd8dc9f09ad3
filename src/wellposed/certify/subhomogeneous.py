"""Subhomogeneous equilibria: bounds that do not depend on the size of the couplings.

``y = p/2 ( log(E e^y + q) - log(I e^y + q') )`` with ``E, I >= 0``, ``q = f + s(u)`` and
``q' = f + s(-u)``. Let ``a = q / (E z + q)`` and ``a' = q' / (I z + q')``, both in (0, 1]. Then

``|dy_i| <= p/2 ( (2 - a - a') max_j |dy_j| + (a s(-u_i) + a' s(u_i)) |du_i| )``,

because ``s'(u) / q <= s(-u)`` and ``s'(u) / q' <= s(u)``. The right-hand side is linear in ``a``,
``a'`` and ``s``; its extremes give ``max |dy| <= p / (2 - p) max |du|`` and, row by row,
``|dy_i| <= p/2 (M + max(M, |du_i|))`` with ``M`` that maximum. Over a box of inputs the map is
mixed monotone: a box of states goes to a box, by a contraction of factor ``p``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.cells.subhomogeneous import LEAST, SubhomogeneousCell
from wellposed.certify.dominate import Resolvent
from wellposed.certify.enclose import enclose_rule
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.loop import EXACT
from wellposed.certify.majorant import Majorant
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, UNIT, outward, rounding

RULE = (
    "contraction of logarithms by a subhomogeneous map of degree below 1 (after Sittoni and "
    "Tudisco, arXiv 2403.00720)"
)
_STEPS = 300


@final
@dataclass(frozen=True, eq=False)
class Ratio:
    """Explicit float64 weights of a subhomogeneous equation, checked.

    Args:
        E: Nonnegative, shape (n, n).
        I: Nonnegative, shape (n, n).
        U: Shape (n, d).
        b: Shape (n,).
        degree: ``p`` in (0, 1).
        floor: ``f``, positive.
    """

    E: Tensor
    I: Tensor  # noqa: E741 - excitation and inhibition
    U: Tensor
    b: Tensor
    degree: float
    floor: float

    @staticmethod
    def of(cell: SubhomogeneousCell, path: str = "") -> Ratio:
        """The weights of a cell as they stand.

        Raises:
            NotCertifiableError: The hypothesis fails.
        """
        given = cell.explicit()
        E, I, U, b = (t.detach().to("cpu", torch.float64) for t in given[:4])  # noqa: E741
        if not all(bool(torch.isfinite(t).all()) for t in (E, I, U, b)):
            raise refuse(cell, path, "a weight is NaN or infinite", "training diverged here.")
        least = min(float(E.min()), float(I.min()))
        if least < 0:
            raise refuse(cell, path, f"a weight leaves the cone: the smallest is {least:.4g}",
                         "both couplings must be nonnegative.")  # fmt: skip
        if not (0 < given.degree < 1 and given.floor >= LEAST and isfinite(given.floor)):
            raise refuse(
                cell, path, f"degree {given.degree} and floor {given.floor} must be in (0, 1) and "
                "positive", "beyond them the equilibrium need not be unique.",
            )  # fmt: skip
        return Ratio(E, I, U, b, given.degree, given.floor)

    def arguments(self, box: Box) -> Box:
        """Bounds of ``u = U x + b`` over a batch of boxes."""
        terms = self.U.shape[1] + 4
        middle = box.centre
        u = torch.addmm(self.b, middle, self.U.mT)
        gamma = 2 * rounding(terms)
        spread = outward((box.radius + gamma * middle.abs()) @ self.U.abs().mT, terms)
        spread = outward(spread + gamma * (self.b.abs() + u.abs()), 4)
        return Box(u - spread, u + spread)

    def log_sum(self, weight: Tensor, y: Tensor, u: Tensor, sign: int) -> Tensor:
        """``log(weight e^y + f + s(u))``, rounded up for sign 1 and down for -1."""
        total = torch.addmm(self.floor + u.sigmoid(), y.exp(), weight.mT)
        value = total.log()
        # terms are positive: relative errors of exponentials and of the sum, then of the logarithm
        return value + sign * (4 * rounding(len(weight) + 40) + 8 * UNIT * value.abs())

    def image(self, y: Box, u: Box) -> Box:
        """A box that holds the image of a batch of boxes of states and arguments."""
        half = self.degree / 2
        low = self.log_sum(self.E, y.lower, u.lower, -1)
        low = low - self.log_sum(self.I, y.upper, -u.lower, 1)
        high = self.log_sum(self.E, y.upper, u.upper, 1)
        high = high - self.log_sum(self.I, y.lower, -u.upper, -1)
        slack = 8 * UNIT * torch.maximum(low.abs(), high.abs()) + TINY
        return Box(half * low - slack, half * high + slack)

    def states(self, box: Box) -> Box:
        """The equilibria of all inputs of a batch of boxes; see `equilibrium_box`.

        The first box is ``y +- (p / (2 - p) max |du| + |y - g(y)| / (1 - p))`` around a near
        equilibrium ``y`` of the centre, and each step intersects a box with its image.
        """
        u = self.arguments(box)
        middle = u.centre
        y = torch.zeros_like(middle)
        for _ in range(_STEPS):
            image = self.image(Box(y, y), Box(middle, middle)).centre
            done = bool(((image - y).abs() <= 1e-14 * (1 + y.abs())).all())
            y = image
            if done:
                break
        image = self.image(Box(y, y), Box(middle, middle))
        gap = torch.maximum((image.upper - y).abs(), (y - image.lower).abs()).amax(1, keepdim=True)
        p = self.degree
        reach = p / (2 - p) * u.radius.amax(1, keepdim=True) + gap / (1 - p)
        reach = reach * (1 + 32 * UNIT / (1 - p)) + 4 * UNIT * y.abs() + TINY
        out = Box(y - reach, y + reach)
        for _ in range(_STEPS):
            image = self.image(out, u)
            lower = torch.maximum(out.lower, image.lower)
            upper = torch.minimum(out.upper, image.upper)
            shrunk = ((lower - out.lower) + (out.upper - upper)).amax()
            out = Box(lower, upper)
            if float(shrunk) <= 1e-12 * float((upper - lower).amax()) + 1e-16:
                break
        return out


@final
class RatioSlopes(Majorant):
    """The bound of the head of this file, and on a region also one with the states that occur.

    Args:
        weights: Checked.
        region: A batch of one box of inputs; `None` for all inputs.
    """

    assumes = (EXACT,)

    def __init__(self, weights: Ratio, region: Box | None) -> None:
        super().__init__((weights.U.shape[1],), (len(weights.E),))
        self._size = weights.U.abs()
        self._p = weights.degree
        self._local = None if region is None else _Local.of(weights, region)

    @override
    def apply(self, v: Tensor) -> Tensor:
        move = outward(v @ self._size.mT, self._size.shape[1])
        most = self._p / (2 - self._p) * move.amax(1, keepdim=True)
        out = outward(self._p / 2 * (most + torch.maximum(most, move)), 16)
        return out if self._local is None else torch.minimum(out, self._local.apply(move))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        most = self._p / (2 - self._p) * self._size.amax(0)
        entries = self._p / 2 * (most + torch.maximum(most, self._size))
        out = outward(c @ outward(entries, 16), len(self._size))
        if self._local is None:
            return out
        other = outward(self._local.adjoint(c) @ self._size, len(self._size))
        return torch.minimum(out, other)

    @property
    @override
    def rule(self) -> str:
        return RULE


@dataclass(frozen=True, eq=False)
class _Local:
    """``|dy| <= (I - G)^-1 [s] |du|`` where the states lie in a box."""

    G: Tensor
    slope: Tensor

    @staticmethod
    def of(weights: Ratio, region: Box) -> _Local | None:
        """`None` where the box is too large for the bound to be a contraction."""
        u, y = weights.arguments(region), weights.states(region)
        p = weights.degree
        excited = weights.log_sum(weights.E, y.lower, u.lower, -1).exp()
        inhibited = weights.log_sum(weights.I, y.lower, -u.upper, -1).exp()
        up, down = (1 + 8 * UNIT) / excited[0], (1 + 8 * UNIT) / inhibited[0]
        top = y.upper[0].exp() * (1 + 4 * UNIT)
        G = outward(p / 2 * (up[:, None] * weights.E + down[:, None] * weights.I) * top, 8)
        nearest = torch.where(u.lower > 0, u.lower, torch.where(u.upper < 0, u.upper, 0.0))[0]
        s = nearest.sigmoid()
        rate = outward(s * (-nearest).sigmoid() * (up + down), 16).clamp(max=1.0)
        found = _Local(G, outward(p / 2 * rate, 4))
        return found if found._forward.contraction.factor < 1 else None

    @cached_property
    def _forward(self) -> Resolvent:
        return self._resolvent(self.G)

    @cached_property
    def _backward(self) -> Resolvent:
        return self._resolvent(self.G.mT.contiguous())

    @staticmethod
    def _resolvent(matrix: Tensor) -> Resolvent:
        n = len(matrix)
        return Resolvent(lambda e: outward(e @ matrix.mT, n), (n,), matrix)

    def apply(self, move: Tensor) -> Tensor:
        return self._forward(outward(self.slope * move))

    def adjoint(self, c: Tensor) -> Tensor:
        return outward(self.slope * self._backward(c))


@lipschitz_rule.register
def _slopes(module: SubhomogeneousCell, site: Site) -> Majorant:
    site.require(module, (module.n_in,))
    return RatioSlopes(Ratio.of(module, site.path), site.box)


@enclose_rule.register
def _box(module: SubhomogeneousCell, box: Box) -> Box:
    return Ratio.of(module).states(box)


@infer_shape.register
def _shape(module: SubhomogeneousCell) -> tuple[int, ...]:
    return (module.n_in,)
