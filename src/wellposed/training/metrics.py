"""Metrics of every epoch as JSON lines, and as TensorBoard events if that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from wellposed.errors import ConfigError
from wellposed.files.atomic import write_atomic

Row = Mapping[str, float]


@final
class MetricsFile:
    """``metrics.jsonl``: one object an epoch, rewritten whole, so that it is never half a line.

    Args:
        folder: Where the file lies.
        rows: What is known from before, when a run is resumed.
        tensorboard: Whether the rows also go to TensorBoard.
    """

    def __init__(self, folder: Path, rows: Sequence[Row] = (), *, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows: list[Row] = list(rows)
        self._events = _tensorboard(folder) if tensorboard else None

    def add(self, row: Row) -> None:
        """Keep the metrics of one more epoch."""
        self.rows.append(row)
        self.write()
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, int(row["epoch"]))

    def write(self) -> None:
        """Write all rows."""
        write_atomic(self.path, "".join(json.dumps(dict(row)) + "\n" for row in self.rows))

    def close(self) -> None:
        """Let go of the TensorBoard writer."""
        if self._events is not None:
            self._events.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "`training.tensorboard` is true, and the package `tensorboard` is not installed.",
            hint="`pip install 'wellposed[tensorboard]'`, or leave the key out.",
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
