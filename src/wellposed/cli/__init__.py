"""The command line: ``wellposed run CONFIG`` and its parts."""

from wellposed.cli.app import main

__all__ = ["main"]
