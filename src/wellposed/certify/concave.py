"""Positive concave equilibria: exact corners of boxes, and slopes that are largest at the lowest.

For ``z = phi(W z + q)`` with ``W >= 0``, ``q >= floor > 0`` and ``phi`` increasing and concave on
positive numbers, ``0 <= phi <= 1``, the equilibrium ``z*(q)`` is unique, and

- any ``z`` with ``0 <= z <= phi(W z + q)`` lies below it and any ``z`` with ``z >= phi(W z + q)``
  above it: the iteration from there is monotone and ends at the only fixed point;
- it increases with ``q``: over a box of injections its bounds are its values at two corners;
- slopes of ``phi`` decrease: for two injections above ``q0`` every difference quotient of ``phi``
  is at most ``d = phi'(W z*(q0) + q0)``, so that
  ``|dz| <= (I - [d] W)^-1 [d] |dq|``, a contraction because at the equilibrium concavity gives
  ``[d] W z* <= z* - phi(q0) < z*``. The bound is the Jacobian at ``q0``: it is attained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.cells.concave import CONCAVE, PositiveConcaveCell
from wellposed.certify.box import value_slack
from wellposed.certify.dominate import Resolvent
from wellposed.certify.enclose import enclose_rule
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.loop import EXACT
from wellposed.certify.majorant import Majorant
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.core.scalar import Activation
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Stopping, solve

RULE = (
    "Jacobian of a positive concave equilibrium at the smallest injection (after Gabor et al., "
    "ICML 2024, and Yates, 1995)"
)
_STOP = Stopping(rtol=1e-13, max_evaluations=3000)
_STEPS = 30


@final
@dataclass(frozen=True, eq=False)
class Concave:
    """Explicit float64 weights of a positive concave equation, checked.

    Args:
        W: Nonnegative, shape (n, n).
        U: Shape (n, d).
        b: Shape (n,).
        floor: Positive.
        activation: ``phi``.
    """

    W: Tensor
    U: Tensor
    b: Tensor
    floor: float
    activation: Activation

    @staticmethod
    def of(cell: PositiveConcaveCell, path: str = "") -> Concave:
        """The weights of a cell as they stand.

        Raises:
            NotCertifiableError: The hypothesis fails: a weight is negative or not finite, the floor
                is not positive, or the activation is not one that is known to be concave.
        """
        given = cell.explicit()
        W, U, b = (t.detach().to("cpu", torch.float64) for t in (given.W, given.U, given.b))
        if not all(bool(torch.isfinite(t).all()) for t in (W, U, b)):
            raise refuse(cell, path, "a weight is NaN or infinite", "training diverged here.")
        if bool((W < 0).any()):
            raise refuse(
                cell,
                path,
                f"a weight leaves the cone: the smallest state weight is {float(W.min()):.4g}, "
                "expected at least 0",
                "weights that were edited by hand need not be those of the parametrisation.",
            )
        if not (given.floor > 0 and isfinite(given.floor)):
            raise refuse(cell, path, f"the floor is {given.floor}, expected above 0",
                         "without an injection the equilibrium need not be unique.")  # fmt: skip
        if not isinstance(given.activation, CONCAVE):
            raise refuse(cell, path, f"{given.activation.name} is not known to be concave",
                         "use `Tanh()` or `Sigmoid()`.")  # fmt: skip
        return Concave(W, U, b, given.floor, given.activation)

    def injections(self, box: Box) -> Box:
        """Bounds of ``q = floor + relu(U x + b)`` over a batch of boxes of inputs."""
        u = self._arguments(box)
        low, high = u.lower.clamp(min=0) + self.floor, u.upper.clamp(min=0) + self.floor
        # the smallest injection is the floor itself, whatever is rounded
        low = torch.where(u.lower <= 0, self.floor, low * (1 - 2 * UNIT)).clamp(min=self.floor)
        return Box(low, torch.where(u.upper <= 0, self.floor, high * (1 + 2 * UNIT)))

    def awake(self, box: Box) -> Tensor:
        """Largest slope of the injection's ReLU over a batch of boxes, 0 or 1."""
        return (self._arguments(box).upper > 0).double()

    def _arguments(self, box: Box) -> Box:
        terms = self.U.shape[1] + 4
        middle = box.centre
        u = torch.addmm(self.b, middle, self.U.mT)
        gamma = 2 * rounding(terms)
        spread = outward((box.radius + gamma * middle.abs()) @ self.U.abs().mT, terms)
        spread = outward(spread + gamma * (self.b.abs() + u.abs()), 4)
        return Box(u - spread, u + spread)

    def solve(self, q: Tensor) -> Tensor:
        """Near equilibria, not trusted."""
        map_ = AffineMap(Dense(self.W), q, self.activation, canonical_form=True)
        found = solve(map_, self.activation(q), Auto(), _STOP).value
        return found.nan_to_num(0.0).clamp(0, 1)

    def image(self, z: Tensor, q: Tensor, sign: int) -> Tensor:
        """``phi(W z + q)`` for nonnegative ``z``, rounded up for sign 1 and down for -1."""
        v = self.preactivation(z, q, sign)
        value = self.activation(v)
        return (value + sign * value_slack(self.activation, v, value)).clamp(0, 1)

    def preactivation(self, z: Tensor, q: Tensor, sign: int) -> Tensor:
        """``W z + q`` for nonnegative ``z``, rounded up for sign 1 and down for -1."""
        v = torch.addmm(q, z, self.W.mT)
        return (v * (1 + sign * 2 * rounding(len(self.W) + 4)) + sign * TINY).clamp(min=0)

    def corner(self, q: Tensor, sign: int) -> Tensor:
        """A proved bound of ``z*(q)``: from above for sign 1, from below for sign -1.

        A near solution is scaled by ``1 + sign e`` until the inequality of the head of this file
        holds after rounding; concavity makes a small ``e`` enough. Rows where it does not are left
        with 1 or 0, which always bound. Each further step of the iteration then improves.
        """
        z = self.solve(q)
        room = self.activation(q)
        short = (sign * (self.image(z, q, sign) - z)).clamp(min=0) / room
        bound = torch.full_like(z, 1.0 if sign > 0 else 0.0)
        scale = 2 * short.amax(1, keepdim=True) + 64 * UNIT
        for factor in (1.0, 100.0):
            trial = (z * (1 + sign * factor * scale)).clamp(0, 1)
            holds = (sign * (trial - self.image(trial, q, sign)) >= 0).all(1, keepdim=True)
            better = torch.minimum(bound, trial) if sign > 0 else torch.maximum(bound, trial)
            bound = torch.where(holds, better, bound)
        for _ in range(_STEPS):
            image = self.image(bound, q, sign)
            better = torch.minimum(bound, image) if sign > 0 else torch.maximum(bound, image)
            done = bool(((better - bound).abs() <= 1e-13 * better).all())
            bound = better
            if done:
                break
        return bound

    def states(self, box: Box) -> Box:
        """The equilibria of all inputs of a batch of boxes, componentwise tight for injections."""
        q = self.injections(box)
        return Box(self.corner(q.lower, -1), self.corner(q.upper, 1))


