"""Hard Metzler case: ``A = mu I + T - diag(T 1)``, ``T >= 0``, mu = 0.9, n = 400, batch 100."""

from __future__ import annotations

from functools import partial

import torch

import wellposed as wp
from benchmarks.common import Report, interleaved, mnist
from wellposed.core.activations import ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.solvers.base import solve

N, MU = 400, 0.9


def network(dtype: torch.dtype) -> Affine:
    """The Metzler network with NEMON's own initial scale."""
    generator = torch.Generator().manual_seed(0)
    limit = N**-0.5
    T = (torch.rand(N, N, generator=generator) * 2 * limit - limit).abs()
    A = MU * torch.eye(N) + T - torch.diag(T.sum(1))
    U = (torch.rand(N, 784, generator=generator) * 2 - 1) / 28
    b = (torch.rand(N, generator=generator) * 2 - 1) / 28
    return Affine(Dense(A.to(dtype)), Dense(U.to(dtype)), b.to(dtype), ReLU())


def run() -> None:
    """Automatic choice against Jacobi, float32 to 1e-3 and float64 to 1e-9."""
    images = mnist()[2][:100]
    report = Report(
        "metzler",
        "Metzler network mu = 0.9, n = 400, batch 100",
        ("case", "solver", "most evaluations", "converged", "CPU ms", "share of Jacobi"),
    )
    cases = (("1e-3 float32", torch.float32, 1e-3), ("1e-9 float64", torch.float64, 1e-9))
    for name, dtype, rtol in cases:
        map_ = network(dtype).bind(images.to(dtype))
        start = torch.zeros_like(map_.offset)
        # the target is a relative residual of the raw map, which exceeds that of the canonical form
        # by a factor of at most 1 - min a_ii
        steepest = 1 - float(map_.operator.diagonal().min())
        stopping = wp.Stopping(rtol / steepest, 0.0, 5000)
        solvers = {"Jacobi": wp.Jacobi(), "automatic": wp.Auto()}
        actions = {k: partial(solve, map_, start, s, stopping) for k, s in solvers.items()}
        times = interleaved(actions, rounds=9)
        for label, action in actions.items():
            found = action()
            # the residual of the raw map counts, whatever form the solver iterates
            fz = map_(found.value)
            honest = ((fz - found.value).norm(dim=1) / fz.norm(dim=1)).max()
            most = int(found.evaluations.max())
            report.row(
                name, label, str(most), f"{int(found.converged.sum())}/100, raw {honest:.1e}",
                1e3 * times[label], times[label] / times["Jacobi"],
            )  # fmt: skip
            report.metrics[f"{label.lower()}_evaluations@{rtol:g}"] = most
        report.metrics[f"cpu_share_of_jacobi@{rtol:g}"] = times["automatic"] / times["Jacobi"]
    report.finish()
