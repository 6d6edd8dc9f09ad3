"""Positive concave networks (pcDEQ): nonnegative couplings of any size, linear readout."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.concave import PositiveConcaveCell
from wellposed.experiments import names
from wellposed.experiments.families.layer import Shape, Solve, flat, layer
from wellposed.training.settings import Settings


@final
class PositiveConcave(Settings):
    """Equilibrium layer of a positive concave mapping, linear readout.

    Args:
        kind: ``"pcdeq"``.
        states: Neurons of the equilibrium layer.
        activation: Increasing and concave on positive numbers.
        floor: Smallest injection; positive.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["pcdeq"] = "pcdeq"
    states: int = Field(default=100, ge=1)
    activation: Literal["tanh", "sigmoid"] = "tanh"
    floor: float = Field(default=0.1, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(section: PositiveConcave, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels."""
    phi = names.activation(section.activation)
    cell = PositiveConcaveCell(prod(shape), section.states, activation=phi, floor=section.floor)
    readout = nn.Linear(section.states, classes)
    return [*flat(section.dropout), layer(cell, solve), readout]
