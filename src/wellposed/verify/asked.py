"""What may be asked of a classifier; anything else is refused with the value at fault."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.core.sets import Region
from wellposed.errors import ConfigError, ShapeError
from wellposed.verify.classifier import Classifier


def check_question(
    task: Classifier, x: Tensor, y: Tensor, region: Region, domain: tuple[float, float] | None
) -> None:
    """Check inputs, labels and regions.

    Raises:
        ShapeError: Shapes do not fit, or a region leaves the domain.
        ConfigError: A label is no class.
    """
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise ShapeError(
            f"The labels are {y.dtype} of shape {tuple(y.shape)}, expected int64 of shape "
            f"({len(x)},): one for each input."
        )
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < task.classes):
        bad = int(y.max()) if int(y.max()) >= task.classes else int(y.min())
        raise ConfigError(f"The label {bad} is no class of a network with {task.classes} logits.")
    if region.box.shape != tuple(x.shape):
        raise ShapeError(
            f"The regions have shape {region.box.shape}, expected {tuple(x.shape)}: one for each "
            "input."
        )
    box = region.box
    if (
        domain is not None
        and len(x)
        and not (float(box.lower.min()) >= domain[0] and float(box.upper.max()) <= domain[1])
    ):
        raise ShapeError(
            f"A region reaches from {float(box.lower.min()):.4g} to {float(box.upper.max()):.4g} "
            f"and leaves the domain {domain}.",
            hint="`box.clip(0, 1)` keeps to pixels; pass `domain=None` for inputs without limits.",
        )
