"""What all gradient attacks share: the worst believable point, and a look at more of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellposed.attacks.exact import Solves, believable, margins
from wellposed.errors import ShapeError

Loss = Literal["margin", "ce"]


@final
@dataclass(frozen=True, eq=False)
class AttackResult:
    """The worst point found for each sample. The clean image counts as a point.

    Args:
        inputs: Where the smallest margin was found, shape of the images.
        margin: That margin ``logit_y - max_{j != y} logit_j``, shape (batch,); NaN where not even
            the clean image could be evaluated.
        success: Whether the network errs there: ``margin <= 0``, bool of shape (batch,). Only
            points whose solves converged count.
        unsolved: Samples for which some point was thrown away because a solve did not converge or
            a logit was no number; bool of shape (batch,).
    """

    inputs: Tensor
    margin: Tensor
    success: Tensor
    unsolved: Tensor

    @property
    def correct(self) -> Tensor:
        """Samples that survived: believed and with a positive margin."""
        return self.margin > 0

    @property
    def accuracy(self) -> float:
        """Share of samples that survived; those without any answer count as wrong."""
        return float(self.correct.double().mean())


@final
class Search:
    """The worst believable point seen for each sample."""

    def __init__(self, model: nn.Module, solves: Solves, x: Tensor, y: Tensor) -> None:
        self.model, self.solves, self.y = model, solves, y
        self.inputs = x.detach().clone()
        self.margin = torch.full((len(x),), nan, dtype=x.dtype, device=x.device)
        self.unsolved = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def alive(self) -> Tensor:
        """Samples that have an answer and are not broken yet."""
        return (self.margin > 0).nonzero()[:, 0]

    def look(self, rows: Tensor, point: Tensor, loss: Loss | None = None) -> Tensor:
        """Evaluate samples `rows` at `point`; with a loss, return its gradient."""
        if not len(rows):
            return torch.zeros_like(point)
        y = self.y[rows]
        self.solves.clear()
        with torch.set_grad_enabled(loss is not None):
            point = point.detach().requires_grad_(loss is not None)
            logits = self.model(point)
            believed = believable(logits.detach(), self.solves)
            margin = margins(logits.detach(), y)
            gradient = torch.zeros_like(point)
            if loss is not None:
                (gradient,) = torch.autograd.grad(objective(logits, y, loss), point)
        point = point.detach()
        # a first look finds NaN there, below which everything counts
        better = believed & ~(margin >= self.margin[rows])
        self.margin[rows[better]] = margin[better].to(self.margin)
        self.inputs[rows[better]] = point[better]
        self.unsolved[rows[~believed]] = True
        return torch.where(
            believed.reshape(-1, *[1] * (point.ndim - 1)), gradient.nan_to_num(), 0.0
        )

    def result(self) -> AttackResult:
        """What was found."""
        return AttackResult(self.inputs, self.margin, self.margin <= 0, self.unsolved)


def objective(logits: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """What the attacker maximises, summed: samples do not interact, so gradients are per sample."""
    if loss == "margin":
        return -margins(logits, y).sum()
    # in float32 the softmax of a confident network saturates and its gradient is exactly zero
    return F.cross_entropy(logits.double(), y, reduction="sum")


def check_images(x: Tensor, y: Tensor) -> None:
    """Check what every attack is given.

    Raises:
        ShapeError: The images leave [0, 1] or do not match the labels.
    """
    if not x.is_floating_point() or x.ndim < 2:
        raise ShapeError(
            f"`x` must be floating-point images (batch, ...), got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ShapeError(
            f"`y` must be int64 of shape ({len(x)},), one label an image, got {y.dtype} of shape "
            f"{tuple(y.shape)}."
        )
    if len(x) and not (float(x.amin()) >= 0 and float(x.amax()) <= 1):
        raise ShapeError(
            f"Images must be in [0, 1], got values from {float(x.amin()):.3g} to "
            f"{float(x.amax()):.3g}.",
            hint="make the normalisation the first layer of the network and attack raw pixels.",
        )
