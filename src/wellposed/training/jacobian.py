"""Jacobian regularisation: a term of the loss that keeps equilibria cheap to find."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ConfigError
from wellposed.nn.jacobian import jacobian_penalty, visited
from wellposed.training.certified import Ramp
from wellposed.training.data import Examples
from wellposed.training.objective import Objective


class Frequency(ABC):
    """A frozen value: at which steps a term of the loss is taken."""

    @abstractmethod
    def now(self, done: float) -> bool:
        """Whether at this step; `done` is the part of the run that is over."""


@final
@dataclass(frozen=True)
class Sometimes(Frequency):
    """With a probability at every step, drawn from PyTorch's global generator.

    Args:
        probability: In (0, 1].
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"`probability` must lie in (0, 1], got {self.probability}.")

    @override
    def now(self, done: float) -> bool:
        return self.probability >= 1 or float(torch.rand(())) < self.probability


@final
@dataclass(frozen=True)
class Every(Frequency):
    """At the first step and every `stride`-th one after it.

    Args:
        stride: At least 1.
        steps: Of the whole run.
    """

    stride: int
    steps: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.steps < 1:
            raise ConfigError(
                f"`stride` and `steps` must be at least 1, got {self.stride} and {self.steps}."
            )

    @override
    def now(self, done: float) -> bool:
        return round(done * self.steps) % self.stride == 0


@final
@dataclass(frozen=True)
class JacobianLoss(Objective):
    """Another loss plus ``weight * mean ||J||_F^2 / n`` over the equilibria of the pass [1].

    The reported training loss contains the term. A step without it costs nothing more; one with
    it costs an evaluation, its backward pass and the backward pass of that.

    Args:
        base: The loss that is regularised.
        weight: Over the run; no term is taken while it is 0.
        frequency: At which steps.
        probes: Random vectors a sample.

    References:
        [1] Bai, Koltun, Kolter. Stabilizing equilibrium models by Jacobian regularization. ICML
        2021. arXiv 2106.14342.
    """

    base: Objective
    weight: Ramp
    frequency: Frequency = Sometimes()
    probes: int = 1

    def __post_init__(self) -> None:
        if min(self.weight.first, self.weight.last) < 0:
            raise ConfigError(f"`weight` must not be negative, got {self.weight}.")
        if self.probes < 1:
            raise ConfigError(f"`probes` must be at least 1, got {self.probes}.")

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        weight = self.weight(done)
        if not weight or not self.frequency.now(done):
            return self.base.loss(model, inputs, labels, done)
        with visited(model) as visits:
            loss, logits = self.base.loss(model, inputs, labels, done)
        return loss + weight * jacobian_penalty(visits, probes=self.probes), logits

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return self.base.watched(model, held_out)
