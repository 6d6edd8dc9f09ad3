"""The section `robust`: which certified loss is minimised."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

from pydantic import BeforeValidator, Field

from wellposed.errors import ConfigError
from wellposed.training.certified import (
    ConvexMixLoss,
    CrownIntervalLoss,
    IntervalLoss,
    Ramp,
    SmallBoxLoss,
)
from wellposed.training.gains import GainMarginLoss
from wellposed.training.margin import MarginLoss
from wellposed.training.objective import Objective
from wellposed.training.settings import Settings

_Part = Annotated[float, Field(ge=0, le=1)]


@final
class Plain(Settings):
    """Clean cross entropy.

    Args:
        kind: ``"none"``.
    """

    kind: Literal["none"] = "none"


class Bounded(Settings):
    """What all certified losses share.

    Args:
        eps: Radius in pixels of [0, 1] at the end of training.
        begin: Part of the run when the radius starts to grow from 0.
        end: Part of the run when it is reached; the weight of the bound grows with it.
        initialise: Whether the first weights are those that keep intervals from exploding.
    """

    eps: float = Field(default=0.1, ge=0)
    begin: _Part = 0.05
    end: _Part = 0.5
    initialise: bool = True

    def model_post_init(self, context: object, /) -> None:
        """Check the order of the two ends of the ramp."""
        if self.begin > self.end:
            raise ConfigError(
                f"`robust.begin` is {self.begin} and `robust.end` {self.end}; expected begin <= "
                "end: the radius grows from the one to the other."
            )

    def ramp(self, last: float) -> Ramp:
        """From 0 to `last` while the radius grows."""
        return Ramp(0.0, last, self.begin, self.end)


@final
class IntervalTerm(Bounded):
    """Interval loss.

    Args:
        kind: ``"interval"``.
        kappa: Final weight of the worst case over the box.
    """

    kind: Literal["interval"] = "interval"
    kappa: _Part = 0.75


@final
class CrownIntervalTerm(Bounded):
    """Interval loss with the linear bound mixed in, which fades out while the radius grows.

    Args:
        kind: ``"crown-interval"``.
        kappa: Final weight of the worst case.
        beta: First and last weight of the linear bound.
    """

    kind: Literal["crown-interval"] = "crown-interval"
    kappa: _Part = 0.75
    beta: tuple[_Part, _Part] = (1.0, 0.0)


@final
class SmallBoxTerm(Bounded):
    """Interval loss over small boxes around attacked points.

    Args:
        kind: ``"small-box"``.
        kappa: Final weight of the worst case over the small box.
        part: Its radius as a part of the whole.
        steps: Of the attack.
    """

    kind: Literal["small-box"] = "small-box"
    kappa: _Part = 1.0
    part: float = Field(default=0.4, gt=0, le=1)
    steps: int = Field(default=4, ge=1)


@final
class ConvexMixTerm(Bounded):
    """Mixture of the attacked and the interval loss.

    Args:
        kind: ``"convex-mix"``.
        alpha: Final weight of the interval loss.
        steps: Of the attack.
    """

    kind: Literal["convex-mix"] = "convex-mix"
    alpha: _Part = 0.5
    steps: int = Field(default=4, ge=1)


@final
class MarginTerm(Settings):
    """Cross entropy with a temperature and an offset, for networks of bounded Lipschitz constant.

    Args:
        kind: ``"margin"``.
        offset: Taken off the logit of the label.
        temperature: Unit of the logits.
    """

    kind: Literal["margin"] = "margin"
    offset: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)

    @property
    def initialise(self) -> bool:
        """No interval is propagated."""
        return False


@final
class GainMarginTerm(Settings):
    """Cross entropy of the logits at the worst point of a ball, bounded by gains of differences.

    Args:
        kind: ``"gain-margin"``.
        radius: In the 2-norm, in pixels of [0, 1], at the end of training.
        begin: Part of the run when the radius starts to grow from 0.
        end: Part of the run when it is reached.
    """

    kind: Literal["gain-margin"] = "gain-margin"
    radius: float = Field(default=0.3, ge=0)
    begin: _Part = 0.0
    end: _Part = 0.5

    def model_post_init(self, context: object, /) -> None:
        """Check the order of the two ends of the ramp."""
        if self.begin > self.end:
            raise ConfigError(
                f"`robust.begin` is {self.begin} and `robust.end` {self.end}; expected begin <= "
                "end: the radius grows from the one to the other."
            )

    @property
    def initialise(self) -> bool:
        """No interval is propagated."""
        return False


def _with_kind(section: Any) -> Any:
    """A section that names a radius and no kind is that of the interval loss."""
    if isinstance(section, dict):
        return {"kind": "interval" if section else "none", **section}
    return section


Robust = Annotated[
    Plain
    | IntervalTerm
    | CrownIntervalTerm
    | SmallBoxTerm
    | ConvexMixTerm
    | MarginTerm
    | GainMarginTerm,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


def make_objective(section: Robust) -> Objective | None:
    """The loss of a section; `None` for the clean cross entropy."""
    match section:
        case Plain():
            return None
        case IntervalTerm():
            return IntervalLoss(section.ramp(section.eps), section.ramp(section.kappa))
        case CrownIntervalTerm():
            eps, kappa = section.ramp(section.eps), section.ramp(section.kappa)
            return CrownIntervalLoss(eps, kappa, Ramp(*section.beta, section.begin, section.end))
        case SmallBoxTerm():
            eps, kappa = section.ramp(section.eps), section.ramp(section.kappa)
            return SmallBoxLoss(eps, kappa, section.part, section.steps)
        case ConvexMixTerm():
            eps, alpha = section.ramp(section.eps), section.ramp(section.alpha)
            return ConvexMixLoss(eps, alpha, section.steps)
        case MarginTerm():
            return MarginLoss(section.offset, section.temperature)
        case GainMarginTerm():
            return GainMarginLoss(Ramp(0.0, section.radius, section.begin, section.end))
