"""Upper bounds of ``(I - G)^-1 f`` for a nonnegative ``G``, sound whatever the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from wellposed.core.spectra import TINY, UNIT, Contraction, collatz
from wellposed.errors import NotCertifiableError


@final
@dataclass(eq=False)
class Resolvent:
    """``f -> e >= (I - G)^-1 f`` for ``G >= 0`` with spectral radius below 1.

    Let ``G eta <= factor eta`` with ``eta > 0`` and ``factor < 1`` (verified). For *any* vector
    ``e0 >= 0`` let ``r = max(G e0 + f - e0, 0)`` and ``t = max_i r_i / (eta_i (1 - factor))``. Then
    ``e = e0 + t eta`` satisfies ``(I - G) e >= f - r + t (1 - factor) eta >= f``, and because
    ``(I - G)^-1 = sum_k G^k`` is nonnegative, ``e >= (I - G)^-1 f``. Every quantity is rounded so
    that the inequalities survive. If ``e`` bounds the true vector, so does ``G e + f``: a few
    such steps, each rounded up, only improve it.

    Args:
        product: An upper bound of ``G e``, for nonnegative batches ``e``.
        shape: Shape of one vector.
        matrix: ``G`` as a matrix, where one is at hand; only speeds the first guess up.
    """

    product: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    matrix: Tensor | None = None

    @cached_property
    def contraction(self) -> Contraction:
        """Verified weights and factor of ``G``; the factor may be 1 or more."""
        ones = torch.ones(1, *self.shape, dtype=torch.float64)
        found = collatz(self.product, ones)
        if found.factor < 1:
            return found
        # triangular couplings defeat power iteration; (I - G)^-1 1 proves any contraction
        guess = self._guess(ones, 2000)
        if bool(torch.isfinite(guess).all()) and bool((guess > 0).all()):
            other = collatz(self.product, guess, steps=0)
            return other if other.factor < found.factor else found
        return found

    def require(self) -> Contraction:
        """The contraction.

        Raises:
            NotCertifiableError: It is none.
        """
        found = self.contraction
        if not found.factor < 1:
            raise NotCertifiableError(
                "The equilibrium is not proved to exist: the canonical map has factor "
                f"{found.factor:.6g} in the best weighted max norm found, expected below 1.",
                hint="lower the cell's margin or the size of its weights; a `FreeCell` or a "
                "2-norm cell has no max-norm certificate.",
            )
        return found

    def __call__(self, f: Tensor) -> Tensor:
        """An upper bound of ``(I - G)^-1 f`` for a batch of nonnegative vectors."""
        base = self.require()
        eta = base.eta
        e = self._guess(f).nan_to_num(0.0).clamp(min=0)
        for _ in range(3):
            image = (self.product(e) + f) * (1 + 2 * UNIT)
            short = (image - e + 2 * UNIT * (image + e)).clamp(min=0)
            lift = (short / eta).flatten(1).amax(1) / (1 - base.factor) * (1 + 16 * UNIT) + TINY
            e = (e + lift.reshape(-1, *[1] * len(self.shape)) * eta) * (1 + 4 * UNIT)
        for _ in range(3):
            e = torch.minimum(e, (self.product(e) + f) * (1 + 2 * UNIT))
        return e

    def _guess(self, f: Tensor, steps: int = 3000) -> Tensor:
        if self._factors is not None:
            flat = f.reshape(len(f), -1).mT
            return torch.linalg.lu_solve(*self._factors, flat).mT.reshape(f.shape)
        e, last = f, torch.ones(len(f), dtype=torch.float64)
        for count in range(1, steps + 1):
            image = self.product(e) + f
            step = image - e
            if bool((step.abs() <= 1e-14 * image).all()):
                return image
            size = step.abs().flatten(1).sum(1)
            if count % 50 == 0:
                # what is left decays like the dominant eigenvalue: sum its geometric series
                rate = (size / last).nan_to_num(0.0).clamp(max=0.999999)
                image = image + step * (rate / (1 - rate)).reshape(-1, *[1] * len(self.shape))
            e, last = image, size
        return e

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor] | None:
        if self.matrix is None:
            return None
        system = torch.eye(len(self.matrix), dtype=torch.float64) - self.matrix
        lu, pivots, info = torch.linalg.lu_factor_ex(system)
        return None if int(info) else (lu, pivots)
