"""One hard sample in a batch of 64: sample-evaluations with and without samples leaving."""

from __future__ import annotations

import torch
from torch import Tensor

import wellposed as wp
from benchmarks.common import Report, cpu_seconds
from wellposed.core.maps import FunctionMap
from wellposed.solvers.base import solve


def run() -> None:
    """``f(z) = rate z + q`` with rate 0.999 for one sample and 0.5 for 63."""
    torch.manual_seed(0)
    rate = torch.full((64, 1), 0.5)
    rate[17] = 0.999
    q = torch.randn(64, 32)
    rows = 0

    def f(z: Tensor, rate: Tensor, q: Tensor) -> Tensor:
        nonlocal rows
        rows += len(z)
        return rate * z + q

    report = Report(
        "hard_sample",
        "One sample of rate 0.999 among 63 of rate 0.5, relative 1e-5",
        ("stopping", "rows evaluated", "share", "CPU ms"),
    )
    stopping = wp.Stopping(1e-5, 0.0, 20000)
    counts, times = {}, {}
    for name, flags in (("batch-wide", None), ("samples leave", (True, True))):
        map_ = FunctionMap(f, (rate, q), flags)
        rows = 0
        found = solve(map_, torch.zeros(64, 32), wp.Picard(), stopping).require()
        counts[name] = rows
        times[name] = cpu_seconds(
            lambda m=map_: solve(m, torch.zeros(64, 32), wp.Picard(), stopping), repeats=3
        )
        alone = solve(
            FunctionMap(f, (rate[:1], q[:1]), (True, True)),
            torch.zeros(1, 32),
            wp.Picard(),
            stopping,
        )
        if not torch.equal(alone.value[0], found.value[0]):
            raise RuntimeError("an easy sample depends on its batch mates")
        share = counts[name] / counts["batch-wide"]
        report.row(name, str(counts[name]), share, 1e3 * times[name])
    report.metrics = {
        "sample_evaluations": counts["samples leave"],
        "sample_evaluations_batch_wide": counts["batch-wide"],
        "share": counts["samples leave"] / counts["batch-wide"],
    }
    report.finish()
