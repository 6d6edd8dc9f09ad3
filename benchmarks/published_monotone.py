"""Monotone networks as published, written plainly, and the same cells under torchdeq.

`PublishedSplitting`: Peaceman-Rachford splitting with one dense inverse a pass, the whole batch
until its relative residual is small, and the adjoint equation by the same splitting in a hook
(arXiv 2006.08591, algorithms 1 and 2). The weights come from a module that returns ``W``: that of
MON, or that of a Lipschitz-bounded network (arXiv 2010.01732), whose code solves the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LIMIT = 100


class MonWeights(nn.Module):
    """``W = (1 - m) I - F^T F + S - S^T``."""

    def __init__(self, d: int, n: int, margin: float) -> None:
        super().__init__()
        self.U, self.margin = nn.Linear(d, n), margin
        self.F = nn.Parameter(torch.randn(n, n) / (3 * n) ** 0.5)
        self.S = nn.Parameter(torch.randn(n, n) / (3 * n) ** 0.5)
        self.readout = nn.Linear(n, 10)

    def matrix(self) -> Tensor:
        """``W``."""
        eye = torch.eye(len(self.F))
        return (1 - self.margin) * eye - self.F.T @ self.F + self.S - self.S.T


class LbenWeights(nn.Module):
    """``W = I - Psi ( V^T V + m I + S - S^T + (C^T C + X X^T) / (2 gamma) )``, ``X = Psi^-1 U``."""

    def __init__(self, d: int, n: int, margin: float, gamma: float) -> None:
        super().__init__()
        self.U, self.readout = nn.Linear(d, n), nn.Linear(n, 10)
        self.margin, self.gamma = margin, gamma
        self.V = nn.Parameter(torch.randn(n, n) / (3 * n) ** 0.5)
        self.S = nn.Parameter(torch.randn(n, n) / (3 * n) ** 0.5)
        self.log_psi = nn.Parameter(torch.zeros(n))

    def matrix(self) -> Tensor:
        """``W``."""
        psi, C = self.log_psi.exp(), self.readout.weight
        eye, X = torch.eye(len(psi)), self.U.weight / psi[:, None]
        free = self.V.T @ self.V + self.margin * eye + self.S - self.S.T
        return eye - psi[:, None] * (free + (C.T @ C + X @ X.T) / (2 * self.gamma))


class PublishedSplitting(nn.Module):
    """Logits of an equilibrium solved by splitting with one step length for the whole batch."""

    def __init__(self, weights: MonWeights | LbenWeights, tol: float, step: float = 1.0) -> None:
        super().__init__()
        self.weights, self.tol, self.step = weights, tol, step

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        W, q = self.weights.matrix(), self.weights.U(x)
        with torch.no_grad():
            eye = torch.eye(len(W))
            V = torch.linalg.inv((1 + self.step) * eye - self.step * W)
            z = self._split(V.T, q, torch.relu)
        z = torch.relu(z @ W.T + q)
        if z.requires_grad:
            active = (z > 0).to(z)

            def adjoint(g: Tensor) -> Tensor:
                with torch.no_grad():
                    flow = self._split(V, g, lambda u: u * active)
                    return g + flow @ W

            z.register_hook(adjoint)
        return self.weights.readout(z)

    def _split(self, V: Tensor, q: Tensor, resolve: Callable[[Tensor], Tensor]) -> Tensor:
        u = z = torch.zeros_like(q)
        for _ in range(LIMIT):
            half = 2 * z - u
            u = 2 * (half + self.step * q) @ V - half
            before, z = z, resolve(u)
            if (z - before).norm() <= self.tol * z.norm():
                break
        return z


class TorchdeqAffine(nn.Module):
    """The same weights under torchdeq: Anderson's method both ways, as plain iteration diverges."""

    def __init__(self, weights: MonWeights | LbenWeights, tol: float) -> None:
        super().__init__()
        from torchdeq import get_deq

        self.weights = weights
        self.deq = get_deq(
            f_solver="anderson", b_solver="anderson", f_max_iter=LIMIT, b_max_iter=LIMIT,
            f_tol=tol, b_tol=tol, f_stop_mode="rel", b_stop_mode="rel", ift=True,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        W, q = self.weights.matrix(), self.weights.U(x)
        z, _ = self.deq(lambda z: torch.relu(z @ W.T + q), torch.zeros_like(q))
        return self.weights.readout(z[-1])
