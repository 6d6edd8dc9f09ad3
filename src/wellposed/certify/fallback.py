"""The Lipschitz box of a well-posed network: proved for any region, from the witness alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.certify.box import value_slack
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.relax import neurons_of
from wellposed.certify.wellposed import (
    Wellposed,
    max_norm_margin,
    monotone_margin,
    wellposedness,
)
from wellposed.core.boxes import Box
from wellposed.core.network import Network
from wellposed.core.sets import Region
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import NotCertifiableError, ShapeError

_ROWS = 2**23  # numbers in the largest tensor that is formed at a time


def checked(network: Network, region: Region) -> Region:
    """The region in float64.

    Raises:
        ShapeError: It is no batch of flat inputs of the network.
    """
    if len(region.shape) != 2 or region.shape[1] != network.d:
        raise ShapeError(
            f"The region has shape {region.shape}, expected (batch, {network.d}).",
            hint="`region.flatten()` makes vectors of images.",
        )
    return region.double() if isinstance(region, Box) else region


def confirmed(network: Network, witness: Wellposed | None) -> Wellposed:
    """The witness with a margin measured on these weights; searched for if absent.

    Raises:
        NotCertifiableError: None is found, or the one given proves nothing about the network.
    """
    if witness is None:
        return wellposedness(network)
    measure = max_norm_margin if witness.kind == "max-norm" else monotone_margin
    margin = measure(network.W, witness.weights)
    if not margin > 0:
        raise NotCertifiableError(
            f"The {witness.kind} witness has margin {margin:.4g} on this network, expected above "
            "0.",
            hint="a witness belongs to one network; `wellposedness(network)` finds it.",
        )
    return Wellposed(witness.kind, witness.weights, margin)


@torch.no_grad()
def injection(network: Network, region: Region) -> Box:
    """The box of ``U x + b`` over the inputs of each region, shape (B, n), rounded outward."""
    region = checked(network, region)
    parts = _parts(region.shape[0], network.U.numel())
    found = [torch.stack(region.select(part).extent(network.U)) for part in parts]
    low, high = torch.cat(found, 1) + network.b
    slack = 2 * UNIT * (low.abs() + high.abs()) + TINY
    return Box(low - slack, high + slack)


def _parts(count: int, size: int) -> Iterable[Tensor]:
    return torch.arange(count).split(max(1, _ROWS // size))


@final
class LipschitzBound:
    """Boxes of preactivations by a Lipschitz argument: sound for any region, without any search.

    Let ``v`` be any point, ``z = phi(v)``, and ``rho = U x + b + W z - v`` its residual at the
    input x. Then ``z = phi(W z + (U x + b) - rho)`` is the equilibrium of another injection, and
    ``f >= |rho|`` over the region bounds the change of the injection:

        max-norm   ``|z* - z| <= t eta``,  ``t = max_i f_i / (margin eta_i)``
        monotone   ``|W_i (z* - z)| <= ||W_i||_Y R``,  ``R^2 = g^T |Y| g``,  ``g = Lam f``,
                   ``Y`` the inverse of ``S = (Lam (I - W) + (I - W)^T Lam) / 2``

    and ``v* - v = W (z* - z) + rho``. *Proof.* Difference quotients ``d`` of ``phi`` lie in [0, 1].
    In the row ``(1 - d W_ii) |dz_i| <= d (sum |W_ij| |dz_j| + f_i)`` of largest ``|dz_i| / eta_i``
    both sides are linear in d, which gives the first line. From ``dz^T Lam (W dz + rho - dz) >= 0``
    follows ``dz^T S dz <= dz^T Lam rho``, hence ``||dz||_S <= ||Lam rho||_Y <= R``, and the second
    one by Cauchy and Schwarz. QED. (With ``S >= margin Lam`` alone the bound is far larger.)

    Args:
        network: Slopes of the activation in [0, 1].
        witness: Searched for if absent; checked against the weights in any case.

    Raises:
        NotCertifiableError: The network is not shown to be well posed.
    """

    def __init__(self, network: Network, witness: Wellposed | None = None) -> None:
        self.network, self.neurons = network, neurons_of(network)
        self.witness = confirmed(network, witness)

    @torch.no_grad()
    def __call__(self, region: Region) -> Box:
        """Bounds of ``v*(x)`` for every input of each region, shape (B, n).

        Args:
            region: Inputs, flat, shape (B, d).
        """
        network = self.network
        size = network.W.abs()
        q = injection(network, region)
        v = approximate_equilibrium(network, region.centre)
        z = self.neurons(v)
        # z stands for phi(v) but is off by `error`, which W carries into the residual
        error = value_slack(network.activation, v, z)
        middle, reach = z @ network.W.mT - v, v.abs() + z.abs() @ size.mT
        slack = outward(error @ size.mT + 4 * rounding(network.n + 8) * reach, network.n) + TINY
        low, high = q.lower + middle, q.upper + middle
        f = torch.maximum(high, -low).clamp(min=0) + slack
        f = f + 4 * UNIT * (f + q.lower.abs() + q.upper.abs() + middle.abs())
        moved = self._max_norm(f) if self.witness.kind == "max-norm" else self._monotone(f)
        spread = outward(moved + f, 4)
        slack = 4 * UNIT * (v.abs() + spread)
        return Box(v - spread - slack, v + spread + slack)

    def _max_norm(self, f: Tensor) -> Tensor:
        eta = self.witness.weights
        t = (f / eta).amax(1, keepdim=True) / self.witness.margin
        return outward(t * eta @ self.network.W.abs().mT, self.network.n + 4)

    def _monotone(self, f: Tensor) -> Tensor:
        rows, size, miss = self._metric
        g = outward(self.witness.weights * f)
        square = outward((g @ size * g).sum(1) + miss * g.square().sum(1), 2 * self.network.n)
        return outward(square.sqrt()[:, None] * rows, 4)

    @cached_property
    def _metric(self) -> tuple[Tensor, Tensor, float]:
        """Bounds of ``||W_i||_Y`` and ``|Y|``, and what both miss of a squared 2-norm.

        For a computed ``Y``, ``S^-1 = Y + S^-1 (I - S Y)``, so that the error of ``c S^-1 c`` is at
        most ``||c||_2 ||(I - S Y) c||_2 / lambda_min(S)``.
        """
        W, lam, n = self.network.W, self.witness.weights, self.network.n
        eye = torch.eye(n, dtype=torch.float64)
        scaled = lam[:, None] * (eye - W)
        S = (scaled + scaled.mT) / 2
        sizes = lam[:, None] * (eye + W.abs())
        found, info = torch.linalg.inv_ex(S)
        usable = int(info) == 0 and bool(torch.isfinite(found).all())
        Y = (found + found.mT) / 2 if usable else torch.zeros_like(S)
        gamma = 2 * rounding(n + 16)
        rest = (eye - S @ Y).abs() + gamma * (eye + (sizes + sizes.mT) @ Y.abs())
        rest = outward(rest, n)
        # S >= margin Lam, proved with the witness
        least = self.witness.margin * float(lam.amin()) * (1 - 8 * UNIT)
        square = (W @ Y * W).sum(1) + 2 * gamma * (W.abs() @ Y.abs() * W.abs()).sum(1)
        missed = (W.abs() @ rest.mT).square().sum(1).sqrt() * W.square().sum(1).sqrt() / least
        rows = outward(square.clamp(min=0) + outward(missed, 4 * n), n).sqrt()
        miss = float(outward(rest.square().sum(), n * n).sqrt()) / least
        return outward(rows, 4), Y.abs(), miss * (1 + 1e-12)


def lipschitz_box(network: Network, region: Region, witness: Wellposed | None = None) -> Box:
    """`LipschitzBound` for one batch of regions, shape (B, n)."""
    return LipschitzBound(network, witness)(region)
