"""Certificate files of verdicts, one an input, beside the weights that they speak about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

import torch

import wellposed_check
from wellposed.core.network import Network
from wellposed.core.records import Verdict
from wellposed.core.sets import Box
from wellposed.experiments.ledger import Line
from wellposed.experiments.question import Question, Subject
from wellposed.files.atomic import write_json
from wellposed.verify.branch import Budget
from wellposed.verify.certificate import save_certificate
from wellposed.verify.classifier import Classifier
from wellposed.verify.evidence import Evidence
from wellposed.verify.proof import Proof
from wellposed.verify.statement import Statement
from wellposed.verify.vnnlib import Task
from wellposed.verify.weights import export_network

WEIGHTS = "network.npz"
PATIENCE = 5  # times the budget of the verdict: a proof repeats its search, and must not lose it


@final
@dataclass(frozen=True)
class Filed:
    """How the files of some verdicts came out.

    Args:
        decided: Inputs that are verified or falsified.
        filed: Those that have a file.
        accepted: Those whose file the independent checker accepts, with the same verdict.
    """

    decided: int = 0
    filed: int = 0
    accepted: int = 0

    def __add__(self, other: Filed) -> Filed:
        return Filed(
            self.decided + other.decided, self.filed + other.filed, self.accepted + other.accepted
        )


def file_certificates(
    subject: Subject, question: Question, lines: Iterable[Line], folder: Path, part: int = 0
) -> Filed:
    """Write ``<index>.npz`` for every decided input that has none, and the weights; check them all.

    The proof is made anew, in the form that the independent checker asks for; an input for which
    that fails has no file. A file that is there and is not accepted is made again.

    Args:
        subject: Network and inputs.
        question: What was asked.
        lines: The verdicts.
        folder: Where.
        part: Number of this process; its count is written for `filed`.

    Raises:
        NotCertifiableError: The network is too large for certificate files, or not piecewise
            linear.
    """
    decided = [line for line in lines if line.decided]
    found = _file(subject, question, decided, folder) if decided else Filed()
    write_json(folder / f"count-{part}.json", asdict(found))
    return found


def filed(folder: Path, parts: int) -> Filed:
    """What so many processes have counted together."""
    total = Filed()
    for part in range(parts):
        content = json.loads((folder / f"count-{part}.json").read_text(encoding="utf-8"))
        total = total + Filed(**content)
    return total


def _file(subject: Subject, question: Question, decided: list[Line], folder: Path) -> Filed:
    evidence = Evidence(subject.classifier)
    weights = folder / WEIGHTS
    export_network(evidence.network, weights)
    network = wellposed_check.read_network(str(weights))
    count = Filed(len(decided))
    for line in decided:
        path = folder / f"{line.index:06d}.npz"
        good = path.is_file() and _accepted(path, network, line)
        if not good:
            proof = _proof(evidence, subject, question, line)
            if proof is None:
                path.unlink(missing_ok=True)
                continue
            save_certificate(path, proof)
            good = _accepted(path, network, line)
        count = count + Filed(0, 1, int(good))
    return count


def file_property(
    network: Network,
    tasks: Sequence[Task],
    verdicts: Sequence[Verdict],
    folder: Path,
    budget: Budget,
) -> Filed:
    """Write ``<number>.npz`` for every decided task of a property, and the weights; check them all.

    Args:
        network: What the property is about.
        tasks: Boxes of inputs with statements.
        verdicts: Of the first so many tasks.
        folder: Where.
        budget: Of the verdicts.
    """
    evidence = Evidence(Classifier.of(network, (network.d,)))
    weights = folder / WEIGHTS
    export_network(network, weights)
    count, patient = Filed(), replace(budget, seconds=PATIENCE * budget.seconds)
    for number, (task, verdict) in enumerate(zip(tasks, verdicts, strict=False)):
        if verdict.status == "unknown":
            continue
        proof: Proof | None = None
        if verdict.witness is not None:
            point = torch.tensor(verdict.witness, dtype=torch.float64)
            proof = evidence.refute(task.region, task.statement, point)
        else:
            scope = evidence.task.scope(task.region)
            proof = evidence.prove(task.region, task.statement, scope, patient)
        count = count + Filed(1)
        if proof is not None:
            path = folder / f"{number:06d}.npz"
            save_certificate(path, proof)
            good = _established(path, str(weights)) == verdict.status
            count = count + Filed(0, 1, int(good))
    return count


def _established(path: Path, weights: str | wellposed_check.Fields) -> str | None:
    """The verdict that the independent checker confirms."""
    try:
        return wellposed_check.check(str(path), weights)[0]
    except wellposed_check.RejectedError:
        return None


def _accepted(path: Path, network: wellposed_check.Fields, line: Line) -> bool:
    return _established(path, network) == line.verdict.status


def _proof(evidence: Evidence, subject: Subject, question: Question, line: Line) -> Proof | None:
    task = subject.classifier
    x, _ = subject.part([line.index])
    region = task.enter(question.region(x, subject.domain))
    statement = Statement.of_label(line.label, task.classes)
    if line.verdict.witness is None:
        budget = replace(question.budget, seconds=PATIENCE * question.seconds)
        return evidence.prove(region, statement, task.scope(region), budget)
    witness = torch.tensor(line.verdict.witness, dtype=torch.float64).reshape(x.shape)
    point = task.enter(Box(witness, witness)).box.centre
    # the way into the network's coordinates is rounded
    point = torch.minimum(torch.maximum(point, region.box.lower), region.box.upper)
    return evidence.refute(region, statement, point[0])
