"""Sections of terms of the loss with a state: pairs of inputs, weights, gains of logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from wellposed.core.sets import Box
from wellposed.errors import ConfigError
from wellposed.training.controller import (
    Additive,
    Constant,
    Control,
    Multiplicative,
    TargetController,
)
from wellposed.training.gains import LogitGain
from wellposed.training.pairs import PairQuotient, noisy_pairs
from wellposed.training.regulariser import Regulariser, Term, WeightNorm
from wellposed.training.settings import Settings


class Steered(Settings, ABC):
    """A term before a weight that a controller steers.

    Args:
        weight: Factor after the warm-up; 0 for no term.
        target: Value of the metric that the factor is steered to; 0 leaves the factor constant.
        metric: ``"train_accuracy"`` or another figure of an epoch.
        step: Added to the factor after an epoch above the target, and subtracted below it.
        growth: Multiplies the factor instead, if it is above 0.
        warm_up: Epochs without the term.
        every: Epochs between two updates of the factor.
    """

    weight: float = Field(default=0.01, ge=0)
    target: float = Field(default=0.0, ge=0)
    metric: str = "train_accuracy"
    step: float = Field(default=0.02, gt=0)
    growth: float = Field(default=0.0, ge=0)
    warm_up: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Check that a factor can grow."""
        if self.growth and self.growth <= 1:
            raise ConfigError(f"`penalty.growth` must be 0 or above 1, got {self.growth}.")
        if self.growth and not self.weight and self.target:
            raise ConfigError("`penalty.weight` is 0 and is to grow by a factor: it stays at 0.")

    def control(self) -> Control:
        """Constant, or steered to the target."""
        if not self.target:
            return Constant(self.weight, warm_up=self.warm_up)
        return TargetController(
            self.target,
            first=self.weight,
            move=Multiplicative(self.growth) if self.growth else Additive(self.step),
            metric=self.metric,
            warm_up=self.warm_up,
            every=self.every,
        )

    @abstractmethod
    def term(self, inputs: Tensor, seed: int) -> Term:
        """The term of one run; `inputs` are those of training."""


@final
class PairsTerm(Steered):
    """CLIP: the largest difference quotient of adversarial pairs.

    Args:
        kind: ``"pairs"``.
        pairs: How many, of training images and noisy copies; their labels are not looked at.
        active: Pairs that move in a step; 0 for all.
        noise: Amplitude of the noise of the copies.
        rate: First step size of a pair.
        squared: Whether the squared quotient is the term.
    """

    kind: Literal["pairs"] = "pairs"
    pairs: int = Field(default=256, ge=0)
    active: int = Field(default=0, ge=0)
    noise: float = Field(default=0.1, gt=0)
    rate: float = Field(default=1.0, gt=0)
    squared: bool = True

    @override
    def term(self, inputs: Tensor, seed: int) -> Term:
        first, second = noisy_pairs(inputs, self.pairs, noise=self.noise, seed=seed)
        pixels = Box(torch.zeros(inputs.shape[1:]), torch.ones(inputs.shape[1:]))
        return PairQuotient(
            first,
            second,
            rate=self.rate,
            active=self.active,
            squared=self.squared,
            region=pixels,
        )


@final
class WeightsTerm(Steered):
    """Half of the sum of the squared weights.

    Args:
        kind: ``"weights"``.
    """

    kind: Literal["weights"] = "weights"

    @override
    def term(self, inputs: Tensor, seed: int) -> Term:
        return WeightNorm()


@final
class GainTerm(Steered):
    """The largest squared gain of a difference of logits, an upper bound.

    Args:
        kind: ``"gain"``.
    """

    kind: Literal["gain"] = "gain"

    @override
    def term(self, inputs: Tensor, seed: int) -> Term:
        return LogitGain()


def make_regulariser(section: Settings, inputs: Tensor, seed: int) -> Regulariser | None:
    """The term with its weight; `None` for a section of another kind, or for a weight of 0.

    Args:
        section: Of the table `penalty`.
        inputs: Of training, pixels in [0, 1].
        seed: Of whatever the term draws.
    """
    if not isinstance(section, Steered) or not (section.weight or section.target):
        return None
    return Regulariser(section.term(inputs, seed), section.control())
