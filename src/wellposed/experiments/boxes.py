"""Certified accuracy by boxes, over the whole test part, cross-examined by attacks."""

from __future__ import annotations

from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from wellposed.attacks import PGD
from wellposed.certify.margins import box_margins
from wellposed.core.sets import Box
from wellposed.data.records import Split
from wellposed.errors import AuditError
from wellposed.experiments.sections import Attacks, Certified

RULE = "boxes in float64 with outward rounding, last layer folded into the margins"


def certified_by_boxes(
    model: nn.Module, split: Split, section: Certified, attacks: Attacks, *, seed: int = 0
) -> dict[str, Any]:
    """Part of the images whose class is proved on the whole box, for every radius.

    The certified images among the first `attacks.samples` are attacked; one that falls is an error
    of this library.

    Args:
        model: Takes pixels in [0, 1], returns logits; in evaluation mode.
        split: Test images.
        section: Radii and number of images.
        attacks: Samples, steps and restarts of the cross-examination.
        seed: Of random starts.

    Raises:
        AuditError: An attack succeeds on a certified image.
        NotCertifiableError: Some layer has no rule.
    """
    began = process_time()
    count = section.samples or len(split)
    part = split.take(torch.arange(min(count, len(split))))
    x, y = part.floats(), part.labels
    accuracy: list[float] = []
    attacked = 0
    for eps in section.eps:
        proved = proved_by_boxes(model, x, y, eps)
        accuracy.append(float(proved.double().mean()))
        rows = proved[: attacks.samples].nonzero().flatten()
        if len(rows):
            attack = PGD("max", eps, steps=attacks.steps, restarts=attacks.restarts)
            found = attack.attack(model, x[rows], y[rows], torch.Generator().manual_seed(seed))
            attacked += len(rows)
            if bool(found.success.any()):
                broken = rows[found.success].tolist()
                raise AuditError(
                    f"Test images {broken[:10]} are certified at eps = {eps:g} and were "
                    "misclassified there.",
                    hint="please report this with the weights: a certificate is wrong.",
                )
    return {
        "rule": RULE,
        "samples": len(part),
        "eps": list(section.eps),
        "accuracy": accuracy,
        "attacked": attacked,
        "cpu_seconds": round(process_time() - began, 2),
    }


def proved_by_boxes(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Whether the class of each image holds on the whole box around it, of shape (images,).

    Args:
        model: Takes pixels in [0, 1], returns logits; in evaluation mode.
        x: Images in [0, 1], at least one.
        y: Labels.
        eps: Radius in pixel units; boxes are cut off at 0 and 1.

    Raises:
        NotCertifiableError: Some layer has no rule.
    """
    parts = zip(x.split(1000), y.split(1000), strict=True)
    margins = [box_margins(model, Box.around(a, eps).clip(0.0, 1.0), b) for a, b in parts]
    return (torch.cat(margins) > 0).all(1)
