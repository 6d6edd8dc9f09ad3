"""Weights of terms of the loss: constant, or steered until a metric sits at its target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ConfigError


class Move(ABC):
    """A frozen value: how far a weight moves in one update."""

    @abstractmethod
    def up(self, weight: float) -> float:
        """The next larger weight."""

    @abstractmethod
    def down(self, weight: float) -> float:
        """The next smaller weight; the controller cuts it off at 0."""


@final
@dataclass(frozen=True)
class Additive(Move):
    """``weight + size`` and ``weight - size``.

    Args:
        size: Positive.
    """

    size: float

    def __post_init__(self) -> None:
        if not 0 < self.size < inf:
            raise ConfigError(f"`size` must be positive and finite, got {self.size}.")

    @override
    def up(self, weight: float) -> float:
        return weight + self.size

    @override
    def down(self, weight: float) -> float:
        return weight - self.size


@final
@dataclass(frozen=True)
class Multiplicative(Move):
    """``weight * factor`` and ``weight / factor``: a weight of unknown size is found soon.

    Args:
        factor: Above 1.
    """

    factor: float = 1.3

    def __post_init__(self) -> None:
        if not 1 < self.factor < inf:
            raise ConfigError(f"`factor` must be above 1 and finite, got {self.factor}.")

    @override
    def up(self, weight: float) -> float:
        return weight * self.factor

    @override
    def down(self, weight: float) -> float:
        return weight / self.factor


class Control(nn.Module, ABC):
    """The weight of a term over the epochs of a run; its state is in buffers, saved with the run.

    Args:
        warm_up: Epochs at the beginning with weight 0.

    Raises:
        ConfigError: It is negative.
    """

    def __init__(self, warm_up: int) -> None:
        super().__init__()
        if warm_up < 0:
            raise ConfigError(f"`warm_up` must not be negative, got {warm_up}.")
        self.warm_up = warm_up
        self.epochs: Tensor
        self.register_buffer("epochs", torch.tensor(0))

    @property
    def weight(self) -> float:
        """The weight of the present epoch: 0 in the warm-up."""
        return 0.0 if int(self.epochs) < self.warm_up else self.present()

    def epoch_over(self, figures: Mapping[str, float]) -> None:
        """Take note of an epoch that is over.

        Args:
            figures: Metrics by name.
        """
        self.epochs += 1
        if int(self.epochs) > self.warm_up:
            self.update(figures)

    @abstractmethod
    def present(self) -> float:
        """The weight after the warm-up."""

    @abstractmethod
    def update(self, figures: Mapping[str, float]) -> None:
        """Move the weight after an epoch that had it."""


@final
class Constant(Control):
    """A weight that nobody steers.

    Args:
        value: Finite, not negative.
        warm_up: Epochs at the beginning with weight 0.
    """

    def __init__(self, value: float, *, warm_up: int = 0) -> None:
        super().__init__(warm_up)
        if not 0 <= value < inf:
            raise ConfigError(f"`value` must be finite and not negative, got {value}.")
        self.value = value

    @override
    def present(self) -> float:
        return self.value

    @override
    def update(self, figures: Mapping[str, float]) -> None:
        return None


@final
class TargetController(Control):
    """Raises a weight while a metric is above its target and lowers it while it is not [1].

    ``weight <- up(weight) if metric > target else max(down(weight), 0)`` after an epoch. The data
    are then fitted as well as was asked for, and what is left of freedom goes to the term that the
    weight stands before. A metric that is no number moves nothing.

    Args:
        target: Value that the metric is steered to.
        first: Weight after the warm-up.
        move: How the weight moves; `Multiplicative` needs a positive `first`.
        metric: Key of the figures of an epoch, such as ``"train_accuracy"`` (of the paper) or
            ``"validation_accuracy"``. Never one of the test part.
        warm_up: Epochs at the beginning with weight 0.
        every: Epochs between two updates.
        largest: The weight stays at most this.

    Raises:
        ConfigError: An argument is out of range, or (after an epoch) the metric is not known.

    References:
        [1] Bungert, Raab, Roith, Schwinn, Tenbrinck. CLIP: cheap Lipschitz training of neural
        networks. SSVM 2021, arXiv 2103.12531, algorithm 2.
    """

    def __init__(
        self,
        target: float,
        *,
        first: float,
        move: Move,
        metric: str = "train_accuracy",
        warm_up: int = 0,
        every: int = 1,
        largest: float = inf,
    ) -> None:
        super().__init__(warm_up)
        if not isfinite(target):
            raise ConfigError(f"`target` must be finite, got {target}.")
        if not 0 <= first <= largest or not isfinite(first):
            raise ConfigError(
                f"`first` must be finite and in [0, `largest`], got {first} and {largest}."
            )
        if isinstance(move, Multiplicative) and first == 0:
            raise ConfigError(
                "`first` is 0 and the move is multiplicative: the weight would stay at 0.",
                hint="start at a small positive weight, or move by `Additive`.",
            )
        if every < 1:
            raise ConfigError(f"`every` must be at least 1, got {every}.")
        self.target, self.first, self.move, self.metric = target, first, move, metric
        self.every, self.largest = every, largest
        self.steered: Tensor
        self.register_buffer("steered", torch.tensor(first, dtype=torch.float64))

    @override
    def present(self) -> float:
        return float(self.steered)

    @override
    def update(self, figures: Mapping[str, float]) -> None:
        if (int(self.epochs) - self.warm_up) % self.every:
            return
        if self.metric not in figures:
            raise ConfigError(
                f"The epoch has no figure `{self.metric}`, expected one of "
                f"{', '.join(f'`{name}`' for name in figures)}.",
                hint="`validation_accuracy` needs held-out images: set `data.validation`.",
            )
        value, old = figures[self.metric], float(self.steered)
        if isfinite(value):
            new = self.move.up(old) if value > self.target else max(self.move.down(old), 0.0)
            self.steered.fill_(min(new, self.largest))
