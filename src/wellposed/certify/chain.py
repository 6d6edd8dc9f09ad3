"""Functions applied one after the other: how majorants compose, and the norms read off them."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby
from math import inf, prod, sqrt
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.eclipse import LARGEST, WIDEST
from wellposed.certify.ellipsoid import Opaque, Step, Weights
from wellposed.certify.linear import spectral_norm
from wellposed.certify.majorant import Majorant
from wellposed.certify.multipliers import chain_gain
from wellposed.core.spectra import UNIT, collatz, outward, rounding


@final
class Product(Majorant):
    """Linear functions in a row as one matrix: what cancels between them adds nothing.

    Args:
        rows: The matrix, shape (outputs, *in_shape), float64.
        error: Bound of its distance from the exact product, entry by entry.
        out_shape: Shape of one output.
        assumes: What is taken on trust.
    """

    def __init__(
        self,
        rows: Tensor,
        error: Tensor,
        out_shape: tuple[int, ...],
        assumes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(tuple(rows.shape[1:]), out_shape)
        self._matrix, self._error = rows.flatten(1), error.flatten(1)
        self._size = outward(self._matrix.abs() + self._error, 2)
        self.assumes = assumes

    @override
    def apply(self, v: Tensor) -> Tensor:
        out = outward(v.flatten(1) @ self._size.mT, self._size.shape[1])
        return out.reshape(len(v), *self.out_shape)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        out = outward(c.flatten(1) @ self._size, len(self._size))
        return out.reshape(len(c), *self.in_shape)

    @property
    @override
    def spectral(self) -> float:
        wrong = float(torch.linalg.vector_norm(self._error))
        wrong *= 1 + 2 * rounding(self._error.numel() + 8)
        return (spectral_norm(self._matrix) + wrong) * (1 + 2 * UNIT)

    @property
    @override
    def steps(self) -> tuple[Step, ...] | None:
        m, n = self._matrix.shape
        if m > WIDEST or m * n > LARGEST:
            return None
        return (Weights(self._matrix, self._error),)

    @property
    @override
    def rule(self) -> str:
        return "absolute weights of a product of linear maps"


@final
class Chain(Majorant):
    """Functions applied one after the other."""

    def __init__(self, links: list[Majorant], shape: tuple[int, ...]) -> None:
        super().__init__(shape, links[-1].out_shape if links else shape)
        self.links = links
        names = [name for link in links for name in link.assumes]
        self.assumes = tuple(dict.fromkeys(names))

    @cached_property
    def core(self) -> list[Majorant]:
        """The links, nested ones included, with linear ones in a row multiplied."""
        return _multiplied(flat(self))

    @override
    def apply(self, v: Tensor) -> Tensor:
        for link in self.core:
            v = link.apply(v)
        return v

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        for link in reversed(self.core):
            c = link.adjoint(c)
        return c

    @property
    @override
    def spectral(self) -> float:
        # a nested chain may know more than its links
        return min(product([two_norm(link) for link in way]) for way in (self.links, self.core))

    @property
    @override
    def steps(self) -> tuple[Step, ...]:
        found: list[Step] = []
        for link in self.core:
            own = link.steps
            found += [Opaque(two_norm(link), prod(link.out_shape))] if own is None else own
        return tuple(found)

    @property
    @override
    def rule(self) -> str:
        return "composition of componentwise bounds"


def flat(majorant: Majorant) -> list[Majorant]:
    """The parts of a sequence, nested ones included."""
    if not isinstance(majorant, Chain):
        return [majorant]
    return [leaf for link in majorant.links for leaf in flat(link)]


def core(majorant: Majorant) -> list[Majorant]:
    """The parts of a sequence with linear ones in a row multiplied."""
    return majorant.core if isinstance(majorant, Chain) else [majorant]


def _multiplied(links: list[Majorant]) -> list[Majorant]:
    """Runs of two and more linear maps as one, as far as their product is small enough to form."""
    found: list[Majorant] = []
    for linear, group in groupby(links, key=lambda link: link.linear):
        run = list(group)
        found += _formed(run) if linear else run
    return found


def _formed(run: list[Majorant]) -> list[Majorant]:
    found: list[Majorant] = []
    while run:
        # covectors of the last one, pulled back as far as no matrix on the way is too large
        start, m = len(run) - 1, prod(run[-1].out_shape)
        while start and m * max(prod(link.in_shape) for link in run[start - 1 :]) <= LARGEST:
            start -= 1
        found = _one(run[start:]) + found
        run = run[:start]
    return found


def _one(run: list[Majorant]) -> list[Majorant]:
    if sum(not link.neutral for link in run) < 2:
        return run
    last, m = run[-1].out_shape, prod(run[-1].out_shape)
    rows = torch.eye(m, dtype=torch.float64).reshape(m, *last)
    error = torch.zeros_like(rows)
    for link in reversed(run):
        rows, error = link.pull(rows, error)
    return [Product(rows, error, last, tuple(name for link in run for name in link.assumes))]


def product(factors: list[float]) -> float:
    """The product of nonnegative numbers, rounded up; zero times infinity is infinity."""
    return inf if inf in factors else prod(factors) * (1 + 2 * UNIT * len(factors))


def max_norm(majorant: Majorant) -> float:
    """Upper bound of ``||J||`` in the max norm: largest row sum."""
    ones = torch.ones(1, *majorant.in_shape, dtype=torch.float64)
    return _largest(majorant.apply(ones))


def one_norm(majorant: Majorant) -> float:
    """Upper bound of ``||J||`` in the 1-norm: largest column sum, by pulling a covector back."""
    ones = torch.ones(1, *majorant.out_shape, dtype=torch.float64)
    return _largest(majorant.adjoint(ones))


def two_norm(majorant: Majorant) -> float:
    """Upper bound of ``||J||_2``: the best of `spectral`, `singular` and a chain's `chain_gain`."""
    known = _TWO_NORMS.get(majorant)
    if known is None:
        known = min(majorant.spectral, singular(majorant))
        if isinstance(majorant, Chain) and known > 0:
            known = min(known, chain_gain(prod(majorant.in_shape), majorant.steps))
        _TWO_NORMS[majorant] = known
    return known


# majorants do not change
_TWO_NORMS: WeakKeyDictionary[Majorant, float] = WeakKeyDictionary()


def singular(majorant: Majorant, steps: int = 60) -> float:
    """Upper bound of ``|| |J| ||_2``.

    If ``adjoint(apply(w)) <= t w`` for some ``w > 0``, then ``|J|^T |J| w <= t w``, hence
    ``||J||_2 <= || |J| ||_2 <= sqrt(t)`` (Collatz and Wielandt); with ``w`` all ones that is
    at most Schur's ``sqrt(||J||_1 ||J||_inf)``.
    """
    start = torch.ones(1, *majorant.in_shape, dtype=torch.float64)
    found = collatz(lambda w: majorant.adjoint(majorant.apply(w)), start, steps, rtol=1e-3)
    schur = max_norm(majorant) * one_norm(majorant)
    return sqrt(min(found.factor, schur)) * (1 + 8 * UNIT)


def _largest(bound: Tensor) -> float:
    return float(bound.nan_to_num(nan=inf).max()) if bound.numel() else 0.0
