"""CPU time of one iteration at state (128, 87): the bare map, the loop around it, and torchdeq."""

from __future__ import annotations

import torch

import wellposed as wp
from benchmarks.common import Report, interleaved, note
from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.solvers.base import solve

ITERATIONS = 2000


@torch.no_grad()
def run() -> None:
    """Time 2,000 iterations of each, with the tolerance at zero."""
    torch.manual_seed(0)
    W, q = torch.randn(87, 87) * 0.05, torch.randn(128, 87)
    map_ = AffineMap(Dense(W), q, ReLU(), canonical_form=True)
    start = torch.zeros_like(q)

    def bare() -> None:
        z = start
        for _ in range(ITERATIONS):
            z = map_(z)

    budget = wp.Stopping(0.0, 0.0, ITERATIONS)
    # a residual that can be exactly zero would end the loop early: zero tolerance needs a
    # map that never settles, so the offset is pushed by its own rounding
    orbit = AffineMap(Dense(-torch.eye(87) + 0 * W), q.abs() + 1, ReLU(), canonical_form=True)
    basis = torch.linalg.qr(torch.randn(87, 87))[0]
    slow = AffineMap(
        Dense(basis @ torch.diag(torch.linspace(-0.999, 0.999, 87)) @ basis.T), q, ReLU(),
        canonical_form=True,
    )  # fmt: skip
    actions = {
        "bare map": bare,
        "wellposed Picard": lambda: solve(orbit, start, wp.Picard(), budget),
        "wellposed Anderson(5)": lambda: solve(
            slow, start, wp.Anderson(), wp.Stopping(0.0, 0.0, ITERATIONS // 50)
        ),
    }
    try:
        from torchdeq.solver import get_solver

        picard, anderson = get_solver("fixed_point_iter"), get_solver("anderson")
        actions["torchdeq fixed_point_iter"] = lambda: picard(
            orbit, start, max_iter=ITERATIONS, tol=0.0
        )
        actions["torchdeq anderson"] = lambda: anderson(
            map_, start, max_iter=ITERATIONS // 10, tol=0.0
        )
    except ImportError:
        note("torchdeq is not installed: its rows are left out")
    times = interleaved(actions, rounds=9)
    report = Report(
        "overhead",
        "One iteration at state (128, 87), float32, one thread",
        ("loop", "CPU us an iteration", "of it beyond the map"),
    )
    counts = {"torchdeq anderson": ITERATIONS // 10, "wellposed Anderson(5)": ITERATIONS // 50}
    micro = {n: 1e6 * t / counts.get(n, ITERATIONS) for n, t in times.items()}
    for name, value in micro.items():
        report.row(name, value, value - micro["bare map"])
    report.metrics = {
        "iteration_cpu_us": micro["wellposed Picard"],
        "overhead_cpu_us": micro["wellposed Picard"] - micro["bare map"],
        "bare_map_cpu_us": micro["bare map"],
    }
    if "torchdeq fixed_point_iter" in micro:
        report.metrics["torchdeq_iteration_cpu_us"] = micro["torchdeq fixed_point_iter"]
    report.finish()
