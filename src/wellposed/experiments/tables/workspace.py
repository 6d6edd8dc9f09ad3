"""The run folder of an experiment on a table: what lies where, and what is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from torch import nn

from wellposed.core.records import Environment
from wellposed.data.tabular import TabularSet
from wellposed.errors import CheckpointError
from wellposed.experiments.tables.config import TableConfig, load_table_config
from wellposed.experiments.tables.protocol import untrained
from wellposed.experiments.tables.task import Task
from wellposed.files.atomic import read_tensors, write_atomic, write_json
from wellposed.training.checkpoint import load_weights

WEIGHTS = "weights.safetensors"
MARK = "metrics"
"""Written last: a seed with this file is finished."""
_PARTS = (MARK, "choice", "proof", "response")


@final
@dataclass(frozen=True)
class Trial:
    """One seed of an experiment.

    Args:
        title: For a reader.
        seed: Of split, folds and starts.
        folder: Where its files lie.
    """

    title: str
    seed: int
    folder: Path

    @property
    def weights(self) -> Path:
        """The file of the trained network."""
        return self.folder / WEIGHTS

    def write(self, part: str, content: Any) -> None:
        """Write a JSON file of this trial."""
        write_json(self.folder / f"{part}.json", content)

    def read(self, part: str) -> Any:
        """The content of a JSON file of this trial; `None` if there is none."""
        path = self.folder / f"{part}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def forget(self) -> None:
        """Drop the weights and what was said about them, the mark of a finished seed first."""
        for part in _PARTS:
            (self.folder / f"{part}.json").unlink(missing_ok=True)
        self.weights.unlink(missing_ok=True)


@final
@dataclass(eq=False)
class TableWorkspace:
    """An experiment on a table and its folder.

    Args:
        config: What to do.
        folder: ``runs/<name>``.
        command: How the user started it.
        console: Where to write for the user.
    """

    config: TableConfig
    folder: Path
    command: str = ""
    console: Console = field(default_factory=Console)
    _tables: dict[int, TabularSet] = field(
        default_factory=dict[int, TabularSet], init=False, repr=False
    )

    @staticmethod
    def open(folder: Path, command: str = "") -> TableWorkspace:
        """The workspace of a folder that a run has left.

        Raises:
            ConfigError: It has no configuration, or one that is not about a table.
        """
        return TableWorkspace(load_table_config(folder / "config.toml"), folder, command)

    def table(self, seed: int) -> TabularSet:
        """The table as a seed splits it, read once.

        Raises:
            ConfigError: No table has the name.
            DataError: A file is absent, damaged or not the one expected.
        """
        if seed not in self._tables:
            self._tables[seed] = self.config.table.load(seed)
        return self._tables[seed]

    def trials(self) -> Iterator[Trial]:
        """Every seed of the experiment."""
        for seed in self.config.seeds:
            title = f"{self.config.name} seed {seed}"
            yield Trial(title, seed, self.folder / f"seed-{seed}")

    def prepare(self) -> None:
        """Write configuration, environment and data digests into the folder.

        Raises:
            DataError: The table cannot be read; nothing is written then.
        """
        digests = dict(self.table(self.config.seeds[0]).digests)
        torch.set_num_threads(self.config.threads)
        write_atomic(self.folder / "config.toml", self.config.to_toml())
        write_json(self.folder / "environment.json", Environment.here().to_dict())
        write_json(self.folder / "data.json", digests)

    def finished(self, trial: Trial) -> bool:
        """Whether a trial is trained to the end.

        Raises:
            CheckpointError: It was trained with another configuration, or its file is damaged.
        """
        if trial.read(MARK) is None or not trial.weights.is_file():
            return False
        _, meta = read_tensors(trial.weights)
        if meta.get("stamp") != self.stamp(trial):
            raise CheckpointError(
                f"`{trial.weights}` was trained with another configuration: its digest is "
                f"{str(meta.get('stamp'))[:16]}, expected {self.stamp(trial)[:16]}.",
                hint="leave `--resume` out to train anew, or give another `--name` or `--out`.",
            )
        return True

    def trained(self, trial: Trial) -> tuple[nn.Sequential, str]:
        """The trained network, from features to a logit or the target, and its weights' digest.

        Raises:
            CheckpointError: It has not been trained, or the file is damaged or of another network.
        """
        choice = trial.read("choice")
        if choice is None or not trial.weights.is_file():
            raise CheckpointError(
                f"`{trial.weights}` does not exist: {trial.title} has not been trained to the end.",
                hint="`wellposed run CONFIG --resume` trains what is missing.",
            )
        task = Task(self.table(trial.seed))
        recipe = self.config.recipes[choice["recipe"]]
        model = task.in_units(untrained(recipe, task, self.config.protocol.starts))
        weights, _ = load_weights(trial.weights, model)
        return model.eval(), weights

    def stamp(self, trial: Trial) -> str:
        """Digest of everything that decides the weights of a trial."""
        content: dict[str, Any] = {
            **self.config.model_dump(mode="json", include={"protocol", "recipes"}),
            "table": self.config.table.name,
            "files": sorted(self.table(trial.seed).digests.values()),
            "seed": trial.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True)
