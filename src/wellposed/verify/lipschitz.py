"""The cheap tier: bounds of margins from Lipschitz constants, without looking at neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.certify.dual import Scope, dual_bound
from wellposed.certify.equilibria import logit_gaps
from wellposed.certify.fallback import lipschitz_box
from wellposed.core.sets import Ball, Region
from wellposed.core.spectra import UNIT
from wellposed.verify.classifier import Classifier


@torch.no_grad()
def margin_bounds(task: Classifier, labels: Tensor, region: Region) -> Tensor | None:
    """Lower bounds of ``y_label - y_j`` over regions, shape (B, classes - 1).

    Boxes: the rows over the Lipschitz box of the states. Balls: the margin at the centre less
    ``gain * radius`` with the pairwise gain of `pair_gains`, where there is one. `None` for a box
    of a network that is not dense, and for a ball if its layers prove no gain.

    Args:
        task: The network.
        labels: Shape (B,).
        region: In the coordinates of the model's inputs.
    """
    entered = task.enter(region)
    if isinstance(entered, Ball) and (task.network is not None or task.points is not None):
        gains = _pair_gains(task, entered)
        if gains is not None:
            return _ball(task, labels, entered, gains)
    return None if task.network is None else _over(task, labels, entered)


@torch.no_grad()
def point_margins(task: Classifier, labels: Tensor, x: Tensor) -> Tensor:
    """Upper bounds of ``y_label - y_j`` at single inputs of a network with `Classifier.points`.

    Shape (B, classes - 1); infinite where nothing is proved. What scaling an input rounds is paid
    for with the gains.

    Args:
        task: The network.
        labels: Shape (B,).
        x: In the coordinates of the model's inputs, shape (B, *in_shape), float64.
    """
    assert task.points is not None
    entered = task.enter(Ball(x, torch.zeros(len(x), dtype=torch.float64)))
    assert isinstance(entered, Ball)
    gains = _pair_gains(task, entered)
    own = torch.nn.functional.one_hot(labels, task.classes).bool()
    if gains is None:
        return torch.full((len(x), task.classes - 1), torch.inf, dtype=torch.float64)
    gap = task.points.gaps(entered.centre, labels).upper[~own].reshape(len(x), -1)
    moved = gains[labels][~own].reshape(gap.shape) * entered.radius[:, None] * (1 + 4 * UNIT)
    return gap + moved + 4 * UNIT * (gap.abs() + moved)


def _over(task: Classifier, labels: Tensor, region: Region) -> Tensor:
    """The rows with the multiplier 0 on the Lipschitz box: interval arithmetic on the states."""
    assert task.network is not None
    box = lipschitz_box(task.network, region, task.wellposed)
    scope = Scope.of(task.system, region, box)
    rows, count = task.rows(labels), task.classes - 1
    index = torch.arange(len(labels)).repeat_interleave(count)
    zero = torch.zeros(len(index), task.system.n, dtype=torch.float64)
    return dual_bound(task.system, scope.select(index), rows, zero).reshape(-1, count)


def _ball(task: Classifier, labels: Tensor, region: Ball, gains: Tensor) -> Tensor:
    """Margins at the centre less what they can lose on the way to the rim."""
    count = task.classes - 1
    if task.network is not None:
        gap = logit_gaps(task.network, region.centre, labels, task.wellposed).lower
    else:
        assert task.points is not None
        gap = task.points.gaps(region.centre, labels).lower
    own = torch.nn.functional.one_hot(labels, task.classes).bool()
    gap = gap[~own].reshape(-1, count)
    moved = gains[labels][~own].reshape(-1, count) * region.radius[:, None] * (1 + 4 * UNIT)
    return gap - moved - 4 * UNIT * (gap.abs() + moved)


def _pair_gains(task: Classifier, region: Ball) -> Tensor | None:
    """Gains of all differences of logits per unit of the radius; `None` without a proof."""
    scale = region.scale[:1].flatten()
    if not bool((region.scale.flatten(1) == scale).all()):
        return None
    # the divisor that makes the ellipsoid a ball is rounded by a unit, and so is every gain
    gains = task.pair_gains(1 / scale)
    return None if gains is None else gains * (1 + 8 * UNIT)
