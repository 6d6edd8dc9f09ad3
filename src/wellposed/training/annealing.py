"""Stand-ins for derivatives that change over a run: the loss tells the layers where the run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from wellposed.nn.binary import BinaryLayer, anneal
from wellposed.training.data import Examples
from wellposed.training.objective import CrossEntropy, Objective


@final
@dataclass(frozen=True)
class Annealed(Objective):
    """Another loss, before which every binary layer is told how much of the run is over.

    Where the run is follows from the number of the step, so that nothing has to be saved.

    Args:
        base: The loss.
    """

    base: Objective

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        anneal(model, done)
        return self.base.loss(model, inputs, labels, done)

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return self.base.watched(model, held_out)


def annealed(
    model: nn.Module, objective: Objective | None, label_smoothing: float = 0.0
) -> Objective | None:
    """The loss with annealing if the network has binary layers, else as it was given.

    Args:
        model: What will be trained.
        objective: The loss; `None` for the clean cross entropy.
        label_smoothing: Of the clean cross entropy.
    """
    if not any(isinstance(module, BinaryLayer) for module in model.modules()):
        return objective
    return Annealed(objective or CrossEntropy(label_smoothing))
