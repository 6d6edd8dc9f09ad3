"""Well-posedness of a network: a witness that the equilibrium exists and is unique, verified."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import inf
from typing import Any, Literal, final

import torch
from torch import Tensor

from wellposed.certify.definite import least_eigenvalue, reach, symmetric
from wellposed.certify.guard import refuse
from wellposed.certify.scaling import monotone_weights, perron_weights
from wellposed.core.network import Network
from wellposed.core.scalar import Activation
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import NotCertifiableError, ShapeError

Kind = Literal["max-norm", "monotone"]


@final
@dataclass(frozen=True, eq=False)
class Wellposed:
    """``I - W`` has one-sided Lipschitz constant at least `margin` in a weighted norm.

    ``"max-norm"``: ``(1 - W_ii) eta_i - sum_{j != i} |W_ij| eta_j >= margin eta_i`` for every i.
    ``"monotone"``: ``Lam (I - W) + (I - W)^T Lam >= 2 margin Lam``. Either one makes the
    equilibrium unique for every input and every activation with slopes in [0, 1], and continuous
    in the input.

    Args:
        kind: Which.
        weights: ``eta`` or the diagonal of ``Lam``, positive, shape (n,), float64.
        margin: Positive; proved with rounding.
    """

    kind: Kind
    weights: Tensor
    margin: float


@singledispatch
@torch.no_grad()
def wellposedness(network: Any) -> Wellposed:
    """A verified witness: the max norm first, then the 2-norm unweighted, then with weights.

    Weights of the max norm come from the Perron theory of the canonical matrix; they exist if any
    do, and always for a strictly block-triangular ``W``. Those of the 2-norm are searched
    (`monotone_weights`), which may miss some.

    Args:
        network: A `Network`; or explicit weights (`Affine`), an affine cell or an `Equilibrium`.
            The matrix of a convolution is not formed: there the unweighted 2-norm comes first.

    Raises:
        NotCertifiableError: No witness was found (the numbers that were measured are named), or the
            activation has slopes outside [0, 1].
    """
    if not isinstance(network, Network):
        raise refuse(network, "", "it holds no weights of an equilibrium")
    check_slopes(network.activation)
    eta, radius = perron_weights(network.W)
    if eta is not None:
        margin = max_norm_margin(network.W, eta)
        if margin > 0:
            return Wellposed("max-norm", eta, margin)
    try:
        return monotone_witness(network)
    except NotCertifiableError as error:
        raise NotCertifiableError(
            "The network is not shown to be well posed: the spectral radius of its canonical "
            f"absolute matrix is {radius:.4g}, expected below 1. {error.message}",
            hint=error.hint,
        ) from error


@torch.no_grad()
def monotone_witness(network: Network) -> Wellposed:
    """A verified witness in a weighted 2-norm, whether or not the max norm has one.

    Raises:
        NotCertifiableError: No witness was found, or the activation has slopes outside [0, 1].
    """
    check_slopes(network.activation)
    best = -inf
    for lam in monotone_weights(network.W, network.metric):
        margin = monotone_margin(network.W, lam)
        if margin > 0:
            return Wellposed("monotone", lam, margin)
        best = max(best, margin)
    raise NotCertifiableError(
        "The best margin of monotonicity in the 2-norm over the weights tried is "
        f"{best:.4g}, expected above 0.",
        hint="train a cell that is well posed by construction (`NemonCell`, `MonotoneCell`).",
    )


def max_norm_margin(W: Tensor, eta: Tensor) -> float:
    """A proved lower bound of ``min_i ( (1 - W_ii) - sum_{j != i} |W_ij| eta_j / eta_i )``.

    Raises:
        ShapeError: The weights are not one positive number a neuron.
    """
    _check(W, eta)
    own = torch.diagonal(W)
    # the sum over all columns less the diagonal would cancel
    off = W.abs().fill_diagonal_(0.0)
    flow = outward(off @ eta, len(eta)) / eta * (1 + 2 * UNIT)
    room = (1 - own) - 2 * UNIT * (1 + own.abs())
    # only the last difference is left to round
    return float(((room - flow) - 2 * UNIT * (room.abs() + flow)).nan_to_num(-inf).amin())


def monotone_margin(W: Tensor, lam: Tensor) -> float:
    """A proved lower bound of the ``m`` with ``Lam (I - W) + (I - W)^T Lam >= 2 m Lam``.

    The matrix is scaled to ``K (...) K`` with ``K`` about ``Lam^-1/2``, where the eigenvalue is
    bounded (`least_eigenvalue`); a negative result bounds nothing but tells how much is missing.

    Raises:
        ShapeError: The weights are not one positive number a neuron.
    """
    _check(W, lam)
    own = torch.eye(len(lam), dtype=W.dtype)
    k = lam.rsqrt()
    scale = (k * lam)[:, None] * k
    S = symmetric(scale * (own - W))
    # relative errors: two products in the scale, the difference, the product, the sum
    size = symmetric(scale * (own + W.abs()))
    least = float(least_eigenvalue(S, reach(outward(16 * UNIT * size))))
    # k lam k is 1 within a few units, on either side
    return least / 2 * (1 - 16 * UNIT if least > 0 else 1 + 16 * UNIT)


def check_slopes(activation: Activation) -> None:
    """An activation of which both witnesses say something.

    Raises:
        NotCertifiableError: It has slopes outside [0, 1].
    """
    low, high = activation.slopes
    if low < 0 or high > 1:
        raise NotCertifiableError(
            f"{activation.name} has slopes in [{low:.4g}, {high:.4g}], expected within "
            "[0, 1]: neither witness says anything about it.",
            hint="use ReLU or leaky ReLU.",
        )


def _check(W: Tensor, weights: Tensor) -> None:
    if weights.shape != W.shape[:1] or not bool(((weights > 0) & torch.isfinite(weights)).all()):
        raise ShapeError(
            f"`weights` must be {len(W)} positive finite numbers, got shape "
            f"{tuple(weights.shape)} with a smallest value of "
            f"{float(weights.min()) if weights.numel() else 'none'}."
        )
