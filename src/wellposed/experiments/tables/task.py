"""A table made ready for training: targets, losses, scores, and outputs in the target's units."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellposed.data.tabular import TabularSet


@final
class Task:
    """A table made ready: targets are standardised if they are numbers.

    Args:
        table: Whose training part is learned, and whose test part is scored.
    """

    def __init__(self, table: TabularSet) -> None:
        self.regression = table.task == "regression"
        self.signs = table.signs
        self.x, self.x_test = table.train.x, table.test.x
        y, self.y_test = table.train.y.float(), table.test.y.float()
        self.mean, self.std = (float(y.mean()), float(y.std())) if self.regression else (0.0, 1.0)
        self.y = (y - self.mean) / self.std
        self.loss = squared if self.regression else logistic

    def losses(self, said: Tensor, y: Tensor) -> Tensor:
        """Loss of each row; of a number in its own units."""
        if self.regression:
            return (self.std * (said - y)).square()
        return F.binary_cross_entropy_with_logits(said, y.expand_as(said), reduction="none")

    def marks(self, said: Tensor, y: Tensor) -> Tensor:
        """Squared error of each row in its own units, or whether it is on the right side of 0."""
        if self.regression:
            return (self.std * (said - y)).square()
        return ((said > 0) == (y > 0.5)).float()

    def score(self, said: Tensor, threshold: float = 0.0) -> float:
        """Mean squared error or accuracy on the test part."""
        if self.regression:
            return float((self.std * said + self.mean - self.y_test).square().mean())
        return accuracy(said, self.y_test, threshold)

    def error(self, said: Tensor) -> float:
        """Standard error of the score as an estimate from so many test rows."""
        marks = self.marks(said, (self.y_test - self.mean) / self.std)
        return float(marks.std()) / len(marks) ** 0.5

    def scores(self, said: Tensor) -> dict[str, float]:
        """What is published of outputs on the test part, by name."""
        if self.regression:
            mse = self.score(said)
            return {"test_mse": mse, "test_mse_standard_error": self.error(said),
                    "test_rmse": mse**0.5}  # fmt: skip
        out = {"test_accuracy": self.score(said), "test_accuracy_standard_error": self.error(said),
               "test_log_loss": float(logistic(said, self.y_test))}  # fmt: skip
        if 0 < float(self.y_test.mean()) < 1:
            out["test_auc"] = area(said, self.y_test)
        return out

    @torch.no_grad()
    def in_units(self, network: nn.Sequential) -> nn.Sequential:
        """The network with its output in the units of the target; a logit stays one."""
        if not self.regression:
            return network
        back = nn.Linear(1, 1)
        back.weight.fill_(self.std)
        back.bias.fill_(self.mean)
        for p in back.parameters():
            p.requires_grad_(False)
        return nn.Sequential(*network, back)


def logistic(said: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits."""
    return F.binary_cross_entropy_with_logits(said, y)


def squared(said: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(said, y)


def accuracy(said: Tensor, y: Tensor, threshold: float = 0.0) -> float:
    """Share of rows on the right side of the threshold."""
    return float(((said > threshold) == (y > 0.5)).double().mean())


def area(said: Tensor, y: Tensor) -> float:
    """Area under the receiver operating characteristic, ties counted half."""
    _, place, count = said.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2)[place].double()
    ones = y > 0.5
    positive, negative = int(ones.sum()), int((~ones).sum())
    return float((rank[ones].sum() - positive * (positive + 1) / 2) / (positive * negative))
