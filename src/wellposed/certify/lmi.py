"""The gain of all outputs together: the matrix inequality of Lipschitz-bounded networks, verified.

With ``S, Q`` of `PairwiseL2` for a positive diagonal ``Lam``, any ``th > 0`` with ``S - th Q > 0``
and ``R = C + th D U^T Lam``,

    ||C dz + D dx||^2 <= (1/th) lambda_max( R (S - th Q)^-1 R^T + th D D^T ) ||dx||^2.

This is the inequality of `LBENCell` with ``gamma`` eliminated: for fixed ``Lam`` and ``th`` the
number above is the smallest ``gamma^2`` for which

    [ s S               -s Lam U ]              [ C^T ]
    [ -s U^T Lam        gamma I  ]  - 1/gamma   [ D^T ] [ C  D ]   >=  0,     s = th gamma,

holds (the multiplier is ``s Lam``), because ``[C D] P^-1 [C D]^T <= gamma I`` is the Schur
complement of the same matrix taken the other way, with ``P`` the first matrix. Only a matrix of
the size of the outputs has an eigenvalue to be bounded, and one of the size of the states is shown
to be positive definite.
"""

from __future__ import annotations

from math import inf, isnan, sqrt
from typing import NamedTuple, final

import torch
from torch import Tensor

from wellposed.certify.definite import balance, least_eigenvalue, reach
from wellposed.certify.pairwise import PairwiseL2
from wellposed.core.golden import golden_section
from wellposed.core.spectra import UNIT, outward, rounding

_SECTIONS = 40


@final
class JointGain(NamedTuple):
    """A proved bound ``||dy||_2 <= gain ||dx||_2``.

    Args:
        gain: Infinite if nothing was proved.
        theta: The ``th`` that proves it.
    """

    gain: float
    theta: float


@torch.no_grad()
def joint_gain(proof: PairwiseL2, theta: float | None = None) -> JointGain:
    """The gain from inputs to all outputs of a network, direct path included, in the 2-norm.

    Args:
        proof: The multiplier and its matrices; inputs were divided by its scale.
        theta: ``th``; the best one is searched by default. A bad one gives a large gain or an
            infinite one, never a wrong one.

    References:
        Revay, Wang, Manchester. Lipschitz bounded equilibrium networks. arXiv 2010.01732,
        theorem 2 (without direct path); Fazlyab et al. Efficient and accurate estimation of
        Lipschitz constants. NeurIPS 2019 (feed-forward).
    """
    parts = _Parts.of(proof)
    chosen = _search(proof, parts) if theta is None else theta
    if not 0 < chosen < inf:
        return JointGain(inf, chosen)
    return JointGain(_prove(proof, parts, chosen), chosen)


@final
class _Parts(NamedTuple):
    """``C``, ``D`` in the units of the inputs, ``E = D U^T Lam`` and bounds of their rounding."""

    C: Tensor
    D: Tensor
    E: Tensor
    D_error: Tensor
    E_error: Tensor

    @classmethod
    def of(cls, proof: PairwiseL2) -> _Parts:
        net = proof.network
        D = net.D / proof.scale
        V = net.U / proof.scale
        E = (D @ V.mT) * proof.multiplier
        size = (D.abs() @ V.abs().mT) * proof.multiplier
        return cls(
            net.C, D, E, outward(2 * UNIT * D.abs()), outward(rounding(net.d + 8) * size, net.d)
        )


def _search(proof: PairwiseL2, parts: _Parts) -> float:
    """``th`` by golden section on a log-convex function: a hint."""
    L, info = torch.linalg.cholesky_ex(proof.S)
    if int(info):
        return inf
    half = torch.linalg.solve_triangular(L, proof.Q, upper=False)
    whole = torch.linalg.solve_triangular(L, half.mT, upper=False)
    om, V = torch.linalg.eigh((whole + whole.mT) / 2)
    om = om.clamp(min=0)
    top = float(om.amax().clamp(min=1e-150))
    B, F = (torch.linalg.solve_triangular(L, M.mT, upper=False).mT @ V for M in parts[:3:2])
    direct = parts.D @ parts.D.mT

    def value(t: float) -> float:
        th = t / top
        R = B + th * F
        G = (R / (1 - t * om / top)) @ R.mT / th + direct
        return float(torch.linalg.eigvalsh((G + G.mT) / 2)[-1])

    return min(golden_section(value, 0.0, 1.0, _SECTIONS), 1 - 1e-9) / top


def _prove(proof: PairwiseL2, parts: _Parts, th: float) -> float:
    """The square root of ``(1/th) lambda_max(R M^-1 R^T + th D D^T)`` from above.

    For any ``Y`` and ``T = R^T - M Y``: ``R M^-1 R^T = R Y + T^T Y + T^T M^-1 T``, and the last
    term is at most ``||T||_F^2 / lambda_min(M)``.
    """
    net = proof.network
    n, d = net.n, net.d
    plain = proof.S - th * proof.Q
    slip = outward(proof.S_error + th * proof.Q_error + 4 * UNIT * (proof.S.abs() + plain.abs()), 4)
    # in units in which the diagonal is about one: R M^-1 R^T is the same matrix
    k = balance(proof.S)
    M, slip = k[:, None] * plain * k, k[:, None] * slip * k
    least = float(least_eigenvalue(M, reach(slip)))
    if not least > 0:
        return inf
    R = (parts.C + th * parts.E) * k
    R_error = outward(th * parts.E_error + 4 * UNIT * (parts.C.abs() + th * parts.E.abs()), 4) * k
    Y = torch.linalg.solve_ex(M, R.mT)[0]
    apart = R.mT - M @ Y
    flow = R.mT.abs() + M.abs() @ Y.abs()
    blur = rounding(n + 4) * flow + R_error.mT + slip @ Y.abs()
    left = outward(apart.abs() + outward(blur, n + 4), 4)
    G = R @ Y + th * (parts.D @ parts.D.mT)
    size = R.abs() @ Y.abs() + th * (parts.D.abs() @ parts.D.abs().mT)
    off = rounding(n + d + 8) * size + R_error @ Y.abs() + left.mT @ Y.abs()
    D_size = parts.D_error @ parts.D.abs().mT
    off = off + th * (D_size + D_size.mT + parts.D_error @ parts.D_error.mT)
    off = outward(off, n + d + 8)
    # what G stands for is symmetric: its mean with its transpose is no further from it
    off = outward((off + off.mT) / 2, 4)
    top = -float(least_eigenvalue(-(G + G.mT) / 2, reach(off)))
    top += float(outward(left.square().sum(), n * net.q + 4)) / least * (1 + 4 * UNIT)
    square = max(top, 0.0) / th * (1 + 8 * UNIT)
    gain = sqrt(square) * (1 + 4 * UNIT) if square < inf else inf
    return inf if isnan(gain) else gain
