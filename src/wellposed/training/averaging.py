"""Exponential moving average of the weights: a flatter solution at the cost of a lerp a step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@final
class Average:
    """The moving average ``m <- d m + (1 - d) w`` with ``d = min(decay, (1 + t) / (10 + t))``.

    The smaller factor of the first steps lets the average forget the random start.

    Args:
        model: Whose parameters are averaged.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._names = [name for name, _ in model.named_parameters()]
        self._live: list[Tensor] = list(model.parameters())
        self._mean: list[Tensor] = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        factor = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        get_ema_multi_avg_fn(factor)(self._mean, self._live, self.steps)

    @contextmanager
    def applied(self) -> Generator[None]:
        """The model carries the averages inside this block."""
        kept = [p.detach().clone() for p in self._live]
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self._live, kept, strict=True):
                    p.copy_(value)

    @torch.no_grad()
    def put(self) -> None:
        """Write the averages into the model for good."""
        for p, mean in zip(self._live, self._mean, strict=True):
            p.copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._mean, strict=True))

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Put back averages; their shapes have been checked with those of the model."""
        self.steps = steps
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(tensors[name])
