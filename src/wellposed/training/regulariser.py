"""Regulariser: a term of the loss with a state of its own, before a weight that is steered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.training.controller import Control


class Term(nn.Module, ABC):
    """A differentiable scalar of a network; what it remembers between steps is in its buffers."""

    @abstractmethod
    def value(self, model: nn.Module) -> Tensor:
        """One step: move the state on, and return the value on the tape.

        Args:
            model: In training mode; its weights and mode are left as they were.
        """

    @abstractmethod
    def figures(self, model: nn.Module) -> dict[str, float]:
        """What to keep of an epoch, by name."""


def absolute_sum(model: nn.Module) -> Tensor:
    """``sum |w|`` over the trained weights with two axes or more: it makes them sparse [1].

    What a small change of an input can do in the max norm is a sum of absolute weights too; a
    Lipschitz bound is the largest of such sums and has no slope in the other rows, this one has.

    Args:
        model: Any network; biases and other vectors do not count.

    References:
        [1] Tibshirani. Regression shrinkage and selection via the lasso. 1996.
    """
    return _total(model, torch.abs)


def _total(model: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of a function of every weight that counts."""
    sums = [function(p).sum() for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    return torch.stack(sums).sum() if sums else torch.zeros(())


@final
class WeightNorm(Term):
    """``sum ||W||_F^2 / 2`` over the trained weights with two axes or more.

    A step of its gradient is that of weight decay; as a term a controller can steer it, which is
    the baseline that CLIP is compared with.
    """

    @override
    def value(self, model: nn.Module) -> Tensor:
        return _total(model, torch.square) / 2

    @override
    def figures(self, model: nn.Module) -> dict[str, float]:
        return {}


@final
class Regulariser(nn.Module):
    """``weight * term``, the weight constant or steered.

    The state of both is in buffers: a run that is resumed from ``state_dict()`` goes on bit by bit.

    Args:
        term: What is added to the loss; it is not evaluated while its weight is 0.
        control: Its weight over the epochs.
    """

    def __init__(self, term: Term, control: Control) -> None:
        super().__init__()
        self.term = term
        self.control = control

    def extra(self, model: nn.Module) -> Tensor | None:
        """The weighted term of one step, on the tape; `None` while its weight is 0."""
        weight = self.control.weight
        return weight * self.term.value(model) if weight else None

    def epoch_over(self, model: nn.Module, figures: Mapping[str, float]) -> dict[str, float]:
        """Steer the weight by the figures of an epoch; returns what to keep of the term.

        Raises:
            ConfigError: The controller looks at a figure that is not there.
        """
        kept = {"term_weight": self.control.weight, **self.term.figures(model)}
        self.control.epoch_over(figures)
        return kept
