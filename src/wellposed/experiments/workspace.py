"""A run folder with its configuration and data: who lies where, and what is done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from torch import nn

from wellposed.core.records import Environment
from wellposed.errors import CheckpointError, ConfigError
from wellposed.experiments.config import Config, load
from wellposed.experiments.datasets import Parts, load_parts
from wellposed.experiments.models import build_model
from wellposed.experiments.retention import teacher_of
from wellposed.experiments.robust import Plain
from wellposed.experiments.sections import Variant
from wellposed.files.atomic import write_atomic, write_json
from wellposed.training.checkpoint import load_weights

WEIGHTS = "weights.safetensors"
_RUN_DETAILS = {"checkpoint_every", "checkpoint_steps", "tensorboard"}


@final
@dataclass(frozen=True)
class Job:
    """One network to train: a variant and a seed.

    Args:
        name: Of the variant.
        variant: Its sections.
        seed: Of everything random.
        folder: Where its files lie.
    """

    name: str
    variant: Variant
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """Variant and seed, for a reader."""
        return f"{self.name} seed {self.seed}"

    def done(self, step: str, weights: str) -> bool:
        """Whether the output of a step exists for these weights."""
        return (self.folder / f"{step}.json").is_file() and self._steps().get(step) == weights

    def write(self, step: str, content: Any, weights: str) -> None:
        """Write the output of a step and note the weights that it belongs to."""
        write_json(self.folder / f"{step}.json", content)
        write_json(self.folder / "steps.json", {**self._steps(), step: weights})

    def read(self, name: str) -> Any:
        """The content of a JSON file of this job; `None` if there is none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def forget(self) -> None:
        """Drop the weights and what was measured on them: it must not pass for that of new ones."""
        (self.folder / WEIGHTS).unlink(missing_ok=True)
        for step in self._steps():
            (self.folder / f"{step}.json").unlink(missing_ok=True)
        (self.folder / "steps.json").unlink(missing_ok=True)

    def _steps(self) -> dict[str, str]:
        return self.read("steps") or {}


@final
@dataclass(eq=False)
class Workspace:
    """An experiment and its folder.

    Args:
        config: What to do.
        folder: ``runs/<name>``.
        command: How the user started it.
        console: Where to write for the user.
    """

    config: Config
    folder: Path
    command: str = ""
    console: Console = field(default_factory=Console)

    @staticmethod
    def open(folder: Path, command: str = "", console: Console | None = None) -> Workspace:
        """The workspace of a folder that a run has left.

        Raises:
            ConfigError: It is not a run folder.
        """
        path = folder / "config.toml"
        if not path.is_file():
            near = sorted(p.parent.name for p in folder.parent.glob("*/config.toml"))
            raise ConfigError(
                f"`{folder}` is not a run folder: it has no `config.toml`.",
                hint=f"beside it there are {', '.join(near)}."
                if near
                else "start a run with `wellposed run CONFIG`.",
            )
        return Workspace(load(path), folder, command, console or Console())

    @cached_property
    def parts(self) -> Parts:
        """The data, read once."""
        return load_parts(self.config.data)

    def jobs(self) -> Iterator[Job]:
        """Every network of the experiment."""
        for name, variant in self.config.resolved().items():
            for seed in self.config.seeds:
                yield Job(name, variant, seed, self.folder / name / f"seed-{seed}")

    def teacher(self, job: Job) -> Job | None:
        """The network that a job is compared with in training; `None` if there is none."""
        name = teacher_of(job.variant.penalty)
        return next((j for j in self.jobs() if j.name == name and j.seed == job.seed), None)

    def prepare(self) -> None:
        """Write configuration, environment and data digests into the folder."""
        torch.set_num_threads(self.config.threads)
        write_atomic(self.folder / "config.toml", self.config.to_toml())
        write_json(self.folder / "environment.json", Environment.here().to_dict())
        write_json(self.folder / "data.json", dict(self.parts.source.digests))

    def build(self, job: Job) -> nn.Sequential:
        """The network of a job before training."""
        scaling = self.parts.source.normalisation
        return build_model(
            job.variant,
            shape=self.parts.shape,
            classes=len(self.parts.source.classes),
            mean=scaling.mean,
            std=scaling.std,
            seed=job.seed,
        )

    def trained(self, job: Job) -> tuple[nn.Sequential, str]:
        """The trained network of a job in evaluation mode, and the digest of its weights.

        Raises:
            CheckpointError: It has not been trained, or the file is damaged or of another network.
        """
        path = job.folder / WEIGHTS
        if not path.is_file():
            raise CheckpointError(
                f"`{path}` does not exist: {job.title} has not been trained to the end.",
                hint="`wellposed train CONFIG --resume` trains what is missing.",
            )
        model = self.build(job)
        weights, _ = load_weights(path, model)
        return model.eval(), weights

    def stamp(self, job: Job) -> str:
        """Digest of everything that decides the weights of a job."""
        variant = job.variant.model_dump(
            mode="json", exclude={"training": _RUN_DETAILS, "solve": {"eval_rtol"}}
        )
        if isinstance(job.variant.robust, Plain):
            del variant["robust"]  # networks of before the section existed keep their digest
        if not variant["model"].get("scaled", True):
            del variant["model"]["scaled"]  # likewise
        content: dict[str, Any] = {
            "variant": variant,
            "data": self.config.data.model_dump(mode="json", exclude={"folder", "test_limit"}),
            "files": sorted(self.parts.source.digests.values()),
            "seed": job.seed,
        }
        teacher = self.teacher(job)
        if teacher is not None:
            content["teacher"] = self.stamp(teacher)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True)
