"""Records: Certificate, Estimate, Verdict, Environment, and their JSON in both directions.

A `Certificate` is a proved bound. An `Estimate` is a lower bound or a statistic. There is no road
from one to the other: only `wellposed.certify` makes certificates, by measuring explicit weights.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal, Self, final

import torch

from wellposed.errors import ConfigError


class Record:
    """A frozen dataclass that is written to JSON and read back equal."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; infinities as strings."""
        return {"record": type(self).__name__, **_encode(asdict(self))}  # type: ignore[call-overload]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: A field is unknown or missing, or `data` is another kind of record.
        """
        content = dict(data)
        kind = content.pop("record", cls.__name__)
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(content) - names)
        if kind != cls.__name__ or unknown:
            raise ConfigError(
                f"Expected a {cls.__name__} record, got {kind} with unknown fields {unknown}."
            )
        try:
            return cls(**{name: _decode(value) for name, value in content.items()})
        except TypeError as error:
            raise ConfigError(f"A {cls.__name__} record is incomplete: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


@final
@dataclass(frozen=True)
class Certificate(Record):
    """A proved upper bound.

    Args:
        claim: What is bounded, such as ``"lipschitz"``.
        value: The bound.
        norm_in: Norm in which inputs are measured.
        norm_out: Norm in which outputs are measured.
        rule: The rule that proved it, with its source.
        region: Set of inputs on which it holds; ``"everywhere"`` by default.
        assumes: What the rule took on trust.
        parts: Certificates that this one was composed of.
    """

    claim: str
    value: float
    norm_in: str
    norm_out: str
    rule: str
    region: str = "everywhere"
    assumes: tuple[str, ...] = ()
    parts: tuple[Certificate, ...] = ()

    def __post_init__(self) -> None:
        if isnan(self.value) or self.value < 0:
            raise ConfigError(f"A certificate's `value` must be a bound >= 0, got {self.value}.")
        # records read from JSON hold lists and dictionaries where there were tuples and parts
        given: tuple[Any, ...] = tuple(self.parts)
        parts = tuple(p if isinstance(p, Certificate) else Certificate.from_dict(p) for p in given)
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "assumes", tuple(self.assumes))


@final
@dataclass(frozen=True)
class Estimate(Record):
    """A measured lower bound or statistic; never a proof.

    Args:
        claim: What is estimated, such as ``"lipschitz"``.
        value: The estimate.
        norm_in: Norm in which inputs are measured.
        norm_out: Norm in which outputs are measured.
        method: How it was found.
        samples: How many inputs were tried.
    """

    claim: str
    value: float
    norm_in: str
    norm_out: str
    method: str
    samples: int = 0


@final
@dataclass(frozen=True)
class Verdict(Record):
    """What is known about one input and one specification.

    Args:
        status: Verified, falsified (with a witness) or unknown.
        margin: A proved lower bound of the smallest margin if verified, the witness's margin if
            falsified, the best bound found otherwise.
        method: What decided.
        seconds: CPU time spent; a `Budget` is wall time.
        witness: A counter-example, flattened.
        bounds: Lower bound of the smallest margin that each method reached, by its name.
        unstable: Neurons whose phase was open under the best preactivation bounds; `None` where no
            bounds were made.
        nodes: Nodes of the search.
    """

    status: Literal["verified", "falsified", "unknown"]
    margin: float
    method: str
    seconds: float = 0.0
    witness: tuple[float, ...] | None = None
    bounds: dict[str, float] = field(default_factory=dict[str, float])
    unstable: int | None = None
    nodes: int = 0

    def __post_init__(self) -> None:
        if self.status not in ("verified", "falsified", "unknown"):
            raise ConfigError(f"`status` must be verified, falsified or unknown: {self.status!r}.")
        if (self.status == "falsified") != (self.witness is not None):
            raise ConfigError("A falsified verdict carries a witness, and no other one does.")
        if self.witness is not None:
            object.__setattr__(self, "witness", tuple(self.witness))


@final
@dataclass(frozen=True)
class Environment(Record):
    """Where a figure was measured."""

    python: str
    torch: str
    wellposed: str
    system: str
    processor: str
    cores: int
    threads: int
    device: str
    commit: str
    dirty: bool
    time: str
    packages: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def here(cls) -> Environment:
        """The environment of this process."""
        commit, dirty = _git_state()
        names = ("numpy", "scipy", "safetensors", "matplotlib")
        return cls(
            python=platform.python_version(),
            torch=torch.__version__,
            wellposed=_version("wellposed"),
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            commit=commit,
            dirty=dirty,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            packages={name: _version(name) for name in names},
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git_state() -> tuple[str, bool]:
    root = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") or "unknown", bool(
            git("status", "--porcelain", "--untracked-files=no")
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown", False


def _encode(value: Any) -> Any:
    match value:
        case dict():
            return {key: _encode(item) for key, item in value.items()}
        case list() | tuple():
            return [_encode(item) for item in value]
        case float() if isnan(value) or abs(value) == inf:
            return str(value)
        case _:
            return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return float(value) if value in ("inf", "-inf", "nan") else value
