"""Cross entropy that asks for a margin: for networks whose Lipschitz constant is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.errors import ConfigError
from wellposed.training.data import Examples
from wellposed.training.objective import Objective


@final
@dataclass(frozen=True)
class MarginLoss(Objective):
    """``temperature * CE( (y - offset e_label) / temperature )`` [1].

    A network with a bounded Lipschitz constant cannot raise its margins by growing, so that plain
    cross entropy never is content; the temperature says at which margins it starts to be, and the
    offset which margin counts as none. A margin above ``sqrt(2) L r`` certifies the radius ``r``.

    Args:
        offset: Taken off the logit of the label, not negative.
        temperature: Unit of the logits, positive.

    Raises:
        ConfigError: An argument is out of range.

    References:
        [1] Prach, Lampert. Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks. ECCV 2022, section 5.
    """

    offset: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < float("inf") or not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"`offset` must not be negative and `temperature` must be positive, got "
                f"{self.offset} and {self.temperature}."
            )

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        logits = model(inputs)
        own = F.one_hot(labels, logits.shape[1]).to(logits)
        value = F.cross_entropy((logits - self.offset * own) / self.temperature, labels)
        return self.temperature * value, logits

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return {}
