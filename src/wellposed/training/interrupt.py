"""Ctrl-C that lets a step finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import final

from wellposed.errors import WellposedError


class InterruptedRunError(WellposedError):
    """A run was stopped by the user and can be resumed."""


@final
class StopFlag:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def first_interrupt() -> Generator[StopFlag]:
    """Inside this block the first SIGINT only sets a flag; the second raises as usual."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, frame: FrameType | None) -> None:
        if flag.asked:
            signal.default_int_handler(number, frame)
        flag.asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
