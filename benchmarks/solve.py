"""Default solve of a trained net to relative 1e-6 against averaging and torchdeq."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import torch
from torch import Tensor

import wellposed as wp
from benchmarks.common import Report, interleaved, mnist, note, trained_nemon
from wellposed.core.maps import AffineMap
from wellposed.solvers.base import Solver, solve

TOL = 1e-6


def evaluations_to(map_: AffineMap, solver: Solver, tol: float) -> int:
    """Evaluations until ``||z - z*|| <= tol ||z*||`` for the worst sample, in float64.

    Distances to the exact solution treat all solvers alike, whatever residual they iterate on.
    """
    exact_map = map_.with_tensors(tuple(t.double() for t in map_.tensors))
    start = exact_map.canonical().start()
    exact = solve(exact_map, start, wp.Jacobi(), wp.Stopping(1e-14, 0.0, 500)).value

    def error(count: int) -> float:
        z = solve(exact_map, start, solver, wp.Stopping(0.0, 0.0, count)).value
        return float(((z - exact).norm(dim=1) / exact.norm(dim=1)).max())

    # contractions come closer at every step: the first power of two, then halves
    high = 1
    while error(high) > tol:
        high *= 2
    return bisect_left(range(high), True, key=lambda count: error(max(count, 1)) <= tol)


def torchdeq_action(map_: AffineMap, evaluations: int):
    """Its fixed-point iteration on the averaged map, run for a given number of evaluations."""
    try:
        from torchdeq.solver import get_solver
    except ImportError:
        note("torchdeq is not installed: its row is left out")
        return None
    iterate = get_solver("fixed_point_iter")
    alpha = float(1 / (1 - map_.operator.diagonal().clamp(max=0).min()))

    def f(z: Tensor) -> Tensor:
        return (1 - alpha) * z + alpha * map_(z)

    return lambda: iterate(f, torch.zeros_like(map_.offset), max_iter=evaluations, tol=0.0)


@torch.no_grad()
def run() -> None:
    """Count the evaluations that each solver needs, then time the real calls in turn."""
    test, layer = mnist()[2], trained_nemon()
    report = Report(
        "solve",
        "NEMON of configs/nemon-mnist.toml: to relative 1e-6 on the worst of the batch, float32",
        ("solver", "batch", "evaluations", "CPU ms", "ratio to default"),
    )
    solvers: dict[str, Solver] = {
        "automatic (default)": wp.Auto(),
        "Jacobi": wp.Jacobi(),
        "averaged, alpha*": wp.Averaged(),
        "averaged, per neuron": wp.Averaged(per_neuron=True),
    }
    for batch in (100, 1000):
        map_ = layer.cell.bind(test[:batch])
        z0 = map_.canonical().start()
        counts = {name: evaluations_to(map_, solver, TOL) for name, solver in solvers.items()}
        # the tolerance is zero and the budget the count: each solver does exactly its work, checks
        # of convergence included
        actions = {
            name: partial(solve, map_, z0, solver, wp.Stopping(0.0, 0.0, counts[name]))
            for name, solver in solvers.items()
        }
        peer = torchdeq_action(map_, counts["averaged, alpha*"])
        if peer is not None:
            counts["torchdeq, averaged"] = counts["averaged, alpha*"]
            actions["torchdeq, averaged"] = peer
        times = interleaved(actions, rounds=15)
        base = times["automatic (default)"]
        for name, seconds in times.items():
            report.row(name, str(batch), str(counts[name]), 1e3 * seconds, seconds / base)
        if batch == 100:
            report.metrics = {
                "evaluations": counts["automatic (default)"],
                "evaluations_averaged": counts["averaged, alpha*"],
                "cpu_ratio_averaged_to_default": times["averaged, alpha*"] / base,
            }
            if peer is not None:
                report.metrics["cpu_ratio_torchdeq_to_default"] = times["torchdeq, averaged"] / base
    report.finish()
