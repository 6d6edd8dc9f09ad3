"""Peak extra memory of a training step in units of one state, by the process's high-water mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.common import ROOT, Report

# Each case runs in a process of its own, whose high-water mark is reset after a small warm-up step.
# The state is large, so that everything else is small beside it; big blocks come straight from the
# system and go back to it.
PROBE = """
import json, sys, warnings, torch
import wellposed as wp
from pathlib import Path
from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
warnings.simplefilter("ignore")
mode, iterations = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0); torch.set_num_threads(1)
n, batch = 512, 16384
A = torch.randn(n, n)
A = (0.5 * A / A.abs().sum(1, keepdim=True)).requires_grad_()
q = torch.randn(batch, n, requires_grad=True)
state = q.numel() * 4
def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
def step(rows, count):
    map_ = AffineMap(Dense(A), q[:rows], ReLU(), canonical_form=True)
    gradients = {"implicit": wp.Implicit(rtol=1e-6), "one-step": wp.OneStep(),
                 "unrolled": wp.Unrolled(count)}
    z = wp.fixed_point(map_, torch.zeros(rows, n), gradient=gradients[mode],
                       stopping=wp.Stopping(0.0, 0.0, count)).value
    z.sum().backward()
step(8, 3)
q.grad = torch.zeros_like(q)
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
step(batch, iterations)
print(json.dumps((kib("VmHWM") - before) * 1024 / state))
"""


def states(mode: str, iterations: int) -> float:
    """Peak extra memory of one case."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, mode, str(iterations)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout))


def run() -> None:
    """Implicit, one-step and unrolled training at 10 and 40 iterations."""
    report = Report(
        "memory",
        "Peak extra memory of a training step, in states of (16384, 512)",
        ("gradient", "10 iterations", "40 iterations"),
    )
    for mode in ("implicit", "one-step", "unrolled"):
        few, many = states(mode, 10), states(mode, 40)
        report.row(mode, few, many)
        report.metrics |= {f"{mode}_states@10": few, f"{mode}_states@40": many}
    report.finish()
