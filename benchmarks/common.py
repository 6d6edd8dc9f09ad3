"""Timing by process CPU time, result files, and the networks that the benchmarks share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import wellposed as wp
from wellposed.core.records import Environment
from wellposed.data import load_images
from wellposed.experiments.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = 0.1307, 0.3081


def cpu_seconds(action: Callable[[], object], *, repeats: int = 7, calls: int = 1) -> float:
    """CPU seconds of one call: the smallest of several measurements, after one warm-up call."""
    action()
    best = float("inf")
    for _ in range(repeats):
        begin = time.process_time()
        for _ in range(calls):
            action()
        best = min(best, (time.process_time() - begin) / calls)
    return best


def interleaved(actions: dict[str, Callable[[], object]], *, rounds: int = 7) -> dict[str, float]:
    """CPU seconds of each action, the rounds taken in turn so that a slow spell hits all alike."""
    for action in actions.values():
        action()
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(rounds):
        for name, action in actions.items():
            begin = time.process_time()
            action()
            best[name] = min(best[name], time.process_time() - begin)
    return best


@dataclass
class Report:
    """Rows of one benchmark and the metrics that go to `results/<name>.json`."""

    name: str
    title: str
    columns: tuple[str, ...]
    command: str = ""
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.metrics: dict[str, Any] = {}

    def row(self, *cells: object) -> None:
        """Add a line to the printed table."""
        self.rows.append(tuple(c if isinstance(c, str) else f"{c:.4g}" for c in cells))

    def finish(self) -> None:
        """Print the table and write the result file atomically."""
        table = Table(title=self.title, title_justify="left")
        for column in self.columns:
            table.add_column(column, justify="left" if column == self.columns[0] else "right")
        for row in self.rows:
            table.add_row(*row)
        Console(width=110).print(table)
        record = {
            "name": self.name,
            "command": self.command or f"python -m benchmarks {self.name}",
            "environment": Environment.here().to_dict(),
            "seeds": list(self.seeds),
            "metrics": self.metrics,
        }
        folder = ROOT / "results"
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, suffix=".tmp") as file:
            json.dump(record, file, indent=2)
            file.write("\n")
        Path(file.name).chmod(0o644)
        os.replace(file.name, folder / f"{self.name}.json")  # noqa: PTH105 - atomic on purpose


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised training images, labels, test images, labels; images flattened."""
    images = load_images("mnist", ROOT / "data")
    flat = [(s.floats().flatten(1) - MEAN) / STD for s in (images.train, images.test)]
    return flat[0], images.train.labels, flat[1], images.test.labels


def nemon(n: int = 100, margin: float = 0.0, seed: int = 0) -> nn.Sequential:
    """NEMON with a linear head for flattened MNIST."""
    torch.manual_seed(seed)
    return nn.Sequential(wp.Equilibrium(wp.NemonCell(784, n, margin=margin)), nn.Linear(n, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, batch: int = 100) -> None:
    """Plain Adam, no schedule: what a user's own loop would look like."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()


def trained_nemon() -> wp.Equilibrium:
    """The equilibrium layer of `configs/nemon-mnist.toml`, seed 0; trained first if need be."""
    folder = ROOT / "runs" / "nemon-mnist"
    if not (folder / "nemon" / "seed-0" / "weights.safetensors").is_file():
        note("runs/nemon-mnist is not there: training it first")
        command = [sys.executable, "-m", "wellposed.cli", "train", "configs/nemon-mnist.toml"]
        subprocess.run(command, cwd=ROOT, check=True)
    work = Workspace.open(folder)
    model, _ = work.trained(next(job for job in work.jobs() if job.name == "nemon"))
    return next(module for module in model if isinstance(module, wp.Equilibrium))


def note(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
