"""The spectral radius of a linear operator by Arnoldi's method, all samples at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wellposed.errors import ConfigError


class SpectralRadius(NamedTuple):
    """An estimate, never a bound.

    Args:
        value: Largest modulus of a Ritz value, shape (batch,).
        residual: ``||M y - theta y||`` for the unit Ritz vector ``y`` of that value: ``theta`` is
            an exact eigenvalue of a matrix that differs from ``M`` by so much.
        products: Products with ``M``.
    """

    value: Tensor
    residual: Tensor
    products: int


@torch.no_grad()
def spectral_radius(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    size: int = 40,
    restarts: int = 5,
    rtol: float = 1e-6,
) -> SpectralRadius:
    """``max |lambda|`` of a real operator that need not be symmetric, a sample [1].

    A Krylov basis of `size` vectors, orthogonalised twice, has the Ritz values of its Hessenberg
    matrix; complex pairs are found as they are, where the power method and Rayleigh's quotient see
    nothing (a rotation). It is started again from the real and imaginary part of the Ritz vector.

    Args:
        product: ``v -> M v``, shape (batch, ...), samples apart.
        start: First vectors, none of them zero.
        size: Basis vectors, at least 2; no more than the length of a state are taken.
        restarts: Bases at most.
        rtol: Stop when every residual is below this part of its value.

    References:
        [1] Saad. Numerical methods for large eigenvalue problems, 2nd ed., chapter 6.
    """
    if size < 2 or restarts < 1:
        raise ConfigError(
            f"`size` must be at least 2 and `restarts` at least 1, got {size} and {restarts}."
        )
    shape, n = start.shape, start[0].numel()
    m = min(size, n)
    v = start.flatten(1)
    best = v.new_full((len(v),), -1.0)
    gap = v.new_full((len(v),), float("inf"))
    products = 0
    for _ in range(restarts):
        V, H, left = _basis(lambda u: product(u.reshape(shape)).flatten(1), v, m)
        products += m
        theta, Y = torch.linalg.eig(H)
        top = theta.abs().argmax(1)
        rows = torch.arange(len(v))
        y = Y[rows, :, top]
        residual = left * y[:, -1].abs()
        value = theta.abs()[rows, top]
        better = residual / value.clamp(min=1e-300) < gap / best.clamp(min=1e-300)
        better |= best < 0
        best, gap = torch.where(better, value, best), torch.where(better, residual, gap)
        if bool((gap <= rtol * best).all()):
            break
        ritz = torch.einsum("bmn,bm->bn", V.to(y.dtype), y)
        v = ritz.real + ritz.imag
    return SpectralRadius(best, gap, products)


def _basis(product: Callable[[Tensor], Tensor], v: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal ``V`` (batch, m, n), ``H`` (batch, m, m), and the last subdiagonal entry."""
    batch, n = v.shape
    V, H = v.new_zeros(batch, m + 1, n), v.new_zeros(batch, m + 1, m)
    V[:, 0] = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=1e-300)
    tiny = 64 * torch.finfo(v.dtype).eps
    for j in range(m):
        w = product(V[:, j])
        size = torch.linalg.vector_norm(w, dim=1)
        for _ in range(2):
            part = torch.einsum("bkn,bn->bk", V[:, : j + 1], w)
            H[:, : j + 1, j] += part
            w = w - torch.einsum("bk,bkn->bn", part, V[:, : j + 1])
        rest = torch.linalg.vector_norm(w, dim=1)
        # an invariant subspace was found: the basis ends here, and its Ritz values are exact
        rest = torch.where(rest > tiny * size, rest, 0.0)
        H[:, j + 1, j] = rest
        V[:, j + 1] = torch.where(
            rest[:, None] > 0, w / rest[:, None].clamp(min=1e-300), torch.zeros_like(w)
        )
    return V[:, :m], H[:, :m], H[:, m, m - 1]
