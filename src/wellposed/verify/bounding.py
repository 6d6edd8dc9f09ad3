"""Bounds of many nodes at once: ascent over slopes and multipliers along the adjoint equilibrium.

This is search: float64 without error bounds, iterations cut short. What it returns is a multiplier
for each node, which `dual_bound` judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.verify.extreme import Inputs
from wellposed.verify.nodes import Nodes
from wellposed.verify.reduced import Reduced


@final
class Ascent:
    """Maximises ``L(p)`` on nodes by Adam on ``(a, beta)`` with ``p = sigma(lam) - e beta`` [1].

    ``sigma`` takes the slope ``a`` of the lower line where ``lam >= 0``, that of the chord
    elsewhere; ``lam = r + W^T p``; ``e`` is the phase, and a decided neuron has its own slope and
    no offset. Derivatives need no differentiation of the fixed point: at the minimising input
    ``x`` the relaxed network ``v = W z + U x + b``, with ``z`` on the line that was taken, has
    ``dL/da_i = max(lam_i, 0) v_i`` and ``dL/dbeta_i = -e_i v_i`` (envelope theorem).
    Both linear equations are followed by a few Peaceman-Rachford steps from where the last ones
    ended, with one constant matrix for all nodes.

    Args:
        reduced: The open neurons of a region.
        inputs: The region.
        rows: The functions to bound, of the open states and the inputs.
        rate: Step of the slopes.
        push: Step of ``beta`` in units of the mean ``|lam|``.
        inner: Splitting steps in each step of the ascent.

    References:
        [1] Wang et al. Beta-CROWN. NeurIPS 2021, arXiv 2103.06624, for feed-forward networks.
    """

    def __init__(
        self,
        reduced: Reduced,
        inputs: Inputs,
        rows: Rows,
        *,
        rate: float = 0.5,
        push: float = 1.5,
        inner: int = 2,
    ) -> None:
        self.reduced, self.inputs, self.rows = reduced, inputs, rows
        self.rate, self.push, self.inner = rate, push, inner
        W, k = reduced.W, reduced.k
        zero = reduced.U.new_zeros(len(rows.state), reduced.whole.d)
        self._input = zero if rows.input is None else rows.input
        self._alpha = 1 / (1 - W.diagonal()).clamp(min=1e-3)
        eye = torch.eye(k, dtype=W.dtype)
        self._resolvent = torch.linalg.inv(torch.diag(1 / self._alpha) + eye - W)
        self._turned = self._resolvent.mT.contiguous()
        s, low, high = reduced.slope, reduced.lower, reduced.upper
        self._chord = (high - s * low) / (high - low)
        self._rise = (s - self._chord) * low

    def roots(self) -> Nodes:
        """One undecided node a row, with the lower line that leaves the smaller area."""
        s = self.reduced.slope
        below = torch.where(self.reduced.upper > -self.reduced.lower, 1.0, s)
        count = len(self.rows.state)
        return Nodes.roots(torch.arange(count), below.expand(count, -1).clone())

    def intervals(self, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Preactivation intervals of nodes, shape (N, k)."""
        low = torch.where(phases > 0, 0.0, self.reduced.lower)
        return low, torch.where(phases < 0, 0.0, self.reduced.upper)

    def value(self, row: Tensor, phases: Tensor, p: Tensor) -> Tensor:
        """``L(p)`` as computed, shape (N,)."""
        lam = self.multiplier(row, p)
        d = self._input[row] + p @ self.reduced.U
        return self._value(row, p, lam, self.inputs.lowest(d)[0], phases)

    def multiplier(self, row: Tensor, p: Tensor) -> Tensor:
        """``lam = r + W^T p``."""
        return self.rows.state[row] + p @ self.reduced.W

    def point(self, row: Tensor, p: Tensor) -> Tensor:
        """The input that minimises the Lagrangian, shape (N, d)."""
        return self.inputs.point(self._input[row] + p @ self.reduced.U)

    def evaluate(self, row: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Preactivations at inputs (N, d) after some steps of the splitting, and the rows there."""
        s, W = self.reduced.slope.expand(len(x), -1), self.reduced.W
        q = x @ self.reduced.U.mT + self.reduced.b
        z = self._settle(q, torch.ones_like(s), s, self._turned, steps)
        rows = self.rows
        value = rows.offset[row] + (rows.state[row] * z).sum(1) + (self._input[row] * x).sum(1)
        return z @ W.mT + q, value

    def descend(self, row: Tensor, v: Tensor, steps: int) -> Tensor:
        """The input that minimises the rows on the affine pieces at preactivations `v`."""
        slope = torch.where(v >= 0, 1.0, self.reduced.slope)
        p = self._settle(self.rows.state[row], slope, slope, self._resolvent, steps)
        return self.point(row, p)

    def _settle(self, q: Tensor, below: Tensor, above: Tensor, M: Tensor, steps: int) -> Tensor:
        u = torch.zeros_like(q)
        for _ in range(steps):
            y = 2 * self._gain(u, below, above) - u
            u = 2 * ((y / self._alpha + q) @ M) - y
        return self._gain(u, below, above)

    def run(self, nodes: Nodes, steps: int, enough: Tensor) -> Nodes:
        """The nodes with better multipliers; those above `enough` are left alone from then on.

        Args:
            nodes: A batch.
            steps: Of the ascent.
            enough: Values that the search wants to see exceeded, one a row.
        """
        state = _State.of(nodes)
        done: list[tuple[Tensor, Nodes]] = []
        place = torch.arange(len(nodes))
        for step in range(steps):
            nodes = self._step(nodes, state, step, steps)
            if step % 3 == 2 and step + 1 < steps:
                high = state.best > enough[nodes.row]
                if int(high.sum()) * 4 > len(high):
                    done.append((place[high], self._result(nodes, state, high)))
                    place, nodes, state = place[~high], nodes.select(~high), state.select(~high)
                if not len(place):
                    break
        if len(place):
            done.append((place, self._result(nodes, state, torch.ones_like(place) > 0)))
        order = torch.cat([at for at, _ in done]).argsort()
        return Nodes.join([part for _, part in done]).select(order)

    def _step(self, nodes: Nodes, state: _State, step: int, steps: int) -> Nodes:
        """One evaluation of bound and derivatives, and one step of Adam."""
        W, U, b, row = self.reduced.W, self.reduced.U, self.reduced.b, nodes.row
        phases = nodes.phases
        free, e = phases == 0, phases.to(W.dtype)
        fixed = torch.where(phases > 0, 1.0, self.reduced.slope)
        above, below = torch.where(free, self._chord, fixed), torch.where(free, nodes.below, fixed)
        pushed = e * nodes.beta
        r = self.rows.state[row]
        u, p = nodes.adjoint, nodes.adjoint
        for _ in range(self.inner if step else 4 * self.inner):
            p = self._gain(u, below, above)
            y = 2 * p - u
            u = 2 * ((y / self._alpha + r - pushed @ W) @ self._resolvent) - y
        p = self._gain(u, below, above) - pushed
        lam = r + p @ W
        least, x = self.inputs.lowest(self._input[row] + p @ U)
        state.note(self._value(row, p, lam, least, phases), p)
        slope = torch.where(lam >= 0, below, above)
        offset = torch.where((lam < 0) & free, self._rise, 0.0)
        q = x @ U.mT + b
        shifted, w, z = q + offset @ W.mT, nodes.primal, nodes.primal
        for _ in range(self.inner):
            z = self._gain(w, slope, slope)
            y = 2 * z - w
            w = 2 * ((y / self._alpha + shifted) @ self._turned) - y
        z = self._gain(w, slope, slope) + offset
        v = z @ W.mT + q
        state.rank(free, lam, v, z, torch.maximum(v, self.reduced.slope * v))
        decay = 0.05 ** (step / steps)
        size = lam.abs().mean(1, keepdim=True)
        da, db = state.adam(torch.where(free, lam.clamp(min=0) * v, -e * v), free, step)
        s = self.reduced.slope
        below = (nodes.below + self.rate * decay * da).maximum(s).clamp(max=1)
        beta = (nodes.beta + self.push * decay * size * db).clamp(min=0)
        return replace(nodes, below=below, beta=beta, adjoint=u, primal=w)

    def _value(self, row: Tensor, p: Tensor, lam: Tensor, least: Tensor, phases: Tensor) -> Tensor:
        low, high = self.intervals(phases)
        left = (lam * self.reduced.slope - p) * low
        # zero lies in every interval, at an end of those of decided neurons
        inner = torch.minimum(left, (lam - p) * high).clamp(max=0)
        return self.rows.offset[row] + p @ self.reduced.b + least + inner.sum(1)

    def _gain(self, u: Tensor, below: Tensor, above: Tensor) -> Tensor:
        slope = torch.where(u >= 0, below, above)
        return u * slope / (slope + self._alpha * (1 - slope))

    def _result(self, nodes: Nodes, state: _State, which: Tensor) -> Nodes:
        nodes = replace(nodes, bound=state.best, choice=state.choice, p=state.p)
        return nodes.select(which)


@final
@dataclass(eq=False)
class _State:
    """Moments of Adam, the best multipliers so far, and the neuron to branch on."""

    first: Tensor
    second: Tensor
    best: Tensor
    p: Tensor
    choice: Tensor

    @classmethod
    def of(cls, nodes: Nodes) -> _State:
        zero = torch.zeros_like(nodes.beta)
        best = torch.full_like(nodes.bound, -torch.inf)
        return cls(zero, zero, best, zero, nodes.choice)

    def select(self, index: Tensor) -> _State:
        parts = (self.first, self.second, self.best, self.p, self.choice)
        return _State(*(t[index] for t in parts))

    def note(self, value: Tensor, p: Tensor) -> None:
        """Keep the multipliers of the best bound."""
        better = value > self.best
        self.best = torch.where(better, value, self.best)
        self.p = torch.where(better[:, None], p, self.p)

    def rank(self, free: Tensor, lam: Tensor, v: Tensor, z: Tensor, phi: Tensor) -> None:
        """The undecided neuron whose relaxation costs most: ``|lam_i| |z_i - phi(v_i)|``."""
        if not free.shape[1]:
            return
        score = torch.where(free, lam.abs() * (z - phi).abs(), -1.0)
        top, choice = score.max(1)
        self.choice = torch.where(top >= 0, choice, -1)

    def adam(self, slope: Tensor, free: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Steps of length about 1 for free neurons and for decided ones; zero for the others."""
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.99 * self.second + 0.01 * slope * slope
        root = (self.second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12
        move = self.first / (1 - 0.9 ** (step + 1)) / root
        return torch.where(free, move, 0.0), torch.where(free, 0.0, move)
