"""What is asked of a network: inputs with labels, the radius around them, and how hard to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Literal, final

import torch
from torch import Tensor, nn

from wellposed.attacks.gradient import PGD
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import ConfigError, ShapeError
from wellposed.experiments.ledger import Effort
from wellposed.verify.branch import Budget
from wellposed.verify.classifier import Classifier
from wellposed.verify.verdicts import Tier

NormName = Literal["max", "2"]
TIERS = tuple(Tier)


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """A network and labelled inputs.

    Args:
        model: From inputs to outputs, in evaluation mode.
        x: Inputs, shape (N, ...).
        y: Labels, int64 of shape (N,).
        domain: Smallest and largest value that an input may have; `None` for any.

    Raises:
        ShapeError: An input lies outside of the domain or is not finite, or the shapes do not fit.
        ConfigError: A label is negative.
    """

    model: nn.Module | Network
    x: Tensor
    y: Tensor
    domain: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.x.is_floating_point() or self.y.shape != self.x.shape[:1]:
            raise ShapeError(
                f"Inputs must be floating-point with one label each, got {self.x.dtype} of shape "
                f"{tuple(self.x.shape)} with labels of shape {tuple(self.y.shape)}."
            )
        if self.y.dtype != torch.int64 or bool((self.y < 0).any()):
            raise ConfigError(
                "Labels must be classes 0, 1, ... in int64, got "
                f"{self.y.dtype} with a smallest value of {int(self.y.min())}."
            )
        if not bool(torch.isfinite(self.x).all()):
            raise ShapeError("An input has NaN or infinite components.")
        if self.domain is None or not len(self.x):
            return
        low, high = self.domain
        if not -inf < low < high < inf:
            raise ConfigError(f"`domain` is {low:g},{high:g}; expected two numbers, rising.")
        outside = ((self.x < low) | (self.x > high)).flatten(1).any(1).nonzero()[:, 0]
        if len(outside):
            worst = self.x[int(outside[0])]
            raise ShapeError(
                f"Input {int(outside[0])} has values from {float(worst.min()):.4g} to "
                f"{float(worst.max()):.4g}, outside of the domain [{low:g}, {high:g}].",
                hint="give the domain of the inputs as they are, before any normalisation.",
            )

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def classifier(self) -> Classifier:
        """The network prepared for verification, once.

        Raises:
            NotCertifiableError: A layer has no rule, or nothing shows that it is well posed.
        """
        return Classifier.of(self.model, tuple(self.x.shape[1:]))

    def part(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some inputs and their labels."""
        index = torch.tensor(list(places), dtype=torch.long)
        return self.x[index], self.y[index]


@final
@dataclass(frozen=True)
class Question:
    """Does the class of an input stay the same in the whole ball around it?

    Args:
        eps: Radius, in the unit of the inputs.
        norm: ``"max"`` or ``"2"``.
        last: The last method to try; the ones before it are tried first.
        seconds: Limit of the search over phases, an input.
        nodes: Limit of the search over phases, an input.
        steps: Gradient steps of the attack; 0 for no attack.
        restarts: Of the attack.

    Raises:
        ConfigError: A number is negative or not finite, or the norm has no verifier.
    """

    eps: float
    norm: NormName = "max"
    last: Tier = Tier.BRANCHING
    seconds: float = 10.0
    nodes: int = 100_000
    steps: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eps < inf:
            raise ConfigError(
                f"`eps` is {self.eps}, expected a finite number that is not negative."
            )
        if self.norm not in ("max", "2"):
            raise ConfigError(f'`norm` is {self.norm!r}, expected "max" or "2".')
        if not self.seconds >= 0 or self.nodes < 0 or self.steps < 0 or self.restarts < 1:
            raise ConfigError(
                f"The budget of {self.seconds} s, {self.nodes} nodes, {self.steps} steps and "
                f"{self.restarts} restarts has a negative number or no start."
            )

    @property
    def effort(self) -> Effort:
        """How hard this asks to try."""
        tried = self.steps * self.restarts
        if self.last is not Tier.BRANCHING:
            return Effort(self.last.rank, 0.0, 0, tried)
        return Effort(self.last.rank, self.seconds, self.nodes, tried)

    @property
    def budget(self) -> Budget:
        """Of the search."""
        return Budget(seconds=self.seconds, nodes=self.nodes)

    @property
    def quick(self) -> Question:
        """The same without the search over phases."""
        return replace(self, last=Tier.TIGHTENED) if self.last is Tier.BRANCHING else self

    @property
    def unattacked(self) -> Question:
        """The same without the attack."""
        return replace(self, steps=0)

    @property
    def attack(self) -> PGD | None:
        """The attack. It begins at the input: its result does not depend on how work is divided."""
        if not self.steps:
            return None
        return PGD(self.norm, self.eps, self.steps, restarts=self.restarts, random_start=False)

    def region(self, x: Tensor, domain: tuple[float, float] | None) -> Region:
        """The balls around inputs, intersected with the domain.

        Args:
            x: Shape (B, ...).
            domain: See `Subject`.
        """
        centre = x.detach().cpu().double()
        if self.norm == "2":
            return Ball(centre, self.eps) if domain is None else Ball(centre, self.eps, *domain)
        box = Box.around(centre, self.eps)
        return box if domain is None else box.clip(*domain)
