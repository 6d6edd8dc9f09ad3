"""Certificate files of verdicts, one an input, beside the weights that they speak about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from wellposed.core.sets import Box
from wellposed.experiments.ledger import Line
from wellposed.experiments.question import Question, Subject
from wellposed.verify.certificate import Proof, save_certificate
from wellposed.verify.evidence import prove, refute
from wellposed.verify.weights import export_network

WEIGHTS = "network.npz"


def file_certificates(
    subject: Subject, question: Question, lines: Iterable[Line], folder: Path
) -> int:
    """Write ``<index>.npz`` for every decided input that has none, and the weights.

    The proof is made anew, in the form that the independent checker asks for; an input for which
    that fails within the budget has no file.

    Args:
        subject: Network and inputs.
        question: What was asked.
        lines: The verdicts.
        folder: Where.

    Returns:
        How many decided inputs have a file now.

    Raises:
        NotCertifiableError: The network is too large for certificate files.
    """
    task = subject.classifier
    count = 0
    for line in lines:
        path = folder / f"{line.index:06d}.npz"
        if not line.decided:
            continue
        if not path.is_file():
            proof = _proof(subject, question, line)
            if proof is None:
                continue
            save_certificate(path, proof)
        count += 1
    if count and task.network is not None:
        export_network(task.network, folder / WEIGHTS)
    return count


def _proof(subject: Subject, question: Question, line: Line) -> Proof | None:
    task = subject.classifier
    x, _ = subject.part([line.index])
    region = task.enter(question.region(x, subject.domain))
    if line.verdict.witness is None:
        return prove(task, region, line.label, task.scope(region), question.budget)
    witness = torch.tensor(line.verdict.witness, dtype=torch.float64).reshape(x.shape)
    point = task.enter(Box(witness, witness)).box.centre
    # the way into the network's coordinates is rounded
    point = torch.minimum(torch.maximum(point, region.box.lower), region.box.upper)
    return refute(task, region, line.label, point[0])
