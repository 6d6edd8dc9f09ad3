"""``wellposed run`` and ``wellposed train``."""

from __future__ import annotations

from pathlib import Path

from wellposed.cli.shared import Flags, configured, configured_table


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

    A configuration with a section `[table]` is an experiment on a table: a monotone network is
    trained, its order and its constants are proved, and the test part is looked at once.

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
    from wellposed.experiments.tables.config import is_table_file
    from wellposed.experiments.tables.run import run as table_run

    results = Path("results") if record else None
    if is_table_file(config):
        tabular = configured_table(config, out, seeds, name, overrides)
        table_run(tabular, resume=resume, results=results)
        return
    work = configured(config, out, seeds, name, overrides)
    whole_run(work, resume=resume, results=results)


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
