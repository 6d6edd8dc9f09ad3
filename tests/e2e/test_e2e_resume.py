"""SIGKILL and SIGINT in the middle of training, in real processes."""

import signal
import time

import pytest
import torch

from wellposed.files.atomic import read_tensors

FLAGS = ["--data.train_limit", "2600", "--training.epochs", "6", "--training.batch", "20",
         "--training.checkpoint_steps", "5", "--model.dropout", "0.1"]  # fmt: skip
PLACE = "nemon/seed-0"


def weights(folder):
    return read_tensors(folder / PLACE / "weights.safetensors")[0]


def wait_for_checkpoint(process, folder, writes):
    """Until the checkpoint was replaced `writes` times or the process ended."""
    path = folder / PLACE / "checkpoint" / "state.safetensors"
    seen, deadline = set(), time.monotonic() + 240
    while process.poll() is None and len(seen) < writes and time.monotonic() < deadline:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.slow
def test_killed_and_interrupted_runs_end_with_the_same_bits(wellposed, started, smoke, tmp_path):
    whole = wellposed("train", smoke, "--out", "whole", *FLAGS)
    assert whole.returncode == 0, whole.stderr + whole.stdout

    process = started("train", smoke, "--out", "part", *FLAGS)
    wait_for_checkpoint(process, tmp_path / "part" / "smoke", 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "part" / "smoke" / PLACE / "weights.safetensors").exists()

    process = started("train", smoke, "--out", "part", "--resume", *FLAGS)
    wait_for_checkpoint(process, tmp_path / "part" / "smoke", 6)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output

    resumed = wellposed("train", smoke, "--out", "part", "--resume", *FLAGS)
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    ours, theirs = weights(tmp_path / "whole/smoke"), weights(tmp_path / "part/smoke")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
