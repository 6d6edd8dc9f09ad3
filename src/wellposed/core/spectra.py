"""Perron vectors and contraction factors of nonnegative operators, verified after the fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wellposed.core.operators import Operator
from wellposed.core.scalar import Activation
from wellposed.errors import NotCertifiableError

UNIT = torch.finfo(torch.float64).eps / 2
TINY = 1e-290  # covers products that underflow, even if denormal numbers are flushed to zero


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


def outward(value: Tensor, terms: int = 1) -> Tensor:
    """An upper bound of an exact sum of `terms` nonnegative products, given its computed value.

    The sum may have been taken in any order. The result is positive even where `value` is zero.
    """
    return value * (1 + 2 * rounding(terms + 6)) + terms * TINY


def resolved_gain(activation: Activation, a: Tensor | None) -> Tensor:
    """Largest absolute slope of ``s -> z = phi(a z + s)``, a neuron, rounded up; float64.

    A slope ``d`` of ``phi`` becomes ``d / (1 - d a)``, which increases with ``d`` as long as
    ``d a < 1``; the largest absolute value is therefore taken at an end of the slope interval.

    Raises:
        NotCertifiableError: Some ``d a`` is not safely below 1.
    """
    slopes = torch.tensor(activation.slopes, dtype=torch.float64)
    if a is None:
        return slopes.abs().amax()
    return slope_gain(slopes[0], slopes[1], a.detach().double())


def slope_gain(low: Tensor, high: Tensor, a: Tensor) -> Tensor:
    """Upper bound of ``|d / (1 - d a)|`` over ``low <= d <= high``, elementwise."""
    gains: list[Tensor] = []
    for d in (low.to(a.device), high.to(a.device)):
        room = 1 - d * a
        room = room - 4 * UNIT * (1 + (d * a).abs())
        if not bool((room > 0).all()):
            worst = float((d * a).max())
            raise NotCertifiableError(
                f"A neuron feeds back to itself with slope {worst:.6g}, expected below 1.",
                hint="bound the diagonal of A below 1 / (steepest slope of the activation).",
            )
        gains.append(d.abs() / room)
    return torch.maximum(*gains) * (1 + 8 * UNIT)


def weighted_factor(operator: Operator, eta: Tensor, gain: Tensor | float = 1.0) -> float:
    """Upper bound of ``|| [gain] M ||`` in the ``eta``-weighted max norm, rounding included."""
    size = operator.absolute().to(torch.float64)
    return float((outward(gain * size.apply(eta[None]), operator.terms + 1) / eta).amax()) * (
        1 + 4 * UNIT
    )


@torch.no_grad()
def perron(operator: Operator, gain: Tensor | float = 1.0, steps: int = 200) -> Contraction:
    """The best weights for ``|| [gain] M ||`` in a weighted max norm, and the factor they prove.

    Args:
        operator: ``M``, square.
        gain: Row factors, broadcastable against a state.
        steps: At most this many products.
    """
    size = operator.absolute().to(torch.float64).detach()

    def product(eta: Tensor) -> Tensor:
        return outward(gain * size.apply(eta), operator.terms + 1)

    start = torch.ones(1, *size.in_shape, dtype=torch.float64, device=size.weight.device)
    found = collatz(product, start, steps)
    return Contraction(found.eta[0], found.factor)


@torch.no_grad()
def collatz(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int = 200, rtol: float = 1e-6
) -> Contraction:
    """Weights that nearly minimise ``max_i (M eta)_i / eta_i`` for a nonnegative ``M``.

    The minimum over all weights is the spectral radius, attained at the Perron vector of an
    irreducible ``M`` (Collatz and Wielandt). Power iteration finds the vector; the factor is then
    *measured* with it, so that an inaccurate vector gives a larger factor, never a wrong one.

    Args:
        product: An upper bound of ``M eta``, for positive ``eta``.
        start: Positive first vector.
        steps: At most this many products.
        rtol: Stop when the factor is within this fraction of the best possible one.
    """
    eta = start
    image = product(eta)
    best = Contraction(eta, _ratio(image, eta))
    for _ in range(steps):
        top = float(image.amax())
        if not 0 < top < float("inf"):
            break
        # the shift keeps every weight positive and makes periodic matrices converge
        eta = image / top + 0.1 * eta + 1e-9
        eta = eta / eta.amax()
        image = product(eta)
        factor = _ratio(image, eta)
        if factor < best.factor:
            best = Contraction(eta, factor)
        if factor - float((image / eta).amin()) <= rtol * factor:
            break
    return best


def _ratio(image: Tensor, eta: Tensor) -> float:
    """``max_i image_i / eta_i``, rounded up; infinite where it is not a number."""
    return float((image / eta).nan_to_num(float("inf")).amax()) * (1 + 4 * UNIT)