@final
class ConcaveSlopes(Majorant):
    """``|dz| <= (I - [d] W)^-1 [d] [s] |U| |dx|`` with the slopes ``d`` at the smallest injection.

    Args:
        weights: Checked.
        region: A batch of one box of inputs; `None` for all inputs.

    Raises:
        NotCertifiableError: The contraction was not verified (rounding, at huge weights).
    """

    assumes = (EXACT,)

    def __init__(self, weights: Concave, region: Box | None) -> None:
        super().__init__((weights.U.shape[1],), (len(weights.W),))
        self._weights = weights
        n = len(weights.W)
        if region is None:
            q = torch.full((1, n), weights.floor, dtype=torch.float64)
            awake = torch.ones(1, n, dtype=torch.float64)
        else:
            q, awake = weights.injections(region).lower, weights.awake(region)
        phi = weights.activation
        v = weights.preactivation(weights.corner(q, -1), q, -1)
        # computed derivatives are a few units off; slopes decrease on positive numbers
        self._slope = (phi.slope(v) + 1e-14).clamp(max=phi.steepest)[0]
        self._awake = awake[0]
        self._forward = Resolvent(self._couple, (n,), self._slope[:, None] * weights.W)
        self._forward.require()

    def _couple(self, e: Tensor) -> Tensor:
        return outward(self._slope * (e @ self._weights.W.mT), len(self._slope) + 1)

    def _couple_back(self, y: Tensor) -> Tensor:
        return outward((self._slope * y) @ self._weights.W, len(self._slope) + 1)

    @cached_property
    def _backward(self) -> Resolvent:
        matrix = (self._slope[:, None] * self._weights.W).mT.contiguous()
        return Resolvent(self._couple_back, self.out_shape, matrix)

    @override
    def apply(self, v: Tensor) -> Tensor:
        pushed = self._awake * self._slope * (v @ self._weights.U.abs().mT)
        return self._forward(outward(pushed, len(self._weights.U[0]) + 2))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        y = self._backward(c) * self._awake * self._slope
        return outward(y @ self._weights.U.abs(), len(self._weights.U) + 2)

    @property
    @override
    def rule(self) -> str:
        return RULE


@lipschitz_rule.register
def _slopes(module: PositiveConcaveCell, site: Site) -> Majorant:
    site.require(module, (module.n_in,))
    return ConcaveSlopes(Concave.of(module, site.path), site.box)


@enclose_rule.register
def _box(module: PositiveConcaveCell, box: Box) -> Box:
    return Concave.of(module).states(box)


@infer_shape.register
def _shape(module: PositiveConcaveCell) -> tuple[int, ...]:
    return (module.n_in,)
