"""``wellposed certify``, ``attack`` and ``report``: the steps after training, one by one."""

from __future__ import annotations

from pathlib import Path

from wellposed.cli.shared import opened


def certify(run: Path, *, again: bool = False) -> None:
    """Prove Lipschitz bounds of trained networks and compare them with attacked lower bounds.

    Args:
        run: A run folder.
        again: Do it even if it was done for these weights.
    """
    from wellposed.experiments import steps
    from wellposed.experiments.summary import summarise

    work = opened(run)
    steps.certify(work, again=again)
    steps.audit(work)
    summarise(work)


def attack(run: Path, *, again: bool = False) -> None:
    """Draw the robustness curves of trained networks, race solvers, describe examples.

    Args:
        run: A run folder.
        again: Do it even if it was done for these weights.
    """
    from wellposed.experiments import steps
    from wellposed.experiments.summary import summarise

    work = opened(run)
    steps.attack(work, again=again)
    steps.audit(work)
    summarise(work)


def report(run: Path) -> None:
    """Write report.html of a run folder.

    Args:
        run: A run folder.
    """
    from wellposed.experiments import steps
    from wellposed.experiments.tables.config import is_table_file
    from wellposed.experiments.tables.run import report as table_report
    from wellposed.experiments.tables.workspace import TableWorkspace

    path = run / "config.toml"
    if path.is_file() and is_table_file(path):
        table_report(TableWorkspace.open(run))
        return
    steps.report(opened(run))
