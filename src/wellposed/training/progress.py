"""What a person sees during training: a bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import final

from rich.console import Console
from rich.progress import TextColumn, TimeRemainingColumn

from wellposed.training.bar import Bar


@final
class Display:
    """Progress of one training run.

    Args:
        title: Name of the run.
        epochs: Epochs in all.
        steps: Steps an epoch.
        console: Where to write; the terminal by default.
        quiet: Write nothing at all.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        steps: int,
        *,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        self.console = Console(quiet=True) if quiet else console or Console()
        self.title, self.epochs, self.steps = title, epochs, steps
        self._next = 0.0
        self._note = ""
        columns = (TextColumn("steps"), TimeRemainingColumn())
        self._bar = Bar(title, epochs * steps, self.console, columns)

    def __enter__(self) -> Display:
        self._bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.__exit__(*exception)

    @property
    def due(self) -> bool:
        """Whether the bar wants news; asked at each step, so it costs a clock reading at most."""
        return self._bar.shown and monotonic() >= self._next

    def step(self, epoch: int, step: int, loss: float) -> None:
        """News from within an epoch."""
        self._next = monotonic() + 0.2
        self._bar.update(
            epoch * self.steps + step,
            f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}{self._note}",
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        """One line about an epoch that is over."""
        parts = [f"loss {row['train_loss']:.4f}", f"train {100 * row['train_accuracy']:6.2f} %"]
        if "validation_accuracy" in row:
            self._note = f"  validation {100 * row['validation_accuracy']:.2f} %"
            parts.append(self._note.strip())
        if "evaluations_mean" in row:
            parts.append(
                f"evaluations {row['evaluations_mean']:.1f} (max {row['evaluations_max']:.0f})"
            )
        parts.append(f"{row['cpu_seconds']:.1f} CPU s")
        self.console.print(
            f"[bold]{self.title}[/] {int(row['epoch'])}/{self.epochs}  " + "  ".join(parts),
            highlight=False,
            soft_wrap=True,
        )
