"""A whole experiment on a table: train, prove, compare, summarise, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wellposed.core.records import Environment
from wellposed.experiments.summary import Metrics, publish
from wellposed.experiments.tables.prove import proof_metrics, prove
from wellposed.experiments.tables.response import respond
from wellposed.experiments.tables.train import train
from wellposed.experiments.tables.workspace import MARK, TableWorkspace
from wellposed.files.atomic import write_json
from wellposed.report.tables import write_table_report


def run(work: TableWorkspace, *, resume: bool = False, results: Path | None = None) -> Path:
    """Do everything that the configuration of a table asks for.

    Weights are trained once; proofs are cheap, and made anew from the weights on the disk.

    Args:
        work: Configuration and folder.
        resume: Whether seeds that are finished are left alone.
        results: Folder that gets the published figures; `None` for none.

    Returns:
        The report.

    Raises:
        NotCertifiableError: The order of a network is not proved.
        AuditError: An output contradicts what is proved.
        InterruptedRunError: The user pressed Ctrl-C.
        DataError: The table is absent or damaged, or a file cannot be written.
    """
    train(work, resume=resume)
    torch.set_num_threads(work.config.threads)
    seeds: dict[str, Metrics] = {}
    for trial in work.trials():
        proof = prove(work, trial)
        respond(work, trial, proof)
        seeds[str(trial.seed)] = {**trial.read(MARK), **proof_metrics(proof)}
    signs = sum(int(metrics["signs_proved"]) for metrics in seeds.values())
    work.say(f"order: {signs} signs proved in {len(seeds)} networks, none contradicted")
    summary = _summarise(work, seeds)
    if results is not None:
        work.say(f"results: {publish(work.config.name, results, summary)}")
    return report(work)


def report(work: TableWorkspace) -> Path:
    """Write ``report.html``."""
    path = write_table_report(work.folder)
    work.say(f"report: {path}")
    return path


def _summarise(work: TableWorkspace, seeds: dict[str, Metrics]) -> dict[str, Any]:
    """The numbers of every seed, in ``summary.json``, of the form that other runs have."""
    content = {
        "name": work.config.name,
        "command": work.command,
        "environment": Environment.here().to_dict(),
        "seeds": list(work.config.seeds),
        "variants": {work.config.table.name: seeds},
    }
    write_json(work.folder / "summary.json", content)
    return content
