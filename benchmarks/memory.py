"""Peak extra memory of a training step in units of one state, by the process's high-water mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.common import ROOT, Report

# Each case runs in a process of its own: the high-water mark of a process never falls. The state
# is large, so that everything else is small beside it; big blocks come straight from the system.
PROBE = """
import json, resource, sys, torch
import wellposed as wp
from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution
mode, iterations = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0); torch.set_num_threads(1)
channels, side, batch = 16, 64, 64
K = torch.randn(channels, channels, 3, 3)
K = (0.99 * K / K.abs().sum((1, 2, 3), keepdim=True)).requires_grad_()
q = torch.randn(batch, channels, side, side, requires_grad=True)
state = q.numel() * 4
def step(rows, count):
    part = q[:rows]
    stopping = wp.Stopping(0.0, 0.0, count)
    map_ = AffineMap(Convolution(K, (side, side)), part, ReLU(), canonical_form=True)
    gradients = {"implicit": wp.Implicit(rtol=1e-30, max_evaluations=count),
                 "one-step": wp.OneStep(), "unrolled": wp.Unrolled(count)}
    z = wp.fixed_point(map_, torch.zeros_like(part.detach()), gradient=gradients[mode],
                       stopping=stopping).value
    z.backward(torch.ones_like(z))
import warnings; warnings.simplefilter("ignore")
step(1, 3)
q.grad = None; q.grad = torch.zeros_like(q)
# what the caller holds anyway: the loss's cotangent and the gradient of q are counted as well
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
step(batch, iterations)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps((after - before) / state))
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
        "Peak extra memory of a training step, in states (64, 16, 64, 64)",
        ("gradient", "10 iterations", "40 iterations"),
    )
    for mode in ("implicit", "one-step", "unrolled"):
        few, many = states(mode, 10), states(mode, 40)
        report.row(mode, few, many)
        report.metrics |= {f"{mode}_states@10": few, f"{mode}_states@40": many}
    report.finish()
