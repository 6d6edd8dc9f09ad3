"""The network on a region with its stable neurons eliminated: what a search has to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.core.network import Network
from wellposed.core.sets import Box


@final
@dataclass(frozen=True, eq=False)
class Reduced:
    """``v = W z + U x + b, z = max(v, s v)`` for the neurons whose phase is open on a region.

    A stable neuron is linear, ``z_S = [D] v_S``. With ``K = (I - [D] W_SS)^-1 [D]`` its state is
    ``z_S = K (W_SN z_N + U_S x + b_S)``, which is put into the equations of the others. The numbers
    are rounded, so nothing is proved with them: a multiplier found here is brought back by `expand`
    and judged on the whole network.

    Args:
        keep: The open neurons, shape (k,).
        stable: The others, shape (n - k,).
        W: Shape (k, k).
        U: Shape (k, d).
        b: Shape (k,).
        slope: ``s``, shape (k,).
        lower: ``l < 0``, shape (k,).
        upper: ``h > 0``, shape (k,).
        whole: The network.
        gate: ``K``.
    """

    keep: Tensor
    stable: Tensor
    W: Tensor
    U: Tensor
    b: Tensor
    slope: Tensor
    lower: Tensor
    upper: Tensor
    whole: Network
    gate: Tensor

    @classmethod
    def of(cls, network: Network, bounds: Box) -> Reduced:
        """Eliminate what is linear on intervals of shape (n,)."""
        lower, upper, s = bounds.lower.double(), bounds.upper.double(), network.slope
        is_open = (lower < 0) & (upper > 0) & (s != 1)
        keep, stable = is_open.nonzero()[:, 0], (~is_open).nonzero()[:, 0]
        D = torch.where(lower >= 0, 1.0, s)[stable]
        W, U, b = network.W, network.U, network.b
        eye = torch.eye(len(stable), dtype=torch.float64)
        gate = torch.linalg.solve(eye - D[:, None] * W[stable][:, stable], torch.diag(D))
        flow = W[keep][:, stable] @ gate
        return cls(
            keep,
            stable,
            W[keep][:, keep] + flow @ W[stable][:, keep],
            U[keep] + flow @ U[stable],
            b[keep] + flow @ b[stable],
            s[keep],
            lower[keep],
            upper[keep],
            network,
            gate,
        )

    @property
    def k(self) -> int:
        """Open neurons."""
        return len(self.keep)

    def rows(self, rows: Rows) -> Rows:
        """The same linear functions, of the open states and the inputs."""
        W, U, b = self.whole.W, self.whole.U, self.whole.b
        flow = rows.state[:, self.stable] @ self.gate
        s = flow @ U[self.stable]
        return Rows(
            rows.state[:, self.keep] + flow @ W[self.stable][:, self.keep],
            s if rows.input is None else s + rows.input,
            rows.offset + flow @ b[self.stable],
        )

    def expand(self, state: Tensor, p: Tensor) -> Tensor:
        """Multipliers of the whole network from those of the open neurons.

        Stable neurons get ``p_S = [D] lam_S``, which is the best there is.

        Args:
            state: ``r`` of the rows on the whole network, shape (N, n).
            p: Shape (N, k).

        Returns:
            Shape (N, n).
        """
        out = torch.zeros(len(p), self.whole.n, dtype=torch.float64)
        out[:, self.keep] = p.double()
        flow = p.double() @ self.whole.W[self.keep][:, self.stable]
        out[:, self.stable] = (state[:, self.stable] + flow) @ self.gate
        return out
