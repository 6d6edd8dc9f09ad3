"""``wellposed fields``: what a configuration may hold."""

from __future__ import annotations

from rich.console import Console


def fields() -> None:
    """List every key of a configuration with its type and default."""
    from wellposed.experiments import parsing
    from wellposed.experiments.config import Config
    from wellposed.experiments.tables.config import TableConfig

    console = Console(soft_wrap=True)
    for kind in (Config, TableConfig):
        if kind is TableConfig:
            console.print("\nAn experiment on a table, which has a section [table]:", markup=False)
        for key, what in parsing.keys(kind).items():
            console.print(f"--{key}  {what}", highlight=False, markup=False)
