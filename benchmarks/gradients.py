"""Error of the implicit gradient against a dense float64 solve, spectral radius up to 0.999."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

import wellposed as wp
from benchmarks.common import Report, note

N, BATCH = 64, 8
RADII = (0.5, 0.9, 0.99, 0.999)


def matrix(kind: str, rho: float) -> Tensor:
    """A matrix of spectral radius `rho` of one of three kinds."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))
    match kind:
        case "symmetric":
            return q @ torch.diag(torch.linspace(-rho, rho, N, dtype=torch.float64)) @ q.T
        case "orthogonal":
            return rho * q
        case _:
            jordan = rho * torch.eye(N, dtype=torch.float64)
            jordan += 0.05 * torch.diag(torch.ones(N - 1, dtype=torch.float64), 1)
            return q @ jordan @ q.T


def dense_gradient(W: Tensor, q: Tensor, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``(I - W^T D)^-1 g`` by a dense solve, for ``z = tanh(W z + q)``."""
    d = 1 - torch.tanh(z @ W.T + q) ** 2
    eye = torch.eye(N, dtype=torch.float64)
    u = torch.stack([torch.linalg.solve(eye - W.T * di, gi) for di, gi in zip(d, g, strict=True)])
    flow = d * u
    return flow.T @ z, flow


def torchdeq_gradient(W: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """Its implicit gradient with default tolerances and Anderson both ways."""
    try:
        from torchdeq import get_deq
    except ImportError:
        note("torchdeq is not installed: its column is left out")
        return None
    W, q = W.clone().requires_grad_(), q.clone().requires_grad_()
    deq = get_deq(f_solver="anderson", b_solver="anderson", ift=True, f_tol=1e-10, f_max_iter=500)
    z, _ = deq(lambda z: torch.tanh(z @ W.T + q), torch.zeros_like(q))
    a, b = torch.autograd.grad(z[-1], (W, q), g)
    return a, b


def error(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Relative error of the concatenated gradients."""
    gap = torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)])
    return float(gap.norm() / torch.cat([b.flatten() for b in exact]).norm())


def run() -> None:
    """Every exact mode on every kind and radius; a solve that failed must say so."""
    report = Report(
        "gradients",
        "Relative gradient error, tanh(Wz + q), n = 64, float64",
        ("W", "radius", "GMRES", "BiCGSTAB", "default", "flagged", "products", "torchdeq"),
    )
    worst, silent = 0.0, 0
    modes = {
        "GMRES": wp.Implicit(wp.GMRES(), rtol=1e-11),
        "BiCGSTAB": wp.Implicit(wp.BiCGSTAB(), rtol=1e-11),
        "default": wp.Implicit(rtol=1e-11),
    }
    for kind in ("symmetric", "orthogonal", "non-normal"):
        for rho in RADII:
            torch.manual_seed(0)
            W0, q0 = matrix(kind, rho), 0.1 * torch.randn(BATCH, N, dtype=torch.float64)
            g = torch.randn(BATCH, N, dtype=torch.float64)
            cells, flags, products = [], [], 0
            for name, gradient in modes.items():
                W, q = W0.clone().requires_grad_(), q0.clone().requires_grad_()
                solution = wp.fixed_point(
                    lambda z, W, q: torch.tanh(z @ W.T + q), torch.zeros_like(q), W, q,
                    solver=wp.Anderson(), gradient=gradient, batched=(False, True),
                    stopping=wp.Stopping(1e-13, 0.0, 20000),
                )  # fmt: skip
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = torch.autograd.grad(solution.value, (W, q), g)
                exact = dense_gradient(W0, q0, solution.value.detach(), g)
                gap = error(found, exact)
                converged = bool(solution.adjoint.converged) and bool(solution.converged.all())
                if converged:
                    worst = max(worst, gap)
                    silent += gap > 1e-8
                else:
                    flags.append(name)
                products = int(solution.adjoint.evaluations.max())
                cells.append(f"{gap:.1e}")
            peer = torchdeq_gradient(W0, q0, g)
            report.row(
                kind, str(rho), *cells, ", ".join(flags) or "-", str(products),
                "-" if peer is None else f"{error(peer, exact):.1e}",
            )  # fmt: skip
    report.metrics = {"largest_unflagged_error": worst, "silent_failures": float(silent)}
    report.finish()
