"""The penalty `retention`: links as strong as those of a variant that was trained before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

from pydantic import Field
from torch import nn

from wellposed.errors import ConfigError
from wellposed.training.annealing import annealed
from wellposed.training.certified import Ramp
from wellposed.training.objective import CrossEntropy, Objective
from wellposed.training.retention import (
    FeatureStrength,
    RetentionLoss,
    Strength,
    WeightStrength,
)
from wellposed.training.settings import Settings

_Part = Annotated[float, Field(ge=0, le=1)]


@final
class RetentionTerm(Settings):
    """``weight * sum_k beta^(k - K) mean (sigma / sigma of the teacher - 1)^2`` over the links.

    Args:
        kind: ``"retention"``.
        weight: Factor at the end of the run; 0 for no penalty.
        first: Factor at its beginning; by default that of the end.
        begin: Part of the run when the factor starts to move.
        end: Part of the run when it is reached.
        teacher: Name of a variant of the same configuration; it is trained before this one.
        compare: ``"features"`` for retention matrices, ``"weights"`` for operator norms.
        per_sample: Whether each sample has a retention matrix of its own.
        steps: Of the power iteration.
        beta: How much more a later link weighs.
    """

    kind: Literal["retention"] = "retention"
    weight: float = Field(default=0.1, ge=0)
    first: float | None = Field(default=None, ge=0)
    begin: _Part = 0.0
    end: _Part = 0.0
    teacher: str = "teacher"
    compare: Literal["features", "weights"] = "features"
    per_sample: bool = True
    steps: int = Field(default=5, ge=1)
    beta: float = Field(default=2.0, gt=0)

    def model_post_init(self, context: object, /) -> None:
        """Check the order of the two ends of the schedule."""
        if self.begin > self.end:
            raise ConfigError(
                f"`penalty.begin` is {self.begin} and `penalty.end` {self.end}; expected begin <= "
                "end: the factor moves from the one to the other."
            )

    @property
    def ramp(self) -> Ramp:
        """The factor over the run."""
        first = self.weight if self.first is None else self.first
        return Ramp(first, self.weight, self.begin, self.end)

    @property
    def strength(self) -> Strength:
        """What is compared."""
        if self.compare == "weights":
            return WeightStrength()
        return FeatureStrength(self.steps, self.per_sample)


def teacher_of(penalty: object) -> str | None:
    """The variant that a penalty compares with; `None` if it compares with nothing."""
    if not isinstance(penalty, RetentionTerm) or not (penalty.weight or penalty.first):
        return None
    return penalty.teacher


def check_teachers(penalties: Mapping[str, Any]) -> None:
    """That every teacher is a variant that learns on its own.

    Args:
        penalties: Of each variant.

    Raises:
        ConfigError: A teacher is no variant, or has a teacher itself.
    """
    free = [name for name, penalty in penalties.items() if teacher_of(penalty) is None]
    for name, penalty in penalties.items():
        teacher = teacher_of(penalty)
        if teacher is not None and teacher not in free:
            known = ", ".join(f"`{other}`" for other in free) or "there is none"
            raise ConfigError(
                f"`penalty.teacher` of `{name}` is {teacher!r}, expected a variant that has no "
                f"teacher itself: {known}.",
                hint="add the network in full precision, as `[variants.teacher]`.",
            )


def retained(
    model: nn.Module,
    objective: Objective | None,
    penalty: object,
    teacher: nn.Module | None,
    label_smoothing: float = 0.0,
) -> Objective | None:
    """The loss with the retention term, if there is a teacher, and with annealing, if it is binary.

    Args:
        model: What will be trained.
        objective: The loss without them; `None` for the clean cross entropy.
        penalty: The section.
        teacher: Trained; `None` if the section asks for none.
        label_smoothing: Of the clean cross entropy.
    """
    if isinstance(penalty, RetentionTerm) and teacher is not None:
        base = objective or CrossEntropy(label_smoothing)
        objective = RetentionLoss(base, teacher, penalty.ramp, penalty.strength, penalty.beta)
    return annealed(model, objective, label_smoothing)
