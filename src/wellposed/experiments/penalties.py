"""Terms of the loss that depend on the weights alone."""

from __future__ import annotations

from wellposed.experiments.sections import PenaltyTerm
from wellposed.training import Penalty


def make_penalty(section: PenaltyTerm, shape: tuple[int, ...]) -> Penalty | None:
    """The penalty of a section; `None` if its weight is 0.

    Args:
        section: Kind and weight.
        shape: Of one input of the network.
    """
    if not section.weight:
        return None
    from wellposed.certify import lipschitz_penalty

    return Penalty(lambda model: lipschitz_penalty(model, in_shape=shape), section.weight)
