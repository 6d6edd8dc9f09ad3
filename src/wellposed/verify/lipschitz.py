"""The cheap tier: bounds of margins from Lipschitz constants, without looking at neurons."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dual import Scope, dual_bound
from wellposed.certify.fallback import lipschitz_box
from wellposed.certify.pairwise import PairwiseL2
from wellposed.core.sets import Ball, Box, Region
from wellposed.core.spectra import UNIT
from wellposed.errors import NotCertifiableError
from wellposed.verify.classifier import Classifier


@torch.no_grad()
def margin_bounds(task: Classifier, labels: Tensor, region: Region) -> Tensor | None:
    """Lower bounds of ``y_label - y_j`` over regions, shape (B, classes - 1).

    Boxes: the rows over the Lipschitz box of the states. Balls: the margin at the centre less
    ``gain * radius`` with the pairwise gain of `PairwiseL2`. `None` for a network that is not
    dense.

    Args:
        task: The network.
        labels: Shape (B,).
        region: In the coordinates of the model's inputs.
    """
    if task.network is None:
        return None
    entered = task.enter(region)
    box = lipschitz_box(task.network, entered, task.wellposed)
    lower = _over(task, labels, Scope.of(task.system, entered, box))
    return lower if isinstance(region, Box) else torch.maximum(lower, _ball(task, labels, region))


def _over(task: Classifier, labels: Tensor, scope: Scope) -> Tensor:
    """The rows with the multiplier 0: interval arithmetic on the states."""
    rows, count = task.rows(labels), task.classes - 1
    index = torch.arange(len(labels)).repeat_interleave(count)
    zero = torch.zeros(len(index), task.system.n, dtype=torch.float64)
    return dual_bound(task.system, scope.select(index), rows, zero).reshape(-1, count)


def _ball(task: Classifier, labels: Tensor, region: Ball) -> Tensor:
    count = task.classes - 1
    nothing = torch.full((len(labels), count), -inf, dtype=torch.float64)
    if not bool((region.scale == 1).all()):
        return nothing
    pairs = _pair_gains(task)
    if pairs is None:
        return nothing
    scope = task.scope(task.enter(Box(region.centre, region.centre)))
    index = torch.arange(len(labels)).repeat_interleave(count)
    rows = task.rows(labels)
    gap = crown(task.system, scope.select(index), rows, (Lower.ADAPTIVE,))[0].reshape(-1, count)
    own = torch.nn.functional.one_hot(labels, task.classes).bool()
    gain = pairs[labels][~own].reshape(-1, count)
    moved = gain * region.radius[:, None] * (1 + 4 * UNIT)
    return gap - moved - 4 * UNIT * (gap.abs() + moved)


def _pair_gains(task: Classifier) -> Tensor | None:
    """Gains of all differences of logits per unit of the model's inputs; `None` without a proof."""
    network, scaling = task.network, None if task.lowered is None else task.lowered.scaling
    assert network is not None
    scale: Tensor | float = 1.0
    if scaling is not None:
        scale = scaling.std.detach().cpu().double().expand(task.in_shape).flatten()
    witness = task.wellposed
    multiplier = witness.weights if witness.kind == "monotone" else None
    try:
        return PairwiseL2.of(network, multiplier, scale=scale).pairs()
    except NotCertifiableError:
        return None
