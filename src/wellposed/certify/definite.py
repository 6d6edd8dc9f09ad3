"""Smallest eigenvalues of symmetric matrices, bounded from below with rounding included.

A Cholesky factor is a hint here: what is proved follows from the residual of the factorisation,
whichever program computed it and in whichever order it added.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from wellposed.core.spectra import TINY, outward, rounding
from wellposed.errors import ShapeError

_TRIALS = 4


@torch.no_grad()
def least_eigenvalue(S: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """A proved lower bound of ``lambda_min`` of every symmetric matrix near `S`.

    For any ``R`` and any ``delta``, with ``E = S - delta I - R^T R``,
    ``S >= delta I + E >= (delta - ||E||_inf) I``. ``R`` is the Cholesky factor of ``S - delta I``
    with ``delta`` just below the computed eigenvalue; ``E`` is computed with a bound of its own
    rounding, ``gamma_{n+4} (|S| + |delta| I + |R|^T |R|)`` [1].

    Args:
        S: Exactly symmetric, float64, shape (..., n, n).
        error: Bound of the 2-norm of what is left out of `S`, shape (...).

    Returns:
        Shape (...), ``-inf`` where nothing is proved.

    Raises:
        ShapeError: `S` is not symmetric.

    References:
        [1] Rump. Verification of positive definiteness. BIT 46, 2006; Higham, Accuracy and
        Stability of Numerical Algorithms, 2nd ed., theorem 10.3.
    """
    known = S.nan_to_num()  # not even a NaN equals itself
    if not torch.equal(known, known.mT):
        raise ShapeError("`S` must be exactly symmetric; use `symmetric`.")
    n = S.shape[-1]
    best = S.new_full(S.shape[:-2], -inf)
    usable = torch.isfinite(S).flatten(-2).all(-1)
    if not bool(usable.any()):
        return best
    # a matrix that is no number spoils its batch in some kernels: it is judged as the identity
    eye = torch.eye(n, dtype=S.dtype)
    held = torch.where(usable[..., None, None], S, eye)
    size = held.abs().sum(-1).amax(-1)
    guess = torch.linalg.eigvalsh(held)[..., 0]
    slack = 2 * rounding(n + 4) * size + TINY
    for _ in range(_TRIALS):
        delta = guess - slack
        shifted = held - delta[..., None, None] * eye
        R, _ = torch.linalg.cholesky_ex(shifted, upper=True)
        found = delta - _residual(held, delta, R)
        best = torch.maximum(best, found.nan_to_num(-inf, -inf, -inf))
        if bool((best >= guess - 8 * slack).all()):
            break
        slack = 64 * slack
    best = torch.where(usable, best - torch.as_tensor(error, dtype=S.dtype), -inf)
    # the two differences above
    return best - outward(best.abs() * 4e-16 + TINY)


def balance(S: Tensor) -> Tensor:
    """Powers of two ``k`` with a diagonal of ``[k] S [k]`` between 1/2 and 2, shape (..., n).

    Multiplying by them is exact, so that a congruence with them loses nothing and spares a matrix
    whose units differ a bound by its largest ones.
    """
    own = torch.diagonal(S, dim1=-2, dim2=-1)
    exponent = (-own.log2() / 2).round().nan_to_num(0.0, 0.0, 0.0).clamp(-200, 200)
    return torch.exp2(exponent)


def symmetric(T: Tensor) -> Tensor:
    """``T + T^T``, exactly symmetric whatever was rounded."""
    return T + T.mT


def reach(error: Tensor) -> Tensor:
    """Bound of the 2-norm of a symmetric matrix from elementwise bounds: the largest row sum."""
    return outward(error.sum(-1), error.shape[-1]).amax(-1)


def _residual(S: Tensor, delta: Tensor, R: Tensor) -> Tensor:
    """Upper bound of ``||S - delta I - R^T R||_inf``, which bounds the 2-norm by symmetry."""
    n = S.shape[-1]
    eye = torch.eye(n, dtype=S.dtype)
    E = (S - delta[..., None, None] * eye) - R.mT @ R
    ones = S.new_ones(n, 1)
    flow = S.abs() @ ones + delta.abs()[..., None, None] + R.mT.abs() @ (R.abs() @ ones)
    total = E.abs() @ ones + rounding(n + 6) * outward(flow, 2 * n)
    return outward(total, n + 4).squeeze(-1).amax(-1)
