"""``wellposed run`` and ``wellposed train``."""

from __future__ import annotations

from pathlib import Path

from wellposed.cli.shared import Flags, configured


def run(
    config: Path,
    *overrides: Flags,
    out: Path = Path("runs"),
    name: str | None = None,
    seeds: str | None = None,
    resume: bool = False,
    record: bool = False,
) -> None:
    """Train, certify, attack, audit and report an experiment.

    Any key of the configuration is a flag, such as ``--training.epochs 3`` or ``--epochs 3``;
    ``wellposed fields`` lists them.

    Args:
        config: A TOML file.
        overrides: Keys of the configuration with new values.
        out: Folder of run folders.
        name: Of the run folder; by default that of the file.
        seeds: Such as 0,1,2.
        resume: Go on where an earlier run was stopped.
        record: Write the figures to results/<name>.json as well.
    """
    from wellposed.experiments.run import run as whole_run

    work = configured(config, out, seeds, name, overrides)
    whole_run(work, resume=resume, results=Path("results") if record else None)


def train(
    config: Path,
    *overrides: Flags,
    out: Path = Path("runs"),
    name: str | None = None,
    seeds: str | None = None,
    resume: bool = False,
) -> None:
    """Train the networks of an experiment and nothing else.

    Args:
        config: A TOML file.
        overrides: Keys of the configuration with new values.
        out: Folder of run folders.
        name: Of the run folder; by default that of the file.
        seeds: Such as 0,1,2.
        resume: Go on where an earlier run was stopped.
    """
    from wellposed.experiments.summary import summarise
    from wellposed.experiments.train import train as whole_train

    work = configured(config, out, seeds, name, overrides)
    whole_train(work, resume=resume)
    summarise(work)
