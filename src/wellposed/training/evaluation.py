"""Accuracy of a classifier on examples in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellposed.training.data import Examples


@torch.no_grad()
def predictions(model: nn.Module, inputs: Tensor, batch: int = 1000) -> Tensor:
    """The logits of all inputs, in evaluation mode; the mode is put back."""
    before = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in inputs.split(batch)])
    finally:
        model.train(before)


def accuracy(model: nn.Module, examples: Examples, batch: int = 1000) -> float:
    """Part of the examples that are classified rightly; NaN logits are wrong."""
    logits = predictions(model, examples.inputs, batch)
    right = (logits.argmax(1) == examples.labels) & logits.isfinite().all(1)
    return float(right.double().mean())
