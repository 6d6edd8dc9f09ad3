"""`python -m benchmarks [NAME ...]`: run all benchmarks, or the named ones, on one thread."""

from __future__ import annotations

import importlib
import sys

import torch

from benchmarks.common import note

NAMES = (
    "training", "solve", "metzler", "hard_sample", "overhead", "gradients", "memory",
    "verification", "smoothing", "soundness", "splitting", "families", "certificates", "lcr", "lmn",
    "clip", "norms", "chains",
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run the benchmarks in order."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        note(f"unknown benchmark {unknown}, expected some of {NAMES}")
        return 2
    torch.set_num_threads(1)
    for name in names or NAMES:
        note(f"--- {name}")
        importlib.import_module(f"benchmarks.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
