"""Ellipsoids of differences: what a chain of layers makes of ``||dx||_2 <= 1``, verified.

For a pair of inputs ``dx`` is the difference of what enters the chain and ``dz`` that of what has
left some step. A symmetric ``P`` *holds* after a step if ``dz dz^T <= ||dx||^2 P`` for all pairs.

- Weights: ``dz = W dv`` carries ``P`` to ``W P W^T``.
- Slopes: ``dz_j = s_j dv_j`` with ``s_j`` in ``[m_j - r_j, m_j + r_j]``, that is
  ``dz = [m] dv + e`` with ``e_j^2 <= r_j^2 dv_j^2``. For every diagonal ``D > [r] P [r]`` on the
  components with ``r_j > 0`` (S-procedure with the multipliers ``1 / D_j``, and Woodbury),

      [m] ( P + P [r] (D - [r] P [r])^-1 [r] P ) [m] + D

  holds after it, with ``D_j = 0`` where ``r_j = 0``.
- A map of which only a gain ``||dz|| <= K ||dv||`` is known: ``K^2 lambda_max(P) I``.

After the last step ``sqrt(lambda_max(P))`` bounds the 2-norm and ``sqrt(P_ii)`` every output. This
is block elimination in the inequality of LipSDP [1] from the input on, hence exact for given
multipliers; with slopes in [0, b] and ``D = b^2/2 lambda_max(P) I`` it is ECLipsE-Fast [2]. Any
``D`` gives a valid bound or none: it may come from anywhere.

References:
    [1] Fazlyab, Robey, Hassani, Morari, Pappas. Efficient and accurate estimation of Lipschitz
    constants for deep neural networks. NeurIPS 2019, arXiv 1906.04893.
    [2] Xu, Sivaranjani. ECLipsE. NeurIPS 2024, arXiv 2410.04375.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import final

import torch
from torch import Tensor

from wellposed.certify.definite import balance, least_eigenvalue
from wellposed.core.spectra import UNIT, outward, rounding

_CLOSED = 1e-12  # relative half width below which slopes count as one number


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """``dz = W dv``.

    Args:
        matrix: ``W`` in float64, shape (m, n).
        error: Bounds of the errors of its entries; `None` if it is exact.
    """

    matrix: Tensor
    error: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class Slope:
    """``dz_j = s_j dv_j`` with ``low_j <= s_j <= high_j``.

    Args:
        low: Smallest difference quotients, shape (n,).
        high: Largest ones.
        tied: Whether ``dz`` only satisfies ``|dz - [m] dv| <= r |dv|`` on all components with
            ``r_j > 0`` together, which then have one ``r``; one multiplier serves all of them.
    """

    low: Tensor
    high: Tensor
    tied: bool = False


@final
@dataclass(frozen=True)
class Opaque:
    """``||dz||_2 <= gain ||dv||_2``.

    Args:
        gain: The bound.
        size: Components of ``dz``.
    """

    gain: float
    size: int


Step = Weights | Slope | Opaque


@final
@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """A ``P`` that holds: exactly symmetric, or the vector of its diagonal.

    Args:
        matrix: Shape (n, n), or (n,) for a diagonal one.
    """

    matrix: Tensor

    @property
    def full(self) -> Tensor:
        """Shape (n, n)."""
        return torch.diag(self.matrix) if self.matrix.ndim == 1 else self.matrix

    @property
    def two_norm(self) -> float:
        """Upper bound of ``||dz||_2 / ||dx||_2``."""
        if self.matrix.ndim == 1:
            top = float(self.matrix.amax())
        else:
            top = -float(least_eigenvalue(-self.matrix))
        return sqrt(max(top, 0.0)) * (1 + 4 * UNIT) if top < inf else inf

    @property
    def rows(self) -> Tensor:
        """Upper bounds of ``|dz_i| / ||dx||_2``, shape (n,)."""
        own = self.matrix if self.matrix.ndim == 1 else self.matrix.diagonal()
        return own.clamp(min=0).sqrt() * (1 + 4 * UNIT)


@torch.no_grad()
def propagate(
    size: int, steps: tuple[Step, ...], multipliers: tuple[Tensor | None, ...]
) -> list[Ellipsoid] | None:
    """What holds after every step, the start included; rounding is charged to ``P``.

    Args:
        size: Components of an input.
        steps: The chain.
        multipliers: ``D`` of every `Slope`, shape (n,); `None` for other steps.

    Returns:
        One ellipsoid more than steps, or `None` if a ``D`` is too small somewhere.
    """
    here: Ellipsoid | None = Ellipsoid(torch.ones(size, dtype=torch.float64))
    found = [here]
    for step, D in zip(steps, multipliers, strict=True):
        match step:
            case Weights():
                here = _through_weights(here, step)
            case Slope():
                here = _through_slopes(here, step, D)
            case Opaque():
                top = here.two_norm * step.gain
                square = top * top * (1 + 8 * UNIT)
                here = Ellipsoid(torch.full((step.size,), square, dtype=torch.float64))
        if here is None or not bool(torch.isfinite(here.matrix).all()):
            return None
        found.append(here)
    return found


def _through_weights(P: Ellipsoid, step: Weights) -> Ellipsoid:
    W, A = step.matrix, step.matrix.abs()
    gamma = rounding(2 * W.shape[1] + 12)
    if P.matrix.ndim == 1:
        carried, size = (W * P.matrix) @ W.mT, (A * P.matrix) @ A.mT
    else:
        flow = A @ P.matrix.abs()
        carried, size = W @ P.matrix @ W.mT, flow @ A.mT
    error = gamma * size
    if step.error is not None:
        reach = P.matrix.abs()
        near = step.error * reach if P.matrix.ndim == 1 else step.error @ reach
        cross = near @ (A + step.error).mT
        error = error + cross + cross.mT
    return _held(carried, error, 2 * W.shape[1] + 16)


def _through_slopes(P: Ellipsoid, step: Slope, D: Tensor | None) -> Ellipsoid | None:
    m, r, slip = middle_radius(step)
    open_ = r > 0
    if not bool(open_.any()):
        if P.matrix.ndim == 1:
            return Ellipsoid(outward(P.matrix * (m.abs() + slip).square(), 4))
        return _held(m[:, None] * P.matrix * m, _slipped(P.matrix, m, slip), 8)
    if D is None or D.shape != r.shape or not bool((D[open_] > 0).all()):
        return None
    Q, d, rho = P.full, D[open_], r[open_]
    if step.tied:
        d = d.amax().expand_as(d)  # what holds of all together allows one multiplier only
    # N = D - [r] P [r], from below; its own scale keeps small neurons apart from large ones
    inner = rho[:, None] * Q[open_][:, open_] * rho
    k = balance(torch.diag(d))
    plain = k[:, None] * (torch.diag(d) - inner) * k
    blur = 8 * UNIT * (k[:, None] * inner.abs() * k + torch.diag(d * k * k))
    N = (plain + plain.mT) / 2 - torch.diag(outward(blur.sum(1), len(d) + 8))
    least = float(least_eigenvalue(N))
    if not least > 0:
        return None
    B = (k * rho)[:, None] * Q[open_] * m
    B_error = 4 * UNIT * B.abs() + (k * rho)[:, None] * Q[open_].abs() * slip
    top, size, error = _schur(N, B, outward(B_error, 2), least)
    own = m[:, None] * Q * m
    lift = torch.diag(torch.zeros_like(r).masked_scatter(open_, d))
    error = error + _slipped(Q, m, slip) + 8 * UNIT * (own.abs() + size + lift)
    return _held(own + top + lift, error, 2 * len(d) + 16)


def _slipped(Q: Tensor, m: Tensor, slip: Tensor) -> Tensor:
    """Errors of ``[m] Q [m]`` where ``m`` is only known up to `slip`, and its rounding."""
    size = m.abs()
    change = size[:, None] * slip + slip[:, None] * size + slip[:, None] * slip
    return (change + 4 * UNIT * size[:, None] * size) * Q.abs()


def _schur(N: Tensor, B: Tensor, B_error: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """``B^T N^-1 B``, its size, and bounds of its errors; ``N >= least I > 0``.

    For any ``Y`` and ``T = B - N Y`` it is ``Y^T B + T^T Y + T^T N^-1 T``, and the last term is a
    form of at most ``|x|^T |T|^T |T| |x| / least``.
    """
    Y = torch.linalg.solve_ex(N, B)[0]
    n = len(N)
    flow = B.abs() + N.abs() @ Y.abs()
    T = outward((B - N @ Y).abs() + rounding(n + 8) * flow + B_error, 4)
    cross = (B_error + T).mT @ Y.abs()
    size = Y.mT.abs() @ B.abs()
    error = cross + rounding(n + 8) * size + (T.mT @ T) / least
    return Y.mT @ B, size, outward(error, n + 8)


def _held(value: Tensor, error: Tensor, terms: int) -> Ellipsoid:
    """An upper bound of a symmetric matrix known up to errors: their weight goes to the diagonal.

    A symmetric ``E`` with ``|E_ij| <= e_ij`` lies below ``diag(sum_j e_ij k_j / k_i)`` for every
    positive ``k``; the square roots of the diagonal keep units apart.
    """
    P = (value + value.mT) / 2
    e = (error + error.mT) / 2 + 2 * UNIT * P.abs()
    own = P.diagonal().clamp(min=0)
    k = (own + 1e-20 * own.amax()).sqrt()
    k = torch.where(k > 0, k, torch.ones_like(k))
    extra = outward((e @ k) / k, terms + len(k) + 8)
    return Ellipsoid(P + torch.diag(extra + 2 * UNIT * own))


def middle_radius(step: Slope) -> tuple[Tensor, Tensor, Tensor]:
    """``m, r, slip``: slopes within ``m -+ r`` where they are open, within ``m -+ slip`` elsewhere.

    Where the slopes are one number up to rounding, no multiplier is spent on them.
    """
    m = (step.low + step.high) / 2
    r = (step.high - step.low) / 2
    r = torch.where(
        step.low == step.high, torch.zeros_like(r), r * (1 + 8 * UNIT) + 4 * UNIT * m.abs()
    )
    closed = r <= _CLOSED * m.abs()
    slip = torch.where(closed, r, torch.zeros_like(r))
    r = torch.where(closed, torch.zeros_like(r), r)
    if step.tied and bool((r > 0).any()):
        r = torch.where(r > 0, r.amax(), r)
    return m, r, slip
