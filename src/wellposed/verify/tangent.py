"""Bounds of derivatives from the tangent network: how far neurons move, and weak duality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.network import Network
from wellposed.core.spectra import TINY, outward, rounding

ROUNDS = 8  # of improving how far neurons move
Norm = Callable[[Tensor], Tensor]
"""Of the rows (..., d) that multiply a change of the inputs: the dual of the norm of inputs."""


@final
@dataclass(frozen=True, eq=False)
class Tangent:
    """``dz = D dv, dv = W dz + U dx`` with ``||dx|| <= 1`` and slopes ``D`` in a range.

    For **every** ``p``, with ``lam = r + W^T p``, ``r dz + s dx`` is at most
    ``||s + U^T p|| + sum_i e_i max_D |lam_i D_i - p_i|`` if ``|dv_i| <= e_i``. *Proof.* Add
    ``p (W dz + U dx - dv) = 0`` and put ``dz_i = D_i dv_i``. QED. The maximum is at an end of the
    range of ``D_i``; ``p`` is taken for the middle slopes. Rounding is added throughout.

    Args:
        network: Explicit weights.
        U: Its input weights per unit of change, shape (n, d).
        norm: Dual norm, rounded up.
    """

    network: Network
    U: Tensor
    norm: Norm

    @torch.no_grad()
    def moves(self, low: Tensor, high: Tensor, start: Tensor) -> Tensor:
        """Proved ``e``: each ``dv_i`` is a row, bounded from the ``e`` before; the smaller counts.

        Args:
            low: Smallest slopes, shape (N, n).
            high: Largest slopes, shape (N, n).
            start: A first ``e``, shape (N, n), proved.
        """
        n, W = self.network.n, self.network.W
        p = (_inverse(self.network, low, high) @ W.mT).mT * ((low + high) / 2)[:, None, :]
        flow, loss = self._terms((W.expand(len(low), n, n), self.U), p, low, high)
        e = start
        for _ in range(ROUNDS):
            e = torch.minimum(e, outward(flow + outward((loss @ e[..., None])[..., 0], n), 4))
        return e

    @torch.no_grad()
    def gains(
        self, row: tuple[Tensor, Tensor], low: Tensor, high: Tensor, e: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Upper bounds of the norm of the derivative of a row, and what each neuron adds to it.

        Args:
            row: ``r``, shape (n,), and ``s``, shape (d,), per unit of change.
            low: Smallest slopes, shape (N, n).
            high: Largest slopes, shape (N, n).
            e: From `moves`.

        Returns:
            Shapes (N,) and (N, n).
        """
        r, s = row
        p = (_inverse(self.network, low, high) @ r)[:, None] * ((low + high) / 2)[:, None]
        flow, loss = self._terms((r.expand(len(low), 1, -1), s), p, low, high)
        share = outward(loss[:, 0] * e, 2)
        total = outward(flow[:, 0] + outward(share.sum(1), self.network.n), 4)
        return total.nan_to_num(torch.inf), share

    def _terms(
        self, rows: tuple[Tensor, Tensor], p: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``||s + U^T p||`` and ``max_D |lam_i D_i - p_i|`` from above: (N, R) and (N, R, n)."""
        (r, s), W, n = rows, self.network.W, self.network.n
        gamma = 2 * rounding(n + 8)
        size = p.abs()
        way = (s + p @ self.U).abs() + gamma * outward(s.abs() + size @ self.U.abs(), n)
        lam = r + p @ W
        blur = gamma * outward(r.abs() + size @ W.abs() + size, n)
        ends = [(lam * slope[:, None] - p).abs() for slope in (low, high)]
        return self.norm(outward(way, 4)), outward(torch.maximum(*ends) + blur, 4) + TINY


def _inverse(network: Network, low: Tensor, high: Tensor) -> Tensor:
    """``(I - W^T C)^-1`` for the middle slopes; nothing depends on its accuracy."""
    middle = (low + high) / 2
    eye = torch.eye(network.n, dtype=torch.float64)
    inverse, _ = torch.linalg.inv_ex(eye - network.W.mT * middle[:, None, :])
    return torch.where(torch.isfinite(inverse), inverse, 0.0)
