"""What a person sees while inputs are verified: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from time import monotonic
from typing import Any, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from wellposed.experiments.ledger import Line

EVERY = 60.0  # seconds between lines where there is no terminal


@final
class Watch:
    """Progress of one question.

    Args:
        title: What is verified.
        total: Inputs.
        known: What was known before.
        console: Where to write.
    """

    def __init__(self, title: str, total: int, known: Iterable[Line], console: Console) -> None:
        self.title, self.total, self.console = title, total, console
        self._states = {line.index: line.verdict.status for line in known}
        self._next = monotonic() + EVERY
        self._bar: Progress | None = None
        self._task: Any = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, note=self.text)
            self._bar.update(self._task, completed=self._decided)

    @property
    def text(self) -> str:
        """Counts of every status."""
        counts = Counter(self._states.values())
        names = ("verified", "falsified", "unknown")
        return "  ".join(f"{name} {counts[name]:,}" for name in names)

    @property
    def _decided(self) -> int:
        return sum(status != "unknown" for status in self._states.values())

    def __enter__(self) -> Watch:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, lines: Iterable[Line]) -> None:
        """News."""
        self._states |= {line.index: line.verdict.status for line in lines}
        if self._bar is not None:
            self._bar.update(self._task, completed=self._decided, note=self.text)
        elif monotonic() >= self._next:
            self._next = monotonic() + EVERY
            self.console.print(
                f"{self.title}: {self._decided:,} of {self.total:,} decided; {self.text}",
                highlight=False,
                soft_wrap=True,
            )
