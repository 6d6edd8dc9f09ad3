"""What a person sees while inputs are verified: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from time import monotonic
from typing import final

from rich.console import Console
from rich.progress import TimeElapsedColumn

from wellposed.experiments.ledger import Line
from wellposed.training.bar import Bar

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
        self._bar = Bar(title, total, console, (TimeElapsedColumn(),))
        self._bar.update(self._decided, self.text)

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
        self._bar.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.__exit__(*exception)

    def note(self, lines: Iterable[Line]) -> None:
        """News."""
        self._states |= {line.index: line.verdict.status for line in lines}
        self._bar.update(self._decided, self.text)
        if not self._bar.shown and monotonic() >= self._next:
            self._next = monotonic() + EVERY
            self.console.print(
                f"{self.title}: {self._decided:,} of {self.total:,} decided; {self.text}",
                highlight=False,
                soft_wrap=True,
            )
