"""What several commands need."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from wellposed.errors import ConfigError

if TYPE_CHECKING:
    from wellposed.experiments.tables.workspace import TableWorkspace
    from wellposed.experiments.workspace import Workspace

Flags = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Further tokens: overrides of keys of the configuration."""


def command_line() -> str:
    """How the user started this process."""
    return shlex.join(["wellposed", *sys.argv[1:]])


def configured(
    config: Path, out: Path, seeds: str | None, name: str | None, tokens: Sequence[str]
) -> Workspace:
    """The workspace of a configuration file and its overrides on the command line."""
    from wellposed.experiments.config import flags, load
    from wellposed.experiments.workspace import Workspace

    loaded = load(config, _with(flags(tokens), seeds, name))
    return Workspace(loaded, out / loaded.name, command_line())


def configured_table(
    config: Path, out: Path, seeds: str | None, name: str | None, tokens: Sequence[str]
) -> TableWorkspace:
    """The workspace of an experiment on a table and its overrides on the command line."""
    from wellposed.experiments.tables.config import flags, load_table_config
    from wellposed.experiments.tables.workspace import TableWorkspace

    loaded = load_table_config(config, _with(flags(tokens), seeds, name))
    return TableWorkspace(loaded, out / loaded.name, command_line())


def _with(changes: dict[str, Any], seeds: str | None, name: str | None) -> dict[str, Any]:
    if seeds is not None:
        changes["seeds"] = _whole_numbers(seeds)
    if name is not None:
        changes["name"] = name
    return changes


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"`--seeds` is {text!r}; expected whole numbers such as 0,1,2.") from None


def opened(run: Path) -> Workspace:
    """The workspace of a run folder."""
    from wellposed.experiments.workspace import Workspace

    return Workspace.open(run, command_line())


def numbers(text: str | None, flag: str) -> list[float] | None:
    """Numbers with commas between, such as 0.01,0.02; `None` if the flag was not given.

    Raises:
        ConfigError: Something else, or a number that is no radius.
    """
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if any(not 0 < value < float("inf") for value in found):
        raise ConfigError(f"`--{flag}` is {text!r}; expected radii above 0 such as 0.01,0.02.")
    return found
