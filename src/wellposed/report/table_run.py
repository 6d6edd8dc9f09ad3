"""The run folder of an experiment on a table, read: what is there, and what is missing, by name."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from wellposed.errors import DataError

PARTS = ("metrics", "choice", "proof", "response")


@final
@dataclass(frozen=True)
class TableRun:
    """What a run folder holds.

    Args:
        summary: ``summary.json``.
        environment: ``environment.json``.
        data: ``data.json``.
        config: Text of ``config.toml``.
        seeds: Contents of the files of each seed, by part; only seeds with all parts.
        missing: What could not be read, for the reader of the report.
    """

    summary: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    config: str
    seeds: dict[int, dict[str, Any]]
    missing: list[str] = field(default_factory=list[str])

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration; empty if it does not parse."""
        try:
            return tomllib.loads(self.config)
        except tomllib.TOMLDecodeError:
            return {}

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The files of every seed, in order."""
        return list(self.seeds.values())

    @property
    def binary(self) -> bool:
        """Whether the target is 0 or 1."""
        return any("test_accuracy" in part["metrics"] for part in self.parts)


def read_table_run(folder: Path) -> TableRun:
    """Read a run folder, as far as it goes.

    Raises:
        DataError: `folder` is no folder.
    """
    if not folder.is_dir():
        raise DataError(f"`{folder}` is not a folder.", hint="give the folder of a run.")
    missing = list[str]()
    config = folder / "config.toml"
    found = TableRun(
        _json(folder / "summary.json", missing),
        _json(folder / "environment.json", missing),
        _json(folder / "data.json", missing),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        {},
        missing,
    )
    for seed in found.settings.get("seeds", []):
        here = list[str]()
        parts = {p: _json(folder / f"seed-{seed}" / f"{p}.json", here) for p in PARTS}
        missing += here
        if not here:
            found.seeds[seed] = parts
    return found


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        missing.append(f"{path.parent.name}/{path.name} {what}.")
        return {}
    return content if isinstance(content, dict) else {}
