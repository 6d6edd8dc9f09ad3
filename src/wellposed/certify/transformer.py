"""The closed-form zonotope of a network: from bounds of preactivations to better ones."""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.certify.relax import neurons_of, relax
from wellposed.core.boxes import below, product
from wellposed.core.network import Network
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding

Pair = tuple[Tensor, Tensor]


@final
class Transformer:
    """Bounds of ``v*(x)`` over a region, given that it lies in ``[l, h]``.

    With slopes ``S``, offsets ``c`` and radii ``mu`` of the relaxation (`relax`) and any ``P``,
    ``v = P (U x + b + W c + W [mu] eta) + E v``, ``E = I - P (I - W S)``. The first part lies
    within ``w`` in modulus; if ``|E| w <= kappa w`` with ``kappa < 1`` then ``|v| <= w / (1 -
    kappa)``, so that the last part is within ``kappa w / (1 - kappa)`` without knowing ``v``.

    Args:
        network: Slopes of the activation in [0, 1].
        region: Inputs, flat, float64, shape (B, d).
        lower: ``l``, shape (B, n), float64.
        upper: ``h``.
    """

    def __init__(self, network: Network, region: Region, lower: Tensor, upper: Tensor) -> None:
        self.network, self.region, self.lower, self.upper = network, region, lower, upper
        self.W, self.U = network.W, network.U
        self.neurons = neurons_of(network)
        self.relaxation = relax(self.neurons, lower, upper)
        box = region.box
        self.largest = torch.maximum(box.lower.abs(), box.upper.abs())
        self.gamma = 3 * rounding(2 * network.n + network.d + 64)

    @cached_property
    def inverse(self) -> Tensor:
        """``P``, an approximation of ``(I - W S)^-1``, shape (B, n, n)."""
        P, info = torch.linalg.inv_ex(self._system)
        broken = (info != 0) | ~torch.isfinite(P).flatten(1).all(1)
        return torch.where(broken[:, None, None], torch.zeros_like(P), P)

    @cached_property
    def _system(self) -> Tensor:
        eye = torch.eye(self.network.n, dtype=torch.float64)
        return eye - self.W * self.relaxation.slope[:, None, :]

    def bounds(self) -> Pair:
        """From below and above, shape (B, n); infinite where nothing is proved.

        They hold for every ``phi`` between the lines of the relaxation, wherever ``v`` lies.
        """
        return self._both[0]

    def conditional(self) -> Pair:
        """The same given that ``v`` lies in ``[l, h]``, sharper for one-kink activations.

        To bound ``v_i`` from above only inputs with ``v_i >= 0`` matter, where neuron i is linear
        with slope 1; from below only those with ``v_i <= 0``. With slope ``t`` instead of ``s_i``
        and no offset at neuron i, row i of the inverse becomes ``alpha P_i``, ``1/alpha = 1 - (t -
        s_i) (P W)_ii``: the trick costs no product.
        """
        (lower, upper), phased = self._both
        if phased is None:
            return lower, upper
        return torch.maximum(lower, phased[0]), torch.minimum(upper, phased[1])

    @cached_property
    def _both(self) -> tuple[Pair, Pair | None]:
        P, r = self.inverse, self.relaxation
        PW = P @ self.W
        lower, upper = self.region.extent(P @ self.U)
        constant = product(P, r.centre @ self.W.mT + self.network.b)
        spread = outward(product(PW.abs(), r.radius), self.network.n)
        # everything that was summed, with absolute values: what gamma multiplies
        offsets = (r.centre.abs() + r.radius) @ self.W.abs().mT + self.network.b.abs()
        terms = product(P.abs(), self.largest @ self.U.abs().mT + offsets)
        error = outward(self.gamma * terms + TINY, 4)
        low, high = lower + constant, upper + constant
        phased = None
        if self.neurons.kink is not None:
            own = torch.diagonal(PW, dim1=1, dim2=2)
            phased = self._phased(self.neurons.kink, own, (low, high), spread, error)
        slack = outward(error + spread, 4)
        low, high = low - slack, high + slack
        w = torch.maximum(low.abs(), high.abs()) * (1 + 8 * UNIT) + TINY
        image = self._defect(w)
        kappa = (image / w).amax(1, keepdim=True) * (1 + 8 * UNIT)
        rest = torch.where(kappa < 0.5, image / (1 - kappa) * (1 + 16 * UNIT), torch.inf)
        last = rest + 8 * UNIT * (w + rest + slack)
        return (below(low - rest, last - rest), -below(-high - rest, last - rest)), phased

    def _phased(
        self, kink: Tensor, own: Tensor, values: Pair, spread: Tensor, error: Tensor
    ) -> Pair:
        """`conditional` bounds of the open neurons; infinite for the others."""
        r = self.relaxation
        # own carries an error of gamma |P_i| |W_:i|, which |v_i| multiplies like any other defect
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        column = (self.inverse.abs() @ self.W.abs()).diagonal(dim1=1, dim2=2)
        missed = self._defect(size) + self.gamma * (1 + column) * size
        reach = spread - own.abs() * r.radius
        reach = (reach + 4 * UNIT * spread).clamp(min=0) + error + missed
        found: list[Tensor] = []
        for sign, value, slope in (
            (-1.0, values[0], kink),
            (1.0, values[1], torch.ones_like(kink)),
        ):
            room = 1 - (slope - r.slope) * own
            alpha = 1 / room
            # what rounding leaves of 1 - alpha room times |v_i|
            left = 16 * UNIT * (1 + alpha * (1 + own.abs())) * size
            bound = alpha * (value - own * r.centre + sign * reach)
            bound = bound + sign * (left + 16 * UNIT * (alpha * (value.abs() + reach) + left))
            bound = bound + sign * 16 * UNIT * alpha * (own * r.centre).abs()
            open_ = (self.lower < 0) & (self.upper > 0) & (room > 1e-6) & torch.isfinite(bound)
            bound = torch.where(open_, bound, sign * torch.inf)
            found.append(bound.clamp(max=0) if sign < 0 else bound.clamp(min=0))
        return found[0], found[1]

    def _defect(self, w: Tensor) -> Tensor:
        """An upper bound of ``|E| w`` for a nonnegative ``w``."""
        P, r = self.inverse, self.relaxation
        size = w + product(P.abs(), w + (r.slope * w) @ self.W.abs().mT)
        return outward(product(self._rest, w) + self.gamma * size, self.network.n)

    @cached_property
    def _rest(self) -> Tensor:
        """The computed ``|E|``."""
        eye = torch.eye(self.network.n, dtype=torch.float64)
        return (eye - self.inverse @ self._system).abs()
