"""Gains of differences of logits from the bounds of layers, composed: the margin certificate."""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor, nn

from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.majorant import two_norm
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import NotCertifiableError


@torch.no_grad()
def composed_gains(model: nn.Module, in_shape: tuple[int, ...], classes: int) -> Tensor:
    """Proved bounds of ``|d(y_t - y_j)| / ||dx||_2`` from `lipschitz`, shape (q, q).

    With ``||dy|| <= L ||dx||`` a difference of two logits moves by at most ``sqrt(2) L ||dx||``;
    where the last layer is linear, by at most ``||C_t - C_j|| L ||dx||`` with the ``L`` of what
    comes before it. Infinite where no rule proves a bound.

    Args:
        model: From inputs to logits, in evaluation mode.
        in_shape: Of one input, without the batch.
        classes: Logits.
    """
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    whole = sqrt(2) * _bound(nn.Sequential(*layers), in_shape) * (1 + 4 * UNIT)
    gains = torch.full((classes, classes), whole, dtype=torch.float64)
    last = layers[-1] if layers else None
    if isinstance(last, nn.Linear):
        C = last.weight.detach().cpu().double()
        # the difference is rounded by a unit of itself
        apart = (C[:, None] - C).square().sum(2).sqrt()
        body = _bound(nn.Sequential(*layers[:-1]), in_shape)
        gains = torch.minimum(gains, outward(apart, C.shape[1] + 8) * body * (1 + 4 * UNIT))
    gains = gains.nan_to_num(inf, inf)
    return gains.fill_diagonal_(0.0)


def _bound(model: nn.Sequential, in_shape: tuple[int, ...]) -> float:
    try:
        return two_norm(majorise(model, Site(in_shape)))
    except NotCertifiableError:
        return inf
