"""Perron vectors and contraction factors of nonnegative operators, verified after the fact."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from wellposed.core.operators import Operator
from wellposed.errors import NotCertifiableError


@dataclass(frozen=True, eq=False)
class Contraction:
    """``|M| eta <= factor * eta`` with ``eta > 0``, checked in float64 with rounding slack.

    Args:
        eta: Positive weights, of the shape of a state, float64.
        factor: An upper bound of the operator norm of ``M`` in the ``eta``-weighted max norm.
    """

    eta: Tensor
    factor: float


def rounding(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """``gamma_k = k u / (1 - k u)``: relative error of a sum of `terms` products [1].

    References:
        [1] Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
    """
    unit = (terms + 2) * torch.finfo(dtype).eps / 2
    if unit >= 1:
        raise NotCertifiableError(f"A sum of {terms} terms in {dtype} has no rounding bound.")
    return unit / (1 - unit)


def weighted_factor(operator: Operator, eta: Tensor, gain: Tensor | float = 1.0) -> float:
    """Upper bound of ``|| [gain] M ||`` in the ``eta``-weighted max norm, rounding included."""
    image = gain * operator.absolute().to(torch.float64).apply(eta[None])[0]
    return float((image / eta).amax()) * (1 + 2 * rounding(operator.terms + 4))


@torch.no_grad()
def perron(operator: Operator, gain: Tensor | float = 1.0, steps: int = 200) -> Contraction:
    """The best weights for ``|| [gain] M ||`` in a weighted max norm, and the factor they prove.

    The minimum over all weights is the spectral radius of ``[gain] |M|``, attained at its Perron
    vector. Power iteration finds the vector; the factor is then *measured* with it, so that an
    inaccurate vector gives a larger factor, never a wrong one.

    Args:
        operator: ``M``, square.
        gain: Row factors, broadcastable against a state.
        steps: At most this many products.
    """
    size = operator.absolute().to(torch.float64).detach()
    eta = torch.ones(1, *size.in_shape, dtype=torch.float64, device=size.weight.device)
    best = Contraction(eta[0], weighted_factor(size, eta[0], gain))
    for _ in range(steps):
        image = gain * size.apply(eta)
        top = float(image.amax())
        if not top > 0 or top == float("inf"):
            break
        # the shift keeps every weight positive and makes periodic matrices converge
        eta = image / top + 0.1 * eta + 1e-9
        eta = eta / eta.amax()
        ratio = gain * size.apply(eta) / eta
        factor = float(ratio.amax())
        if factor < best.factor:
            best = Contraction(eta[0], factor)
        if factor - float(ratio.amin()) <= 1e-6 * factor:
            break
    return Contraction(best.eta, weighted_factor(size, best.eta, gain))


def state_size(operator: Operator) -> int:
    """Number of components of an argument."""
    return prod(operator.in_shape)
