"""Bounds of the derivative of a row with respect to the input, over many phase patterns at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.network import Network
from wellposed.core.spectra import TINY, outward, rounding


@final
@dataclass(frozen=True, eq=False)
class Derivatives:
    """``|d - centre| <= rest + sum_i part_i`` for every derivative ``d`` of a node, componentwise.

    Args:
        centre: Shape (N, d).
        rest: Rounding, shape (N, d).
        part: What each undecided neuron may change, shape (N, d, n); infinite where no bound was
            found.
    """

    centre: Tensor
    rest: Tensor
    part: Tensor

    @property
    def lower(self) -> Tensor:
        """Proved lower bounds, shape (N, d)."""
        return _below(self.centre, self._spread)

    @property
    def upper(self) -> Tensor:
        """Proved upper bounds, shape (N, d)."""
        return -_below(-self.centre, self._spread)

    @property
    def norm(self) -> Tensor:
        """Proved upper bounds of ``||d||_1``, shape (N,)."""
        size = outward(self.centre.abs() + self._spread, 2)
        return outward(size.sum(1), size.shape[1])

    @property
    def floor(self) -> Tensor:
        """Proved lower bounds of ``||d||_1``, shape (N,)."""
        size = (self.centre.abs() - self._spread).clamp(min=0) * (1 - 1e-15)
        return (size.sum(1) * (1 - 2 * rounding(size.shape[1] + 4))).nan_to_num(0.0)

    @property
    def largest(self) -> Tensor:
        """Proved upper bounds of ``||d||_inf``, shape (N,)."""
        return outward(self.centre.abs() + self._spread, 2).amax(1)

    @property
    def largest_floor(self) -> Tensor:
        """Proved lower bounds of ``||d||_inf``, shape (N,)."""
        return ((self.centre.abs() - self._spread).clamp(min=0) * (1 - 1e-15)).amax(1)

    @property
    def size(self) -> Tensor:
        """Proved upper bounds of ``||d||_2``, shape (N,)."""
        size = outward(self.centre.abs() + self._spread, 2)
        return outward(outward(size.square().sum(1), size.shape[1]).sqrt(), 2)

    @property
    def size_floor(self) -> Tensor:
        """Proved lower bounds of ``||d||_2``, shape (N,)."""
        size = (self.centre.abs() - self._spread).clamp(min=0) * (1 - 1e-15)
        square = size.square().sum(1) * (1 - 2 * rounding(size.shape[1] + 4))
        return (square.sqrt() * (1 - 1e-15)).nan_to_num(0.0)

    def divided(self, scale: Tensor) -> Derivatives:
        """The derivatives with respect to inputs that were divided by `scale` before."""
        centre = self.centre / scale
        rest = outward(self.rest / scale, 2) + 1e-15 * centre.abs()
        return Derivatives(centre, rest, outward(self.part / scale[:, None], 2))

    @property
    def _spread(self) -> Tensor:
        return outward(self.rest + outward(self.part.sum(2), self.part.shape[2]), 2)


@torch.no_grad()
def derivatives(
    network: Network, state: Tensor, inputs: Tensor, low: Tensor, high: Tensor
) -> Derivatives:
    """Enclose ``d = s + U^T D lam``, ``lam = r + W^T D lam`` for diagonal ``D`` in ``[low, high]``.

    With ``D = C + E``, ``C`` the middle, ``|E| <= R``, and any ``N`` near ``(I - W^T C)^-1``,
    ``F = I - N (I - W^T C)``: ``lam = N r + (N W^T E + F) lam``. If ``e`` has
    ``e >= |N r| + (|N W^T| R + |F|) e`` and is positive, the matrix contracts in the max norm
    weighted by ``e`` and ``|lam| <= e``. Then
    ``d - (s + U^T C N r) = U^T (C N W^T + I) E lam + U^T C F lam``. Rounding is added throughout.

    Args:
        network: Explicit weights.
        state: ``r``, shape (n,).
        inputs: ``s``, shape (d,).
        low: Smallest slopes, shape (N, n).
        high: Largest slopes, shape (N, n).
    """
    W, U, n = network.W, network.U, network.n
    gamma = 2 * rounding(n + 8)
    C = (low + high) / 2
    R = torch.where(high > low, outward((high - low) / 2 + 1e-15 * high.abs()), 0.0)
    eye = torch.eye(n, dtype=torch.float64)
    system = eye - W.mT * C[:, None, :]
    inverse, _ = torch.linalg.inv_ex(system)
    inverse = torch.where(torch.isfinite(inverse), inverse, 0.0)
    N, size = inverse, inverse.abs()
    NW = N @ W.mT
    NW_error = outward(gamma * (size @ W.mT.abs()), n)
    F_size = (eye - N @ system).abs() + gamma * outward(
        size @ (eye + W.mT.abs() * C[:, None, :]), n
    )
    F_size = outward(F_size, n)
    lam, lam_error = N @ state, gamma * outward(size @ state.abs(), n)
    start = outward(lam.abs() + lam_error, 4) + TINY
    M = outward((NW.abs() + NW_error) * R[:, None, :] + F_size, 4)
    e = _post_fixed(M, start)
    direct = U.mT @ (C * lam).mT
    centre = inputs + direct.mT
    G = U.mT @ (C[:, :, None] * NW + eye)
    spread = outward(C[:, :, None] * (NW.abs() + NW_error) + eye, 4)
    absolute = U.mT.abs()
    G_error = absolute @ (outward(gamma * spread, n) + C[:, :, None] * NW_error)
    part = outward((G.abs() + outward(G_error, n)) * (R * e)[:, None, :], 6)
    inner = outward((F_size @ e[..., None])[..., 0] + lam_error, n)
    flow = outward(inner + gamma * (lam.abs() + e), 4) * C
    rest = outward(flow @ U.abs(), n) + 4 * gamma * inputs.abs() + TINY
    rest = outward(rest + gamma * outward((C * lam.abs()) @ U.abs(), n), 4)
    return Derivatives(centre, rest.nan_to_num(torch.inf), part.nan_to_num(torch.inf))


def _post_fixed(M: Tensor, start: Tensor) -> Tensor:
    """Some ``e > 0`` with ``e >= start + M e``, for each matrix; infinite where none was found."""
    n = M.shape[-1]
    eye = torch.eye(n, dtype=torch.float64)
    e, _ = torch.linalg.solve_ex(eye - M, start * (1 + 1e-6) + 1e-12)
    good = torch.isfinite(e).all(1) & (e > 0).all(1)
    e = torch.where(good[:, None], e, start)
    image = outward(start + outward((M @ e[..., None])[..., 0], n), 2)
    good &= (image < e).all(1)
    return torch.where(good[:, None], e, torch.inf)


def _below(value: Tensor, slack: Tensor) -> Tensor:
    return (value - slack - 4e-16 * (value.abs() + slack)).nan_to_num(
        -torch.inf, torch.inf, -torch.inf
    )
