"""``wellposed fields``: what a configuration may hold."""

from __future__ import annotations

from rich.console import Console


def fields() -> None:
    """List every key of a configuration with its type and default."""
    from wellposed.experiments.config import keys

    console = Console(soft_wrap=True)
    for key, what in keys().items():
        console.print(f"--{key}  {what}", highlight=False, markup=False)
