"""The bar: drawn on a terminal, silent elsewhere, and the same for training and verification."""

from io import StringIO

import pytest
from rich.console import Console
from rich.progress import TimeElapsedColumn

from wellposed.experiments.watch import Watch
from wellposed.training.bar import Bar
from wellposed.training.progress import Display


def test_a_terminal_shows_count_and_note():
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with Bar("run", 7, console, (TimeElapsedColumn(),)) as bar:
        assert bar.shown
        bar.update(3, "so far so good")
        bar.refresh()
    assert "3/7" in text.getvalue()
    assert "so far so good" in text.getvalue()


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_nothing_is_written_elsewhere(terminal, quiet):
    text = StringIO()
    console = Console(file=text, force_terminal=terminal, quiet=quiet)
    with Bar("run", 7, console, ()) as bar:
        assert not bar.shown
        bar.update(3, "so far so good")
        bar.refresh()
    assert text.getvalue() == ""


def test_a_quiet_display_is_quiet_on_any_console():
    text = StringIO()
    row = {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.9, "cpu_seconds": 1.0}
    console = Console(file=text, force_terminal=True)
    with Display("run", 2, 10, console=console, quiet=True) as display:
        assert not display.due
        display.step(0, 3, 1.25)
        display.epoch(row)
    assert text.getvalue() == ""


def test_verification_draws_the_same_bar():
    text = StringIO()
    with Watch("question", 9, [], Console(file=text, force_terminal=True, width=120)) as watch:
        watch.note([])
        watch._bar.refresh()
    assert "0/9" in text.getvalue()
    assert "verified 0" in text.getvalue()
