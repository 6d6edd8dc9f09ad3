"""Two processes under torchrun reach what one process reaches; a killed run goes on."""

import json
import os
import socket
import subprocess
import sys

import pytest

from weights_elsewhere import write_files


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_gloo_processes_and_one(tmp_path):
    write_files(tmp_path, count=11)
    flags = ["net.npz", "--data", "data.npz", "--eps", "0.05", "--domain", "0,1", "--budget", "60"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    single = [sys.executable, "-m", "wellposed", "verify", *flags, "--out", "one"]
    double = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
              "--master-port", str(free_port()),
              "-m", "wellposed", "verify", *flags, "--out", "two"]  # fmt: skip
    for command in (single, double):
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stdout.count("of 11 inputs") == 1, done.stdout
    one, two = (
        json.loads((tmp_path / name / "verification.json").read_text())["entries"][0]
        for name in ("one", "two")
    )
    parts = sorted((tmp_path / "two" / "max-0.05").glob("part-*.jsonl"))
    assert [path.name for path in parts] == ["part-0.jsonl", "part-1.jsonl"]
    for rank, path in enumerate(parts):
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        assert {row["index"] for row in rows} == set(range(rank, 11, 2))
    for key in ("counts", "certified", "certified_by", "clean"):
        assert one[key] == two[key]
    for key in ("index", "label", "status", "method"):
        assert one["verdicts"][key] == two["verdicts"][key]
    assert one["verdicts"]["margin"] == pytest.approx(two["verdicts"]["margin"], rel=1e-4)
