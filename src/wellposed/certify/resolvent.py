"""Peaceman-Rachford splitting of a dense network, prepared once for any number of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor

from wellposed.core.network import Network
from wellposed.core.spectra import UNIT

_BUDGET = 2000
_PATIENCE = 10


@final
@dataclass(frozen=True, eq=False)
class Resolvent:
    """``u <- 2 J(2 z - u + [step] q) - (2 z - u)`` with ``z = prox(u)``; ``step = 1/(1 - W_ii)``.

    It converges for either kind of witness of well-posedness: in the weighted max norm [1], and in
    the 2-norm weighted by ``Lam / step`` because ``[step] (I - W)`` is monotone there.

    Args:
        network: With slopes in [0, 1] and ``W_ii < 1``.
        step: Shape (n,).
        inverse: ``(I + [step] (I - W))^-1``, transposed.
        low: Slope of the proximal map below the kink, shape (n,).

    References:
        [1] Davydov, Jafarpour, Proskurnikov, Bullo. Non-Euclidean monotone operator theory and
        applications. JMLR 25, 2024.
    """

    network: Network
    step: Tensor
    inverse: Tensor
    low: Tensor

    @classmethod
    def of(cls, network: Network) -> Resolvent:
        """Invert the resolvent of the linear part."""
        W = network.W
        step = 1 / (1 - torch.diagonal(W))
        eye = torch.eye(network.n, dtype=W.dtype)
        inverse = torch.linalg.inv(eye + step[:, None] * (eye - W)).mT
        # s -> z with z = phi( ((step - 1)/step) z + s/step )
        d = network.slope
        return cls(network, step, inverse, d / (step + d * (1 - step)))

    def state(self, u: Tensor) -> Tensor:
        """``z = prox(u)``."""
        return torch.where(u > 0, u, self.low * u)

    def point(self, z: Tensor, q: Tensor) -> Tensor:
        """The governing iterate whose state is `z` if `z` is the equilibrium: a warm start."""
        return z + self.step * (torch.addmm(q, z, self.network.W.mT) - z)

    def advance(self, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The next governing iterate, and how far the two resolvents were apart, a row."""
        z = self.state(u)
        h = 2 * z - u
        y = torch.addcmul(h, self.step, q) @ self.inverse
        return 2 * y - h, (y - z).abs().amax(1)

    def run(self, q: Tensor, u: Tensor | None = None) -> Tensor:
        """The state after iterates no longer come closer, for injections ``q`` (B, n)."""
        u = torch.zeros_like(q) if u is None else u
        best, stalled = q.new_full(q.shape[:1], inf), torch.zeros(len(q))
        for _ in range(_BUDGET):
            u, size = self.advance(u, q)
            stalled = torch.where(size < 0.9 * best, 0, stalled + 1)
            best = torch.minimum(best, size)
            done = (size <= 32 * UNIT * u.abs().amax(1)) | (stalled >= _PATIENCE)
            if bool(done.all()):
                break
        return self.state(u)
