"""Straightforward implementations of published training algorithms, for comparison only.

`PublishedFpn`: Jacobian-free backpropagation of arXiv 2103.12803, with the weights divided by what
one random vector is stretched. `PublishedFree`: Anderson's method on the whole batch, the adjoint
equation in a hook, and the Jacobian penalty of arXiv 2106.14342 at an equilibrium held fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PublishedFpn(nn.Module):
    """``relu(W z + U x + b)`` iterated off the tape, one step on it."""

    def __init__(self, d: int, n: int, bound: float, tol: float) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(n, n, bias=False), nn.Linear(d, n)
        self.bound, self.tol = bound, tol

    @torch.no_grad()
    def normalise(self) -> None:
        """Divide by what one Gaussian vector is stretched: bounds nothing, costs little."""
        probe = torch.randn(100, self.W.in_features)
        stretch = (self.W(probe).norm(dim=1) / probe.norm(dim=1)).mean()
        if stretch > self.bound:
            self.W.weight.mul_(self.bound / stretch)

    def forward(self, x: Tensor) -> Tensor:
        """The states."""
        if self.training:
            self.normalise()
        with torch.no_grad():
            q, z = self.U(x), torch.zeros(len(x), self.W.in_features)
            for _ in range(50):
                before, z = z, torch.relu(self.W(z) + q)
                if ((z - before).norm(dim=1) <= self.tol * z.norm(dim=1)).all():
                    break
        return torch.relu(self.W(z) + self.U(x))


def anderson(f: Callable[[Tensor], Tensor], start: Tensor, tol: float, limit: int) -> Tensor:
    """Anderson's method with five states, the whole batch until its relative residual is `tol`."""
    batch, shape, m = len(start), start.shape, 5
    size = start[0].numel()
    X, G = torch.zeros(batch, m, size), torch.zeros(batch, m, size)
    z = start
    for k in range(limit):
        fz = f(z)
        X[:, k % m], G[:, k % m] = z.flatten(1), fz.flatten(1)
        if (fz - z).norm() <= tol * fz.norm():
            return fz
        n = min(k + 1, m)
        D = G[:, :n] - X[:, :n]
        H = torch.zeros(batch, n + 1, n + 1)
        H[:, 0, 1:] = H[:, 1:, 0] = 1
        H[:, 1:, 1:] = D @ D.mT + 1e-4 * torch.eye(n)
        right = torch.zeros(batch, n + 1, 1)
        right[:, 0] = 1
        alpha = torch.linalg.solve(H, right)[:, 1:, 0]
        z = (alpha[:, None] @ G[:, :n]).reshape(shape)
    return z


class PublishedFree(nn.Module):
    """Any block, with the backward pass in a hook and the penalty at a fixed equilibrium."""

    def __init__(self, block: nn.Module, state: tuple[int, ...], tol: float, limit: int) -> None:
        super().__init__()
        self.block, self.state, self.tol, self.limit = block, state, tol, limit
        self.penalty = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """The states; `penalty` is that of this pass."""
        start = torch.zeros(len(x), *self.state)
        with torch.no_grad():
            z = anderson(lambda z: self.block(z, x), start, self.tol, self.limit)
        z = z.requires_grad_()
        fz = self.block(z, x)
        e = torch.randn_like(fz)
        (row,) = torch.autograd.grad(fz, z, e, create_graph=True, retain_graph=True)
        self.penalty = row.square().sum() / row.numel()
        leaf = z.detach().requires_grad_()
        again = self.block(leaf, x)

        def pull(g: Tensor) -> Tensor:
            def step(u: Tensor) -> Tensor:
                return torch.autograd.grad(again, leaf, u, retain_graph=True)[0] + g

            return anderson(step, torch.zeros_like(g), self.tol, self.limit)

        out = fz.clone()
        if out.requires_grad:
            out.register_hook(pull)
        return out
