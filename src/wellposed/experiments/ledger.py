"""Verdicts on disk, one line each: what a stopped verification has decided already.

Every process appends to a part of its own. A line counts once it is whole, so that a process may be
killed at any time; a torn last line is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from wellposed.core.records import Verdict
from wellposed.errors import AuditError, DataError
from wellposed.files.atomic import cannot_write, write_atomic, write_json

SETTINGS = "settings.json"


@final
@dataclass(frozen=True)
class Effort:
    """How hard a verdict was tried for; an unknown one is tried again with more.

    Args:
        tier: Number of the last method that was allowed.
        seconds: Limit of the search, an input.
        nodes: Limit of the search, an input.
        steps: Gradient steps of the attack, over all its restarts.
    """

    tier: int
    seconds: float
    nodes: int
    steps: int

    def covers(self, other: Effort) -> bool:
        """Whether this was at least as much in every respect."""
        mine = (self.tier, self.seconds, self.nodes, self.steps)
        theirs = (other.tier, other.seconds, other.nodes, other.steps)
        return all(a >= b for a, b in zip(mine, theirs, strict=True))


@final
@dataclass(frozen=True)
class Line:
    """What is known about one input.

    Args:
        index: Its place in the data.
        label: Its class.
        verdict: The verdict.
        effort: How hard it was tried for.
    """

    index: int
    label: int
    verdict: Verdict
    effort: Effort

    @property
    def decided(self) -> bool:
        """Verified or falsified."""
        return self.verdict.status != "unknown"

    def settles(self, wanted: Effort) -> bool:
        """Whether nothing is left to do: decided, or unknown after as much effort."""
        return self.decided or self.effort.covers(wanted)


@final
class Ledger:
    """The verdicts of one network on one family of regions, in a folder.

    Args:
        folder: Where the parts lie.
        settings: What the verdicts are about: the digest of the weights, norm, radius, data.
        part: Number of the part that this process appends to.
        again: Forget what is there.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, part: int = 0, again: bool = False
    ) -> None:
        self.folder, self.settings, self.part = folder, dict(settings), part
        self.fresh = again or _settings(folder) != self.settings

    def prepare(self) -> None:
        """Remove verdicts about something else; one process does it before any of them reads."""
        if self.fresh:
            for path in self._parts():
                path.unlink()
        write_json(self.folder / SETTINGS, self.settings)

    def repair(self) -> None:
        """Drop a torn last line of this process's part."""
        path = self._part(self.part)
        if path.is_file():
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                write_atomic(path, whole)

    def write(self, lines: Iterable[Line]) -> None:
        """Append verdicts; they are on the disk when this returns.

        Raises:
            DataError: The folder is not writable or the disk is full.
        """
        text = "".join(json.dumps(_encode(line), allow_nan=False) + "\n" for line in lines)
        path = self._part(self.part)
        try:
            with path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error, len(text)) from error

    def read(self) -> dict[int, Line]:
        """The best line of every input, over all parts.

        Raises:
            AuditError: An input is verified in one line and falsified in another.
            DataError: A line in the middle of a part is damaged.
        """
        found: dict[int, Line] = {}
        for path in self._parts():
            for line in _lines(path):
                found[line.index] = _better(found.get(line.index), line)
        return found

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.jsonl"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.jsonl"))


def _settings(folder: Path) -> Any:
    path = folder / SETTINGS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _encode(line: Line) -> dict[str, Any]:
    return {
        "index": line.index,
        "label": line.label,
        "verdict": line.verdict.to_dict(),
        "effort": {
            "tier": line.effort.tier,
            # JSON has no infinity
            "seconds": str(line.effort.seconds),
            "nodes": line.effort.nodes,
            "steps": line.effort.steps,
        },
    }


def _lines(path: Path) -> list[Line]:
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    out: list[Line] = []
    for number, row in enumerate(whole.splitlines(), 1):
        try:
            content = json.loads(row)
            effort = content["effort"]
            out.append(
                Line(
                    int(content["index"]),
                    int(content["label"]),
                    Verdict.from_dict(content["verdict"]),
                    Effort(
                        int(effort["tier"]),
                        float(effort["seconds"]),
                        int(effort["nodes"]),
                        int(effort["steps"]),
                    ),
                )
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"`{path}` is damaged at line {number}: {row[:60]!r}.",
                hint="start again with `--again`, which forgets the verdicts of this radius.",
            ) from error
    return out


def _better(old: Line | None, new: Line) -> Line:
    if old is None:
        return new
    states = {old.verdict.status, new.verdict.status}
    if states == {"verified", "falsified"}:
        raise AuditError(
            f"Input {new.index} was verified by {_name(old, 'verified', new)} and falsified by "
            f"{_name(old, 'falsified', new)}: one of the two is wrong.",
            hint="please report this with the weights.",
        )
    if old.decided or new.decided:
        return old if old.decided else new
    return new if new.effort.covers(old.effort) else old


def _name(old: Line, status: str, new: Line) -> str:
    return next(x.verdict.method for x in (old, new) if x.verdict.status == status)
