"""Objective: the loss of a batch, and what to watch on held-out examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.training.data import Examples


class Objective(ABC):
    """A frozen value: what a step of training minimises."""

    @abstractmethod
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, on the tape, and its clean logits.

        Args:
            model: In training mode.
            inputs: Pixels in [0, 1].
            labels: Classes.
            done: Part of the run that is over, in [0, 1).
        """

    @abstractmethod
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        """Further figures of an epoch on held-out examples, by name."""


@final
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross entropy of the clean logits.

    Args:
        label_smoothing: Part of the target that is spread over all classes.
    """

    label_smoothing: float = 0.0

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        logits = model(inputs)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return {}
