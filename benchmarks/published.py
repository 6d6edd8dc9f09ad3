"""A straightforward implementation of the published averaged iteration, for comparison only.

The layer of arXiv 2106.03194 as one would write it from the paper: weights formed once a pass,
step ``alpha* = 1 / (1 - min_i min(a_ii, 0))``, the whole batch iterated until the largest relative
residual is small, and the adjoint equation iterated with the same step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def averaged(
    step,
    start: Tensor,
    alpha: float,
    tol: float,
    budget: int,
) -> tuple[Tensor, int]:
    """``z <- (1 - alpha) z + alpha f(z)`` until the worst sample's relative residual is `tol`."""
    z = start
    for count in range(1, budget + 1):
        fz = step(z)
        if ((fz - z).norm(dim=1) <= tol * fz.norm(dim=1)).all():
            return z, count
        z = (1 - alpha) * z + alpha * fz
    return z, budget


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A, q, tol, counts):
        alpha = float(1 / (1 - A.diagonal().clamp(max=0).min()))
        z, counts["forward"] = averaged(
            lambda z: torch.relu(z @ A.T + q), torch.zeros_like(q), alpha, tol, 2000
        )
        ctx.save_for_backward(A, q, z)
        ctx.extra = alpha, tol, counts
        return z

    @staticmethod
    def backward(ctx, g):
        A, q, z = ctx.saved_tensors
        alpha, tol, counts = ctx.extra
        d = (z @ A.T + q > 0).to(z.dtype)
        u, counts["backward"] = averaged(lambda u: (d * u) @ A + g, g, alpha, tol, 2000)
        flow = d * u
        return flow.T @ z, flow, None, None


class PublishedNemon(nn.Module):
    """Dense NEMON with the averaged iteration."""

    def __init__(self, n_in: int, n: int, *, margin: float = 0.0, tol: float = 1e-3) -> None:
        super().__init__()
        self.T = nn.Parameter(torch.empty(n, n).uniform_(-(n**-0.5), n**-0.5))
        self.d = nn.Parameter(torch.zeros(n))
        self.U = nn.Linear(n_in, n)
        self.margin, self.tol, self.counts = margin, tol, {"forward": 0, "backward": 0}

    def forward(self, x: Tensor) -> Tensor:
        """The equilibrium of each input."""
        n, s = len(self.d), self.d.exp()
        A = self.margin * torch.eye(n) + self.T * s / s[:, None] - torch.diag(self.T.abs().sum(1))
        return _Solve.apply(A, self.U(x), self.tol, self.counts)
