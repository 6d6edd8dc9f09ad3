"""The section `penalty`: terms of the loss of weights, equilibria or pairs of inputs."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Annotated, Any, Literal, final

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from wellposed.errors import ConfigError
from wellposed.experiments.regularisers import GainTerm, PairsTerm, WeightsTerm
from wellposed.experiments.retention import RetentionTerm
from wellposed.training import Objective, Penalty, Recipe
from wellposed.training.certified import Ramp
from wellposed.training.jacobian import Every, JacobianLoss, Sometimes
from wellposed.training.objective import CrossEntropy
from wellposed.training.regulariser import absolute_sum
from wellposed.training.settings import Settings

_Part = Annotated[float, Field(ge=0, le=1)]


@final
class PenaltyTerm(Settings):
    """``weight * L + sparsity * sum |w|``: a term of the loss that depends on the weights alone.

    Args:
        kind: ``"lipschitz"`` for the tight certified bound in the max norm.
        weight: Factor of the bound; 0 for none.
        sparsity: Factor of the sum of the absolute weights; 0 for none.
    """

    kind: Literal["lipschitz"] = "lipschitz"
    weight: float = Field(default=0.0, ge=0)
    sparsity: float = Field(default=0.0, ge=0)


@final
class JacobianTerm(Settings):
    """``weight * mean ||J||_F^2 / n`` at the equilibria of the equilibrium layers.

    Args:
        kind: ``"jacobian"``.
        weight: Factor at the end of the run; 0 for no penalty.
        first: Factor at its beginning.
        begin: Part of the run when the factor starts to move.
        end: Part of the run when it is reached.
        probability: Part of the steps that take the term, at random; 1 for all.
        every: Take it at every so many steps instead; 0 leaves it to `probability`.
        probes: Random vectors a sample.
    """

    kind: Literal["jacobian"] = "jacobian"
    weight: float = Field(default=1.0, ge=0)
    first: float = Field(default=0.0, ge=0)
    begin: _Part = 0.0
    end: _Part = 0.0
    probability: float = Field(default=1.0, gt=0, le=1)
    every: int = Field(default=0, ge=0)
    probes: int = Field(default=1, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Check the order of the two ends of the schedule, and that one frequency is named."""
        if self.begin > self.end:
            raise ConfigError(
                f"`penalty.begin` is {self.begin} and `penalty.end` {self.end}; expected begin <= "
                "end: the factor moves from the one to the other."
            )
        if self.every and self.probability < 1:
            raise ConfigError(
                f"`penalty.every` is {self.every} and `penalty.probability` {self.probability}; "
                "only one of them can say how often the term is taken."
            )


def _with_kind(section: Any) -> Any:
    """A section that names no kind is that of the Lipschitz bound."""
    if isinstance(section, dict):
        return {"kind": "lipschitz", **section}
    return section


PenaltySection = Annotated[
    PenaltyTerm | JacobianTerm | PairsTerm | WeightsTerm | GainTerm | RetentionTerm,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


def make_penalty(section: PenaltySection, shape: tuple[int, ...]) -> Penalty | None:
    """The penalty of the weights alone; `None` if there is none.

    Args:
        section: Kind and factors.
        shape: Of one input of the network.
    """
    if not isinstance(section, PenaltyTerm) or not (section.weight or section.sparsity):
        return None
    from wellposed.certify import lipschitz_penalty

    known: list[tuple[float, Callable[[nn.Module], Tensor]]] = [
        (section.weight, lambda model: lipschitz_penalty(model, in_shape=shape)),
        (section.sparsity, absolute_sum),
    ]
    terms = [(factor, term) for factor, term in known if factor]
    return Penalty(lambda model: torch.stack([f * t(model) for f, t in terms]).sum(), 1.0)


def penalised(
    objective: Objective | None, section: PenaltySection, recipe: Recipe, examples: int
) -> Objective | None:
    """The loss with the penalty of its equilibria, if the section asks for one.

    Args:
        objective: The loss without it; `None` for the clean cross entropy.
        section: Kind, weight, schedule and frequency.
        recipe: Of the run.
        examples: How many there are to learn from.
    """
    if not isinstance(section, JacobianTerm) or not (section.weight or section.first):
        return objective
    steps = recipe.epochs * ceil(examples / recipe.batch)
    return JacobianLoss(
        objective or CrossEntropy(recipe.label_smoothing),
        Ramp(section.first, section.weight, section.begin, section.end),
        Every(section.every, steps) if section.every else Sometimes(section.probability),
        section.probes,
    )
