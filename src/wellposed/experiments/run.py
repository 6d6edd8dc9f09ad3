"""A whole experiment: train, certify, attack, verify, audit, report."""

from __future__ import annotations

from pathlib import Path

from wellposed.experiments.steps import attack, audit, certify, report, verify
from wellposed.experiments.summary import record, summarise
from wellposed.experiments.train import train
from wellposed.experiments.workspace import Workspace


def run(work: Workspace, *, resume: bool = False, results: Path | None = None) -> Path:
    """Do everything that a configuration asks for.

    Args:
        work: Configuration and folder.
        resume: Whether to go on where an earlier run was stopped.
        results: Folder that gets the published figures; `None` for none.

    Returns:
        The report.
    """
    train(work, resume=resume)
    summarise(work)
    return finish(work, again=not resume, results=results)


def finish(work: Workspace, *, again: bool = False, results: Path | None = None) -> Path:
    """All steps after training."""
    certify(work, again=again)
    attack(work, again=again)
    verify(work, again=again)
    audit(work)
    summary = summarise(work)
    if results is not None:
        record(work, results, summary)
    return report(work)
