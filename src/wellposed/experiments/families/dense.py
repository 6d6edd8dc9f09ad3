"""Dense networks: one layer of each guarantee on the pixels as a vector, and a linear readout."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.base import Cell
from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.monotone import MonotoneCell
from wellposed.cells.nemon import NemonCell
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, flat, layer
from wellposed.training.settings import Settings


@final
class Nemon(Settings):
    """Equilibrium layer with a bounded logarithmic max norm, and a linear readout.

    Args:
        kind: ``"nemon"``.
        states: Neurons of the equilibrium layer.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["nemon"] = "nemon"
    states: int = Field(default=100, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class InfNorm(Settings):
    """Equilibrium layer with ``||A||_inf <= bound`` (implicit deep learning), linear readout.

    Args:
        kind: ``"infnorm"``.
        states: Neurons of the equilibrium layer.
        bound: Upper bound of the max norm; below 1.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["infnorm"] = "infnorm"
    states: int = Field(default=100, ge=1)
    bound: float = Field(default=0.95, gt=0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Monotone(Settings):
    """Equilibrium layer with a strongly monotone ``I - A`` (MON), linear readout.

    Args:
        kind: ``"monotone"``.
        states: Neurons of the equilibrium layer.
        margin: Modulus of strong monotonicity; positive.
        scaled: Whether the metric of monotonicity is free.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["monotone"] = "monotone"
    states: int = Field(default=87, ge=1)
    margin: float = Field(default=1.0, gt=0)
    scaled: bool = False
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Mlp(Settings):
    """Plain network: linear, activation, linear.

    Args:
        kind: ``"mlp"``.
        states: Hidden neurons.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["mlp"] = "mlp"
    states: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(
    section: Nemon | InfNorm | Monotone | Mlp, solve: Solve, shape: Shape, classes: int
) -> list[nn.Module]:
    """The layers after the scaling of the pixels."""
    front, inputs, n = flat(section.dropout), prod(shape), section.states
    # made before the cell: seeds of earlier releases give the same first weights
    readout = nn.Linear(n, classes)
    if isinstance(section, Mlp):
        return [*front, nn.Linear(inputs, n), nn.ReLU(), readout]
    return [*front, layer(_cell(section, inputs), solve), readout]


def _cell(section: Nemon | InfNorm | Monotone, inputs: int) -> Cell:
    n, phi = section.states, names.activation(section.activation)
    match section:
        case Nemon():
            return NemonCell(inputs, n, margin=section.margin, activation=phi)
        case InfNorm():
            return InfNormCell(inputs, n, bound=section.bound, activation=phi)
        case Monotone():
            margin, scaled = section.margin, section.scaled
            return MonotoneCell(inputs, n, margin=margin, scaled=scaled, activation=phi)
