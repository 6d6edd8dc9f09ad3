"""Counter-examples as pictures: the image, the change, what the network says of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wellposed.attacks.exact import exact_layers
from wellposed.experiments.gallery import perturbation_picture, picture
from wellposed.experiments.ledger import Line
from wellposed.experiments.question import Question, Subject
from wellposed.verify.verdicts import Tier

COUNT = 12


def gallery(subject: Subject, question: Question, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Some counter-examples: first those that only the search has found, then attacked ones.

    Inputs that are wrong without any change come last.

    Args:
        subject: A module with images.
        question: What was asked.
        lines: All verdicts.
    """
    if not isinstance(subject.model, nn.Module) or subject.x.ndim != 4:
        return []
    falsified = [line for line in lines if line.verdict.witness is not None]
    chosen = sorted(falsified, key=lambda line: _order(subject, line))[:COUNT]
    return [_card(subject.model, subject, question, line) for line in chosen]


def _order(subject: Subject, line: Line) -> tuple[bool, bool, int]:
    changed = float((_point(subject, line) - subject.x[line.index].double()).abs().max())
    return changed < 1e-9, line.verdict.method != Tier.BRANCHING.value, line.index


def _point(subject: Subject, line: Line) -> Tensor:
    assert line.verdict.witness is not None
    flat = torch.tensor(line.verdict.witness, dtype=torch.float64)
    return flat.reshape(subject.x.shape[1:])


def _card(model: nn.Module, subject: Subject, question: Question, line: Line) -> dict[str, Any]:
    image, point = subject.x[line.index], _point(subject, line)
    with exact_layers(model), torch.no_grad():
        logits = model(torch.stack([image, point.to(image)]))
    change = (point - image.double()).flatten()
    size = change.abs().max() if question.norm == "max" else change.norm()
    return {
        "index": line.index,
        "label": line.label,
        "clean": int(logits[0].argmax()),
        "prediction": int(logits[1].argmax()),
        "probability": float(f"{float(logits[1].softmax(0).max()):.4g}"),
        "margin": float(f"{line.verdict.margin:.4g}"),
        "method": line.verdict.method,
        "distance": float(f"{float(size):.4g}"),
        "nodes": line.verdict.nodes,
        "image": picture(image),
        "witness": picture(point.float()),
        "change": perturbation_picture(change.reshape(image.shape).float()),
    }
