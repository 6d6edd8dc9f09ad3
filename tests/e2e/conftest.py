import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "smoke.toml"


def command(*words):
    return [sys.executable, "-m", "wellposed.cli", *map(str, words)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


@pytest.fixture
def wellposed(tmp_path):
    """Runs the command line in a process of its own, in an empty folder."""

    def run(*words):
        return subprocess.run(
            command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def started(tmp_path):
    """Starts the command line and leaves it running; what is left is ended."""
    processes = []

    def start(*words):
        process = subprocess.Popen(
            command(*words), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def smoke():
    return SMOKE
