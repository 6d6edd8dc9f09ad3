"""The Lipschitz-bounded equilibrium network (LBEN) on the pixels as a vector."""

from __future__ import annotations

from math import prod
from typing import Literal, final

from pydantic import Field
from torch import nn

from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.families.layer import ActivationName, Shape, Solve, flat
from wellposed.nn.lben import LBEN
from wellposed.training.settings import Settings


@final
class Lben(Settings):
    """Equilibrium network with a bounded 2-norm Lipschitz constant; it owns its readout.

    Args:
        kind: ``"lben"``.
        states: Neurons of the equilibrium layer.
        gamma: Bound of the Lipschitz constant from scaled pixels to logits; 0 for none.
        margin: Of strong monotonicity; positive.
        skip: Whether the pixels also go straight to the logits.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["lben"] = "lben"
    states: int = Field(default=80, ge=1)
    gamma: float = Field(default=0.5, ge=0)
    margin: float = Field(default=0.1, gt=0)
    skip: bool = False
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def model_post_init(self, context: object, /) -> None:
        """Check that a path that needs the bound has it."""
        if self.skip and not self.gamma:
            raise ConfigError("`model.skip` needs a `model.gamma` above 0: the path is tied to it.")


def build(section: Lben, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels."""
    network = LBEN(
        prod(shape),
        section.states,
        classes,
        gamma=section.gamma or None,
        margin=section.margin,
        skip=section.skip,
        activation=names.activation(section.activation),
        **solve.options(),
    )
    return [*flat(section.dropout), network]
