"""Several runs beside each other: same data, same figures, and why a figure is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from wellposed.core.records import Environment
from wellposed.errors import ConfigError, DataError
from wellposed.experiments import families
from wellposed.experiments.alike import Alike, measured
from wellposed.experiments.beside import Figures, figures, radii_of
from wellposed.experiments.summary import over_seeds
from wellposed.experiments.workspace import Job, Workspace

SHOWN = 2
"""Radii of each norm that are shown unless somebody asks for others."""
_STEPS = {"certificates": "certify", "boxes": "certify", "attacks": "attack",
          "verification": "verify"}  # fmt: skip


@final
@dataclass(frozen=True)
class Radii:
    """Radii at which certified and attacked accuracy are compared; `None` for the usual ones.

    Args:
        max: In the max norm.
        two: In the 2-norm.
    """

    max: Sequence[float] | None = None
    two: Sequence[float] | None = None


def compare(
    folders: Sequence[Path],
    name: str | None = None,
    radii: Radii | None = None,
    command: str = "",
    alike: Alike | None = None,
) -> dict[str, Any]:
    """The figures of all networks of several run folders, ready for JSON and for the report.

    Args:
        folders: What `wellposed run` wrote.
        name: Of the comparison; by default ``compare-<data>``.
        radii: Where robustness is compared; by default those that most networks have.
        command: How the user started it.
        alike: Budget under which robustness is measured anew, the same for all; `None` takes what
            each run measured under its own.

    Raises:
        ConfigError: A folder is no run folder, is named twice, or was not finished.
        DataError: The runs saw different images.
    """
    works = [Workspace.open(folder) for folder in folders]
    _check_folders([work.folder for work in works])
    _check_data(works)
    jobs = [(work, list(work.jobs())) for work in works]
    for work, mine in jobs:
        for job in mine:
            _check_finished(work, job)
    asked = radii or Radii()
    everyone = [job for _, mine in jobs for job in mine]
    usual = {norm: _usual([radii_of(job, norm) for job in everyone]) for norm in ("max", "2")}
    chosen = {
        "max": usual["max"] if asked.max is None else list(asked.max),
        "2": usual["2"] if asked.two is None else list(asked.two),
    }
    rows = [row for work, mine in jobs for row in _rows(work, mine, chosen, alike)]
    first = works[0]
    return {
        "name": name or f"compare-{first.config.data.name}",
        "command": command,
        "environment": Environment.here().to_dict(),
        "seeds": sorted({seed for work in works for seed in work.config.seeds}),
        "data": {"name": first.config.data.name, **_digests(first)},
        "radii": chosen,
        "budget": "" if alike is None else str(alike),
        "warnings": _warnings(works, attacks=alike is None),
        "rows": rows,
        "metrics": {
            f"{row['label']}/{key}": value for row in rows for key, value in row["values"].items()
        },
    }


def _rows(
    work: Workspace, jobs: Sequence[Job], radii: dict[str, list[float]], alike: Alike | None
) -> list[dict[str, Any]]:
    names = dict.fromkeys(job.name for job in jobs)
    out: list[dict[str, Any]] = []
    for variant in names:
        mine = [job for job in jobs if job.name == variant]
        same = [None if alike is None else measured(work, job, radii, alike) for job in mine]
        found = [figures(job, radii, one) for job, one in zip(mine, same, strict=True)]
        values, missing, methods = _over_seeds(found)
        run = work.folder.resolve().name
        out.append(
            {
                "label": run if len(names) == 1 else f"{run}: {variant}",
                "run": run,
                "variant": variant,
                "kind": families.kind(mine[0].variant.model),
                "seeds": [job.seed for job in mine],
                "values": values,
                "missing": missing,
                "methods": methods,
            }
        )
    return out


def _over_seeds(
    found: Sequence[Figures],
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Values, reasons and methods of a variant.

    What some seeds lack is missing altogether, except robust accuracies: verification is dear, and
    those of some seeds are shown with their number, certified and attacked of the same seeds.
    """
    missing = {key: why for one in found for key, why in one.missing.items()}
    methods = {key: how for one in found for key, how in one.methods.items()}
    values: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in found for key in one.values):
        proof = key.replace("attacked_", "certified_", 1)
        robust = proof.startswith("certified_")
        part = [one for one in found if robust and proof in one.values] or found
        known = [one.values[key] for one in part if key in one.values]
        if len(known) < len(part):
            continue
        missing.pop(key, None)
        if key in methods and len(part) < len(found):
            methods[key] += f", {len(part)} of {len(found)} seeds"
        # a bound of a family holds for every seed
        if key.startswith("lipschitz_"):
            values[key] = max(known)
        else:
            values |= over_seeds({str(i): {key: value} for i, value in enumerate(known)})
    return values, missing, methods


