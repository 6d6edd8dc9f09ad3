"""Candidates for the weights of a norm in which a network is well posed: hints, not proofs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from wellposed.certify.descent import Adam
from wellposed.core.spectra import TINY, UNIT

_DIRECT = 600
"""Largest matrix whose eigenvalues are computed."""
_LEVELS = 64
_SLACK = 0.1


def perron_weights(W: Tensor) -> tuple[Tensor | None, float]:
    """Weights ``eta`` for which ``sum_{j != i} |W_ij| eta_j < (1 - W_ii) eta_i``, if there are any.

    With ``rho`` the spectral radius of the canonical absolute matrix ``M`` and ``theta`` between
    ``rho`` and 1, ``eta = (theta I - M)^-1 1`` is positive and has ``M eta < theta eta``; unlike
    the Perron vector it is positive for reducible matrices too, triangular ones among them.

    Returns:
        The weights, or `None` if there are none, and ``rho`` (infinite if some ``W_ii >= 1``).
    """
    own = torch.diagonal(W)
    if not bool((own < 1).all()):
        return None, float("inf")
    M = W.abs().fill_diagonal_(0.0) / (1 - own)[:, None]
    radius = _radius(M)
    if radius >= 1:
        return None, radius
    theta = max(radius + _SLACK * (1 - radius), 0.5)
    eta = _geometric(M / theta)
    if not bool(((eta > 0) & torch.isfinite(eta)).all()):
        return None, radius
    return eta / eta.amax().sqrt() / eta.amin().sqrt(), radius


def monotone_weights(W: Tensor, offered: Tensor | None = None) -> Iterator[Tensor]:
    """Diagonals of ``Lam`` to try: offered, ones, Perron's, a cascade of blocks, ascent.

    Args:
        W: Shape (n, n).
        offered: What a parametrisation claims; not tried unless positive and finite.
    """
    n = len(W)
    ones = W.new_ones(n)
    start = [ones]
    if offered is not None and bool(((offered > 0) & torch.isfinite(offered)).all()):
        yield offered
        start.append(offered)
    else:
        offered = None
    yield ones
    balanced = _balanced(W)
    if balanced is not None:
        yield balanced
        start.append(balanced)
    cascade = _cascade(W, ones if offered is None else offered)
    if cascade is not None:
        yield cascade
        start.append(cascade)
    if n <= _DIRECT:
        yield _ascend(W, max(start, key=lambda lam: _least(W, lam)))


def _radius(M: Tensor) -> float:
    if _triangular(M):
        return 0.0
    if len(M) <= _DIRECT:
        return float(torch.linalg.eigvals(M).abs().amax())
    # Collatz: an upper estimate that decreases
    eta, best = M.new_ones(len(M)), float("inf")
    for _ in range(200):
        image = M @ eta + 1e-12
        best = min(best, float((image / eta).amax()))
        eta = image / image.amax() + 0.1 * eta
    return best


def _geometric(X: Tensor) -> Tensor:
    """``sum_k X^k 1`` for ``X >= 0``: nothing cancels, whatever the range of the result."""
    total, power = X.new_ones(len(X)), X
    if len(X) > _DIRECT:
        for _ in range(2000):
            total = 1 + X @ total
        return total
    for _ in range(40):
        more = power @ total
        if not bool((more > UNIT * total).any()):
            break
        total = total + more
        power = power @ power
    return total


def _triangular(M: Tensor) -> bool:
    return not bool(torch.triu(M).any()) or not bool(torch.tril(M).any())


def _balanced(W: Tensor) -> Tensor | None:
    """``left_i / right_i`` of the Perron vectors: optimal for nonnegative matrices."""
    M = W.abs() + 1e-9
    right = left = M.new_ones(len(M))
    for _ in range(200):
        right, left = M @ right, M.mT @ left
        right, left = right / right.amax(), left / left.amax()
    lam = left / right
    return lam if bool(((lam > 0) & torch.isfinite(lam)).all()) else None


def _least(W: Tensor, lam: Tensor) -> float:
    """The computed margin of a diagonal."""
    k = lam.sqrt()
    scaled = k[:, None] * (torch.eye(len(W), dtype=W.dtype) - W) / k
    return float(torch.linalg.eigvalsh((scaled + scaled.mT) / 2)[0])


def _cascade(W: Tensor, offered: Tensor) -> Tensor | None:
    """For a reducible ``W``: weights that fall from each level of blocks to the next.

    Within a block they are the offered ones, if these will do.

    With ``S_1 > 0`` for the levels so far, ``S_2 > 0`` for the next one on its own and ``N`` the
    block that joins them, ``[[S_1, -tau N^T], [-tau N, tau S_2]] > 0`` iff
    ``tau lambda_max(S_2^-1/2 N S_1^-1 N^T S_2^-1/2) < 1``.
    """
    levels = _levels(W)
    if levels is None:
        return None
    n = len(W)
    lam, order = W.new_ones(n), torch.empty(0, dtype=torch.long)
    eye = torch.eye(n, dtype=W.dtype)
    for blocks in levels:
        here = torch.cat(blocks)
        for block in blocks:
            if len(block) > 1:
                part = W[block][:, block]
                mine = offered[block]
                good = len(block) > _DIRECT or _least(part, mine) > 0
                lam[block] = mine if good else _ascend(part, mine)
        if len(order):
            H = lam[:, None] * (eye - W)
            S = H + H.mT
            first, info = torch.linalg.cholesky_ex(S[order][:, order])
            second, also = torch.linalg.cholesky_ex(S[here][:, here])
            if int(info) or int(also):
                return None
            N = H[here][:, order]
            joined = torch.linalg.solve_triangular(first, N.mT, upper=False)
            joined = torch.linalg.solve_triangular(second, joined.mT, upper=False)
            top = float(torch.linalg.matrix_norm(joined, ord=2)) ** 2
            if top > 0:
                lam[here] = lam[here] * (0.5 / top)
        order = torch.cat([order, here])
    return lam


def _levels(W: Tensor) -> list[list[Tensor]] | None:
    """Strongly connected blocks of neurons, grouped so that each level only needs earlier ones."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    graph = csr_matrix((W != 0).numpy())
    count, label = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return None
    rows, columns = graph.nonzero()
    into, source = label[rows], label[columns]
    differs = into != source
    edges = np.unique(np.stack([into[differs], source[differs]], 1), axis=0)
    depth = np.zeros(count, dtype=int)
    for _ in range(_LEVELS):
        deeper = depth.copy()
        np.maximum.at(deeper, edges[:, 0], depth[edges[:, 1]] + 1)
        if (deeper == depth).all():
            break
        depth = deeper
    else:
        return None
    blocks = [torch.from_numpy(np.flatnonzero(label == k)) for k in range(count)]
    return [
        [blocks[k] for k in np.flatnonzero(depth == level)] for level in range(int(depth.max()) + 1)
    ]


def _ascend(W: Tensor, lam: Tensor, steps: int = 150, rate: float = 0.1) -> Tensor:
    """Adam on ``theta = log Lam`` for a soft minimum of the eigenvalues of the symmetric part.

    With ``H = [e^(theta/2)] (I - W) [e^(-theta/2)]`` and ``G = sum_k w_k v_k v_k^T`` over its
    eigenpairs, the derivative is ``( (G * H) 1 - (G * H)^T 1 ) / 2``.
    """
    eye = torch.eye(len(W), dtype=W.dtype)
    theta, best, level = lam.log(), lam, -float("inf")
    adam = Adam(rate, steps)
    for _ in range(steps):
        k = (theta / 2).exp()
        H = k[:, None] * (eye - W) / k
        values, vectors = torch.linalg.eigh((H + H.mT) / 2)
        if float(values[0]) > level:
            best, level = theta.exp(), float(values[0])
        sharp = 30 / (values[-1] - values[0] + TINY)
        weight = torch.softmax(-sharp * values, 0)
        both = ((vectors * weight) @ vectors.mT) * H
        theta = theta + adam.step((both.sum(1) - both.sum(0)) / 2)
    return best
