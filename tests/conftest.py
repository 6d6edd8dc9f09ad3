"""One thread a process: tests run side by side, and more threads only get in their way."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)

# the same draws in every automated run, new ones in every run by hand
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores Ctrl-C on behalf of what it starts in the background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
