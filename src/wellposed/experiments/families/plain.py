"""Dense networks of any depth: free weights, or orthogonal ones with sorting between them."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal, final

from pydantic import AfterValidator, Field
from torch import nn

from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.families.layer import Shape, Solve, flat
from wellposed.nn.groupsort import GroupSort
from wellposed.nn.stiefel import stiefel
from wellposed.training.settings import Settings

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def _activation(name: str) -> str:
    names.known(name, _ACTIVATIONS, "activation")
    return name


Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


@final
class Perceptron(Settings):
    """Linear layers with an activation between them.

    Args:
        kind: ``"perceptron"``.
        widths: Neurons of the hidden layers, in order.
        activation: After each hidden layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["perceptron"] = "perceptron"
    widths: Widths = (64, 64)
    activation: Annotated[str, AfterValidator(_activation)] = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Orthogonal(Settings):
    """Linear layers with orthogonal weights and sorting in groups between them: 1-Lipschitz.

    Args:
        kind: ``"orthogonal"``.
        widths: Neurons of the hidden layers, in order; multiples of `group_size`.
        group_size: Channels that are sorted together; 2 for pairs.
    """

    kind: Literal["orthogonal"] = "orthogonal"
    widths: Widths = (256, 256, 256)
    group_size: int = Field(default=2, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Check that the groups fit."""
        if any(width % self.group_size for width in self.widths):
            raise ConfigError(
                f"`model.widths` {self.widths} must be multiples of `model.group_size`, which is "
                f"{self.group_size}."
            )


def build(section: Perceptron, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels; the solver section is not used."""
    layers, size = flat(section.dropout), prod(shape)
    for width in section.widths:
        layers += [nn.Linear(size, width), _ACTIVATIONS[section.activation]()]
        size = width
    return [*layers, nn.Linear(size, classes)]


def build_orthogonal(
    section: Orthogonal, solve: Solve, shape: Shape, classes: int
) -> list[nn.Module]:
    """The layers after the scaling of the pixels; the solver section is not used."""
    layers, size = flat(), prod(shape)
    for width in section.widths:
        layers += [stiefel(nn.Linear(size, width)), GroupSort(group_size=section.group_size)]
        size = width
    return [*layers, stiefel(nn.Linear(size, classes))]
