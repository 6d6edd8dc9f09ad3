"""The entry point: commands, and how errors reach the user."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App
from rich.console import Console

from wellposed.cli.after import attack, certify, report
from wellposed.cli.check import check
from wellposed.cli.compare import compare
from wellposed.cli.env import env
from wellposed.cli.fields import fields
from wellposed.cli.run import run, train
from wellposed.cli.verify import verify
from wellposed.errors import CheckpointError, ConfigError, DataError, WellposedError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def make_app() -> App:
    """The commands."""
    app = App(
        name="wellposed",
        help="Train, certify, attack, verify and report equilibrium networks.",
        version_flags=["--version"],
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for command in (run, train, certify, attack, verify, check, report, compare, env, fields):
        app.command(command)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with 0, 1 (failed), 2 (wrong use, data or checkpoint) or 130."""
    sys.exit(status(list(sys.argv[1:] if argv is None else argv)))


def status(argv: Sequence[str]) -> int:
    """Run a command; deliberate errors are told without a traceback unless ``--debug`` is given."""
    debug = "--debug" in argv
    console = Console(stderr=True)
    try:
        make_app()([token for token in argv if token != "--debug"])
    except KeyboardInterrupt:
        console.print("Stopped.", highlight=False)
        return INTERRUPTED
    except WellposedError as error:
        if debug:
            raise
        return _tell(console, error)
    return 0


def _tell(console: Console, error: WellposedError) -> int:
    from wellposed.training.interrupt import InterruptedRunError

    stopped = isinstance(error, InterruptedRunError)
    console.print("[yellow]stopped:[/]" if stopped else "[red]error:[/]", end=" ", highlight=False)
    console.print(error.message, highlight=False, markup=False, soft_wrap=True)
    if error.hint:
        console.print("\n[cyan]hint:[/]", end=" ", highlight=False)
        console.print(error.hint, highlight=False, markup=False, soft_wrap=True)
    if stopped:
        return INTERRUPTED
    return 2 if isinstance(error, (ConfigError, DataError, CheckpointError)) else 1
