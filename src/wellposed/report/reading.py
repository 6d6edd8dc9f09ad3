"""A run folder, read: what is there, and what is missing or damaged, by name."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from wellposed.errors import DataError

PARTS = ("metrics", "certificates", "attacks", "solvers", "examples")
ONCE = ("solvers", "examples")
"""Parts that a run makes for one seed of each variant only."""
ASKED = ("verification",)
"""Parts that exist only where somebody asked for them; none is missing."""


@final
@dataclass(frozen=True)
class Trial:
    """One variant trained with one seed.

    Args:
        variant: Name of the variant.
        seed: As its folder names it.
        epochs: Lines of ``metrics.jsonl``.
        parts: Contents of the JSON files that could be read, by name without the ending.
    """

    variant: str
    seed: str
    epochs: list[dict[str, Any]]
    parts: dict[str, Any]


@final
@dataclass(frozen=True)
class Run:
    """Everything that a report can say.

    Args:
        folder: Where it was read.
        summary: ``summary.json``.
        environment: ``environment.json``.
        data: ``data.json``.
        config: Text of ``config.toml``.
        trials: One entry a variant and seed, in the order of the summary.
        missing: What could not be read and why, for the reader of the report.
    """

    folder: Path
    summary: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    config: str
    trials: list[Trial]
    missing: list[str] = field(default_factory=list[str])

    @property
    def variants(self) -> list[str]:
        """Names of the variants, in order."""
        return list(dict.fromkeys(trial.variant for trial in self.trials))

    def of(self, variant: str) -> list[Trial]:
        """The trials of a variant."""
        return [trial for trial in self.trials if trial.variant == variant]

    def first(self, variant: str, part: str) -> Any:
        """The first trial's contents of a part; `None` if no trial has it."""
        found = [t.parts[part] for t in self.of(variant) if part in t.parts]
        return found[0] if found else None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as a dictionary; empty if it does not parse."""
        try:
            return tomllib.loads(self.config)
        except tomllib.TOMLDecodeError:
            return {}


def read_run(folder: Path) -> Run:
    """Read a run folder, as far as it goes.

    Raises:
        DataError: `folder` is no folder.
    """
    if not folder.is_dir():
        raise DataError(
            f"There is no run folder {folder}.", hint="give a folder that `wellposed run` wrote."
        )
    missing: list[str] = []
    summary = _object(folder, "summary.json", missing)
    environment = _object(folder, "environment.json", missing)
    data = _object(folder, "data.json", missing)
    config = _text(folder, "config.toml", missing)
    named = summary.get("variants")
    order = list(named) if isinstance(named, dict) else []
    on_disk = sorted(p.name for p in folder.iterdir() if p.is_dir() and list(p.glob("seed-*")))
    trials = [
        _trial(folder, place, missing)
        for variant in [*order, *[v for v in on_disk if v not in order]]
        for place in sorted((folder / variant).glob("seed-*"), key=_number)
    ]
    for variant in dict.fromkeys(trial.variant for trial in trials):
        mine = [trial for trial in trials if trial.variant == variant]
        missing += [
            f"{variant}/seed-*/{name}.json: not there for any seed"
            for name in ONCE
            if not any(
                (folder / variant / f"seed-{t.seed}" / f"{name}.json").exists() for t in mine
            )
        ]
    for variant in order:
        if variant not in on_disk:
            missing.append(f"{variant}/: the summary names this variant, its folder is not there")
    if not trials:
        missing.append("no folder <variant>/seed-<k>: nothing was trained yet")
    return Run(folder, summary, environment, data, config, trials, missing)


def _number(place: Path) -> tuple[int, str]:
    tail = place.name.removeprefix("seed-")
    return (int(tail) if tail.isdecimal() else 1 << 30, tail)


def _trial(root: Path, place: Path, missing: list[str]) -> Trial:
    parts: dict[str, Any] = {}
    for name in (*PARTS, *ASKED):
        path = place / f"{name}.json"
        if name in (*ONCE, *ASKED) and not path.exists():
            continue
        content = _json(root, path, missing)
        if content is not None:
            parts[name] = content
    seed = place.name.removeprefix("seed-")
    return Trial(place.parent.name, seed, _lines(root, place / "metrics.jsonl", missing), parts)


def _lines(root: Path, path: Path, missing: list[str]) -> list[dict[str, Any]]:
    text = _text(root, path.relative_to(root).as_posix(), missing)
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            damaged += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if damaged:
        missing.append(f"{path.relative_to(root)}: {damaged} damaged line(s) were skipped")
    return rows


def _object(root: Path, name: str, missing: list[str]) -> dict[str, Any]:
    content = _json(root, root / name, missing)
    if content is None:
        return {}
    if not isinstance(content, dict):
        missing.append(f"{name}: expected an object, found a {type(content).__name__}")
        return {}
    return content


def _json(root: Path, path: Path, missing: list[str]) -> Any:
    name = path.relative_to(root).as_posix()
    text = _text(root, name, missing)
    if not text:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        missing.append(f"{name}: damaged ({error.msg} at line {error.lineno})")
        return None


def _text(root: Path, name: str, missing: list[str]) -> str:
    try:
        text = (root / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        missing.append(f"{name}: not there")
        return ""
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{name}: cannot be read ({type(error).__name__})")
        return ""
    if not text.strip():
        missing.append(f"{name}: empty")
    return text
