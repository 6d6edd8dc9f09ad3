"""A bar on a terminal; nothing anywhere else."""

from __future__ import annotations

from typing import Self, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
)


@final
class Bar:
    """How much of one thing is done, with a note beside it.

    Args:
        title: What is being done.
        total: Steps in all.
        console: Where to draw; nothing is drawn unless it is a terminal that is not quiet.
        columns: Between the count and the note.
    """

    def __init__(
        self, title: str, total: int, console: Console, columns: tuple[ProgressColumn, ...]
    ) -> None:
        self.shown = console.is_terminal and not console.quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            *columns,
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        if self.shown:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.shown:
            self._progress.stop()

    def update(self, completed: int, note: str) -> None:
        """What is done by now."""
        self._progress.update(self._task, completed=completed, note=note)

    def refresh(self) -> None:
        """Draw now."""
        if self.shown:
            self._progress.refresh()