def _usual(found: Sequence[Sequence[float]]) -> list[float]:
    """The radii that most networks have."""
    counts = Counter(radius for radii in found for radius in radii if radius > 0)
    return sorted(sorted(counts, key=lambda r: (-counts[r], r))[:SHOWN])


def _check_folders(folders: Sequence[Path]) -> None:
    if not folders:
        raise ConfigError("No run folder is given.", hint="`wellposed compare runs/a runs/b`.")
    places = [folder.resolve() for folder in folders]
    twice = [str(p.name) for p, n in Counter(places).items() if n > 1]
    if twice:
        raise ConfigError(f"`{twice[0]}` is given twice.")
    alike = [n for n, count in Counter(p.name for p in places).items() if count > 1]
    if alike:
        raise ConfigError(
            f"Two run folders are called `{alike[0]}`, so their rows could not be told apart.",
            hint="rename one of them.",
        )


def _check_finished(work: Workspace, job: Job) -> None:
    path = work.folder / "config.toml"
    if job.read("metrics") is None:
        raise ConfigError(
            f"The run `{work.folder}` was not finished: {job.title} has no `metrics.json`.",
            hint=f"`wellposed run {path} --resume` goes on; its `--out` and `--name` as before.",
        )
    made = job.read("steps") or {}
    for step, again in _STEPS.items():
        if "metrics" in made and step in made and made[step] != made["metrics"]:
            raise ConfigError(
                f"`{job.folder / step}.json` is about other weights than those of {job.title}.",
                hint=f"`wellposed {again} {work.folder}` makes it anew.",
            )


def _digests(work: Workspace) -> dict[str, str]:
    path = work.folder / "data.json"
    if not path.is_file():
        raise ConfigError(
            f"`{work.folder}` has no `data.json`, so nobody can tell which images it saw.",
            hint="`wellposed train` and `wellposed run` write it.",
        )
    return json.loads(path.read_text())


def _check_data(works: Sequence[Workspace]) -> None:
    """Refuse runs whose test images differ."""
    first = works[0]
    for work in works[1:]:
        one, other = first.config.data, work.config.data
        told = f"`{first.folder}` and `{work.folder}` cannot be compared"
        if one.name != other.name:
            raise DataError(f"{told}: one is about {one.name}, the other about {other.name}.")
        if _digests(first) != _digests(work):
            raise DataError(
                f"{told}: their files of {one.name} have different digests.",
                hint="look at both `data.json`; train one of them again on the other's files.",
            )
        if one.test_limit != other.test_limit:
            raise DataError(
                f"{told}: `data.test_limit` is {one.test_limit} and {other.test_limit}, so that "
                "they were tested on different images."
            )


def _warnings(works: Sequence[Workspace], *, attacks: bool) -> list[str]:
    """What differs between runs and changes the figures without making them incomparable."""
    out: list[str] = []
    settings: dict[str, list[Any]] = {
        "seeds": [list(w.config.seeds) for w in works],
        "images held out of training": [w.config.data.validation for w in works],
        "training images": [w.config.data.train_limit or "all" for w in works],
        "threads": [w.config.threads for w in works],
        "processor": [_processor(w) for w in works],
    }
    if attacks:
        settings |= {
            "attacked images": [w.config.attacks.samples for w in works],
            "steps of the attack": [w.config.attacks.steps for w in works],
            "restarts of the attack": [w.config.attacks.restarts for w in works],
        }
    for what, values in settings.items():
        if len({str(value) for value in values}) > 1:
            told = "; ".join(
                f"{value} in {', '.join(w.folder.resolve().name for w in mine)}"
                for value, mine in _grouped(values, works)
            )
            out.append(f"The {what} differ: {told}.")
    return out


def _grouped(
    values: Sequence[Any], works: Sequence[Workspace]
) -> list[tuple[str, list[Workspace]]]:
    groups: dict[str, list[Workspace]] = {}
    for value, work in zip(values, works, strict=True):
        groups.setdefault(str(value), []).append(work)
    return list(groups.items())


def _processor(work: Workspace) -> str:
    path = work.folder / "environment.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return str(found.get("processor", "an unknown processor"))
