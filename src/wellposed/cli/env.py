"""``wellposed env``: where this is, for bug reports and benchmarks."""

from __future__ import annotations

from rich.console import Console


def env() -> None:
    """Print the environment record as JSON."""
    from wellposed.core.records import Environment

    Console(soft_wrap=True).print(Environment.here().to_json(), highlight=False, markup=False)
