"""Gains of differences of logits from the bounds of layers, composed: the margin certificate."""

from __future__ import annotations

from math import inf, ldexp, prod, sqrt

import torch
from torch import Tensor, nn

from wellposed.certify.chain import two_norm
from wellposed.certify.eclipse import WIDEST, worthwhile
from wellposed.certify.ellipsoid import Weights
from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.majorant import Majorant
from wellposed.certify.multipliers import chain_proof
from wellposed.core.spectra import TINY, UNIT, outward, rounding
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
        body = _majorant(nn.Sequential(*layers[:-1]), in_shape)
        if body is not None:
            size = two_norm(body) * (1 + 4 * UNIT)
            gains = torch.minimum(gains, outward(apart, C.shape[1] + 8) * size)
            gains = torch.minimum(gains, pair_gains(body, C))
    gains = gains.nan_to_num(inf, inf)
    return gains.fill_diagonal_(0.0)


@torch.no_grad()
def pair_gains(body: Majorant, C: Tensor) -> Tensor:
    """Bounds of ``|(C_t - C_j) dz| / ||dx||_2`` behind a body, shape (q, q); perhaps infinite.

    If ``dz dz^T <= ||dx||^2 P``, then ``((C_t - C_j) dz)^2 <= (C_t - C_j) P (C_t - C_j)^T
    ||dx||^2``. The multipliers that make ``P`` are those for all differences together.

    Args:
        body: From inputs to what the last layer takes.
        C: Weights of the last layer, float64, shape (q, n).
    """
    q, n = C.shape
    gains = torch.full((q, q), inf, dtype=torch.float64)
    own = body.steps
    if own is None or n > WIDEST or prod(body.out_shape) != n:
        return gains
    steps = (*own, Weights(C - C.mean(0)))
    if not worthwhile(steps):
        return gains
    proof = chain_proof(prod(body.in_shape), steps)
    if not proof.ellipsoids:
        return gains
    P = proof.ellipsoids[len(own)].full
    exponent = proof.chain.exponents[len(own) - 1] if own else 0
    if abs(exponent) > 1000:
        return gains
    for t, row in enumerate(C):
        apart = C - row
        value = ((apart @ P) * apart).sum(1)
        size = ((apart.abs() @ P.abs()) * apart.abs()).sum(1)
        square = value + outward(rounding(2 * n + 16) * size, n)
        gains[t] = square.clamp(min=0).sqrt() * (ldexp(1.0, exponent) * (1 + 8 * UNIT)) + TINY
    return gains.nan_to_num(inf, inf)


def _majorant(model: nn.Sequential, in_shape: tuple[int, ...]) -> Majorant | None:
    try:
        return majorise(model, Site(in_shape))
    except NotCertifiableError:
        return None


def _bound(model: nn.Sequential, in_shape: tuple[int, ...]) -> float:
    found = _majorant(model, in_shape)
    return inf if found is None else two_norm(found)
