"""The whole state of a training run in one file: written at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from wellposed.core.leading import searches
from wellposed.errors import CheckpointError
from wellposed.files.atomic import digest, read_tensors, write_tensors
from wellposed.training.averaging import Average
from wellposed.training.meter import Sums
from wellposed.training.optimisers import load_optimiser, optimiser_tensors
from wellposed.training.regulariser import Regulariser

FILE = "checkpoint/state.safetensors"
_FORMAT = 1
_HINT = "resume with the configuration that the run was started with, or start without `--resume`."


@dataclass
class Position:
    """Where a run stands.

    Args:
        epoch: Number of the present epoch, from 0.
        step: Steps of it that are done.
        sums: What they add up to.
        rows: Metrics of the epochs that are over.
    """

    epoch: int = 0
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    rows: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


@final
@dataclass(frozen=True, eq=False)
class Trainee:
    """The parts whose numbers a checkpoint holds.

    Args:
        model: The network.
        optimiser: With its memory.
        average: Of the weights, if there is one.
        stamp: Digest of the configuration; a checkpoint of another one is refused.
        regulariser: A term of the loss that has a state, if there is one.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    average: Average | None
    stamp: str
    regulariser: Regulariser | None = None

    def save(self, folder: Path, position: Position) -> None:
        """Write the checkpoint of `folder`.

        Raises:
            DataError: It cannot be written; the previous checkpoint is intact.
        """
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimiser.{k}": v for k, v in optimiser_tensors(self.optimiser).items()}
        tensors["random"] = torch.get_rng_state()
        for name, search in searches(self.model).items():
            if search.vector is not None:
                tensors[f"search.{name}"] = search.vector
        meta: dict[str, Any] = {
            "format": _FORMAT,
            "stamp": self.stamp,
            "epoch": position.epoch,
            "step": position.step,
            "sums": position.sums.to_dict(),
            "rows": position.rows,
        }
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.tensors().items()}
            meta["average_steps"] = self.average.steps
        if self.regulariser is not None:
            state = self.regulariser.state_dict()
            tensors |= {f"regulariser.{k}": v for k, v in state.items()}
        write_tensors(folder / FILE, tensors, meta)

    def load(self, folder: Path) -> Position | None:
        """Read the checkpoint of `folder` and put everything back; `None` if there is none.

        Raises:
            CheckpointError: It is damaged, or of another configuration or architecture.
        """
        path = folder / FILE
        if not path.exists():
            return None
        tensors, meta = read_tensors(path)
        if meta.get("format") != _FORMAT:
            raise CheckpointError(
                f"`{path}` has format {meta.get('format')}, expected {_FORMAT}.", hint=_HINT
            )
        weights = _part(tensors, "model.")
        check_weights(self.model, weights, path)
        if meta["stamp"] != self.stamp:
            raise CheckpointError(
                f"`{path}` belongs to another configuration: its digest is {meta['stamp'][:16]}, "
                f"expected {self.stamp[:16]}.",
                hint=_HINT,
            )
        self.model.load_state_dict(weights)
        load_optimiser(self.optimiser, _part(tensors, "optimiser."))
        if self.average is not None:
            self.average.load(_part(tensors, "average."), meta["average_steps"])
        if self.regulariser is not None:
            state = _part(tensors, "regulariser.")
            check_weights(self.regulariser, state, path)
            self.regulariser.load_state_dict(state)
        vectors = _part(tensors, "search.")
        for name, search in searches(self.model).items():
            search.vector = vectors.get(name)
        torch.set_rng_state(tensors["random"])
        return Position(meta["epoch"], meta["step"], Sums(**meta["sums"]), meta["rows"])


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Compare names, shapes and types with those of the model.

    Raises:
        CheckpointError: They are those of another architecture.
    """
    expected = model.state_dict()
    problems = [f"`{name}` is missing" for name in expected if name not in weights]
    problems += [f"`{name}` is unknown" for name in weights if name not in expected]
    problems += [
        f"`{name}` has shape {tuple(weights[name].shape)} ({weights[name].dtype}), expected "
        f"{tuple(value.shape)} ({value.dtype})"
        for name, value in expected.items()
        if name in weights
        and (weights[name].shape != value.shape or weights[name].dtype != value.dtype)
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"`{path}` holds the weights of another architecture: {'; '.join(problems[:4])}{more}.",
            hint="use the configuration that the weights were trained with.",
        )


def save_weights(path: Path, model: nn.Module, meta: Mapping[str, Any]) -> str:
    """Write the final weights with their architecture and data digests; returns their digest."""
    return write_tensors(path, model.state_dict(), meta)


def load_weights(path: Path, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Read weights into a model; returns their digest and what was written beside them.

    Raises:
        CheckpointError: The file is damaged or holds the weights of another architecture.
    """
    tensors, meta = read_tensors(path)
    check_weights(model, tensors, path)
    model.load_state_dict(tensors)
    return digest(tensors), meta


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    size = len(prefix)
    return {name[size:]: value for name, value in tensors.items() if name.startswith(prefix)}
