"""Subhomogeneous networks (SubDEQ): couplings of any size and sign, linear readout."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.cells.subhomogeneous import SubhomogeneousCell
from wellposed.experiments.families.layer import Shape, Solve, flat, layer
from wellposed.training.settings import Settings


@final
class Subhomogeneous(Settings):
    """Equilibrium layer of a subhomogeneous map, linear readout of its logarithm.

    Args:
        kind: ``"subdeq"``.
        states: Neurons of the equilibrium layer.
        degree: Factor of contraction, in (0, 1).
        floor: Smallest injection; positive.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["subdeq"] = "subdeq"
    states: int = Field(default=100, ge=1)
    degree: float = Field(default=0.9, gt=0, lt=1)
    floor: float = Field(default=0.01, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


def build(section: Subhomogeneous, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels."""
    cell = SubhomogeneousCell(
        prod(shape), section.states, degree=section.degree, floor=section.floor
    )
    readout = nn.Linear(section.states, classes)
    return [*flat(section.dropout), layer(cell, solve), readout]
