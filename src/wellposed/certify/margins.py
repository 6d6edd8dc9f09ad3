"""Margins of a classifier over boxes of inputs, the last linear layer folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.guard import check_genuine, refuse
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.errors import ShapeError


@torch.no_grad()
def box_margins(module: nn.Module, region: Box, labels: Tensor, batch: int = 1000) -> Tensor:
    """Lower bounds of ``logit_y(x) - logit_j(x)`` for every ``x`` in a box, rounding included.

    If the network is an `nn.Sequential` that ends in `nn.Linear` with weights ``C, c``, and
    ``[m - r, m + r]`` encloses what enters that layer,

    ``logit_y - logit_j >= (C_y - C_j) m + c_y - c_j - |C_y - C_j| r``,

    which is far tighter than the difference of two enclosed logits (that is what other networks
    get). Positive bounds for every ``j != y`` prove the class ``y`` on the whole box.

    Args:
        module: In evaluation mode, from inputs to logits; every part has an `enclose_rule`.
        region: A batch of boxes, shape (batch, *in_shape).
        labels: ``y``, int64 of shape (batch,).
        batch: Boxes that are handled at once.

    Returns:
        Shape (batch, classes), float64; infinity at ``j = y``.

    Raises:
        NotCertifiableError: Some module has no rule, or its hypothesis fails.
        ShapeError: `labels` do not fit the boxes, or are no classes of the network.
    """
    if labels.dtype != torch.int64 or labels.shape != region.shape[:1]:
        raise ShapeError(
            f"The labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 of "
            f"shape {region.shape[:1]}: one class for each box."
        )
    check_genuine(module, enclose_rule.registry, "")
    layers = list(module) if isinstance(module, nn.Sequential) else [module]
    last = layers[-1] if layers else None
    head = last if isinstance(last, nn.Linear) else None
    if head is not None:
        check_genuine(head, enclose_rule.registry, "")
        layers.pop()
    body = nn.Sequential(*layers)
    parts = [
        _margins(body, head, Box(low, high), y)
        for low, high, y in zip(
            region.lower.split(batch), region.upper.split(batch), labels.split(batch), strict=True
        )
    ]
    return torch.cat(parts)


def box_certified(module: nn.Module, region: Box, labels: Tensor, batch: int = 1000) -> Tensor:
    """Whether the class `labels` is proved on the whole box, by boxes alone; shape (batch,)."""
    return (box_margins(module, region, labels, batch) > 0).all(1)


def _margins(body: nn.Sequential, head: nn.Linear | None, region: Box, labels: Tensor) -> Tensor:
    inside = enclose(body, region)
    labels = labels.cpu()
    bounds = _apart(inside, labels) if head is None else _folded(head, inside, labels)
    return bounds.scatter(1, labels[:, None], torch.inf)


def _folded(head: nn.Linear, box: Box, labels: Tensor) -> Tensor:
    """Margins from the rows ``C_y - C_j``."""
    C = head.weight.detach().to("cpu", torch.float64)
    q, n = C.shape
    c = torch.zeros(q, dtype=torch.float64)
    if head.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        c = head.bias.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(C).all() & torch.isfinite(c).all()):
        raise refuse(head, "", "a weight is NaN or infinite", "training diverged here.")
    _check_labels(labels, q)
    rows = (C[:, None] - C[None]).flatten(0, 1)
    middle, radius = box.centre, box.radius
    # the radius carries the rounding of the rows and of their products with the middle
    gamma = 2 * rounding(n + 8)
    spread = outward(((radius + gamma * middle.abs()) @ rows.abs().mT) * (1 + 4 * UNIT), n)
    s, shift = middle @ rows.mT, (c[:, None] - c[None]).flatten()
    slack = 8 * UNIT * (s.abs() + shift.abs() + spread) + TINY
    bounds = (s + shift - spread - slack).reshape(-1, q, q)
    return bounds.gather(1, labels[:, None, None].expand(-1, 1, q))[:, 0]


def _apart(logits: Box, labels: Tensor) -> Tensor:
    """Margins from enclosed logits."""
    if len(logits.shape) != 2:
        raise ShapeError(f"The network returns {logits.shape}, expected (batch, classes).")
    _check_labels(labels, logits.shape[1])
    low = logits.lower.gather(1, labels[:, None])
    margin = low - logits.upper
    return margin - 4 * UNIT * margin.abs() - TINY


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ShapeError(
            f"The labels reach from {int(labels.min())} to {int(labels.max())}, expected classes "
            f"from 0 to {classes - 1}."
        )
