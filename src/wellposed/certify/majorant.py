"""Majorants: what a rule says about a module, and how they compose.

A majorant describes a function ``f`` by this promise: for every pair of inputs (of the region)
there is a matrix ``J`` with ``f(x) - f(x') = J (x - x')``, and for all nonnegative ``v`` and ``c``
``|J| v <= apply(v)`` and ``|J|^T c <= adjoint(c)`` componentwise, and ``||J||_2 <= spectral``.
The promise survives composition, and one number can be read off it for each norm.

Everything is computed in float64 on the CPU and rounded outward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf, prod, sqrt
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.spectra import UNIT, collatz, outward


class Majorant(ABC):
    """A componentwise Lipschitz bound of a function between two spaces.

    Args:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
    """

    assumes: tuple[str, ...] = ()

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """An upper bound of ``|J| v``; monotone in ``v``. Shape (batch, *in) -> (batch, *out)."""

    @abstractmethod
    def adjoint(self, c: Tensor) -> Tensor:
        """An upper bound of ``|J|^T c``. Shape (batch, *out) -> (batch, *in)."""

    @property
    def spectral(self) -> float:
        """An upper bound of ``||J||_2`` that need not follow from the other two; or infinity."""
        return inf

    @property
    def rule(self) -> str:
        """The rule behind it, with its source."""
        return "componentwise bound of slopes and weights"


@final
class Slopes(Majorant):
    """An elementwise function whose difference quotients are at most `slope` in absolute value.

    Args:
        slope: Upper bounds, nonnegative, broadcastable against one input.
        shape: Shape of one input.
        assumes: What is taken on trust.
    """

    def __init__(
        self, slope: Tensor | float, shape: tuple[int, ...], assumes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(shape, shape)
        self._slope = torch.as_tensor(slope, dtype=torch.float64).detach().abs()
        self.assumes = assumes
        self._exact = bool(((self._slope == 1) | (self._slope == 0)).all())

    @override
    def apply(self, v: Tensor) -> Tensor:
        return v * self._slope if self._exact else outward(v * self._slope)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return self.apply(c)

    @property
    @override
    def spectral(self) -> float:
        return float(self._slope.max())

    @property
    @override
    def rule(self) -> str:
        return "largest slope of an elementwise function"


@final
class Rearrangement(Majorant):
    """A function that only moves components about: flatten, unflatten, identity."""

    def __init__(self, move: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        moved = move(torch.zeros(1, *shape, dtype=torch.float64))
        super().__init__(shape, tuple(moved.shape[1:]))
        self._move = move

    @override
    def apply(self, v: Tensor) -> Tensor:
        return self._move(v)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return c.reshape(len(c), *self.in_shape)

    @property
    @override
    def spectral(self) -> float:
        return 1.0

    @property
    @override
    def rule(self) -> str:
        return "components are moved, not changed"


@final
class Linear(Majorant):
    """A linear function, given by what its absolute weights do.

    Args:
        absolute: ``v -> |W| v``, differentiable, in float64.
        shape: Shape of one input.
        terms: At least as many as the products summed in any component of ``|W| v`` or
            ``|W|^T c``.
        spectral: Upper bound of ``||W||_2`` if one is known.
        assumes: What is taken on trust.
    """

    def __init__(
        self,
        absolute: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        terms: int,
        *,
        spectral: Callable[[], float] | None = None,
        assumes: tuple[str, ...] = (),
    ) -> None:
        probe = torch.zeros(1, *shape, dtype=torch.float64)
        super().__init__(shape, tuple(absolute(probe).shape[1:]))
        self._absolute, self._terms = absolute, terms
        self._spectral = spectral
        self.assumes = assumes

    @override
    def apply(self, v: Tensor) -> Tensor:
        return outward(self._absolute(v), self._terms)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        with torch.enable_grad():
            point = torch.zeros(len(c), *self.in_shape, dtype=torch.float64, requires_grad=True)
            (pulled,) = torch.autograd.grad(self._absolute(point), point, c)
        return outward(pulled, self._terms)

    @property
    @override
    def spectral(self) -> float:
        return inf if self._spectral is None else self._spectral()

    @property
    @override
    def rule(self) -> str:
        return "absolute weights of a linear map"


@final
class Maximum(Majorant):
    """The largest component in each of several windows.

    For a pair of inputs every row of ``J`` is a convex combination of the unit vectors of its
    window (mean value theorem), so that ``|J| v`` is at most the largest ``v`` of the window.

    Args:
        maximum: The pooling itself.
        total: The sum over the same windows.
        shape: Shape of one input.
        terms: At least the size of a window, and the number of windows that share a component.
    """

    def __init__(
        self,
        maximum: Callable[[Tensor], Tensor],
        total: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        terms: int,
    ) -> None:
        pooled = maximum(torch.zeros(1, *shape, dtype=torch.float64))
        super().__init__(shape, tuple(pooled.shape[1:]))
        self._maximum = maximum
        self._windows = Linear(total, shape, terms)

    @override
    def apply(self, v: Tensor) -> Tensor:
        return self._maximum(v)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return self._windows.adjoint(c)

    @property
    @override
    def spectral(self) -> float:
        # ||J||_inf <= 1 and ||J||_1 is at most the number of windows that share a component
        shared = self.adjoint(torch.ones(1, *self.out_shape, dtype=torch.float64))
        return sqrt(float(shared.max())) * (1 + 4 * UNIT)

    @property
    @override
    def rule(self) -> str:
        return "the largest of a window moves by at most the largest move"


@final
class Chain(Majorant):
    """Functions applied one after the other."""

    def __init__(self, links: list[Majorant], shape: tuple[int, ...]) -> None:
        super().__init__(shape, links[-1].out_shape if links else shape)
        self.links = links
        names = [name for link in links for name in link.assumes]
        self.assumes = tuple(dict.fromkeys(names))

    @override
    def apply(self, v: Tensor) -> Tensor:
        for link in self.links:
            v = link.apply(v)
        return v

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        for link in reversed(self.links):
            c = link.adjoint(c)
        return c

    @property
    @override
    def spectral(self) -> float:
        return product([two_norm(link) for link in self.links])

    @property
    @override
    def rule(self) -> str:
        return "composition of componentwise bounds"


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
    """Upper bound of ``||J||_2``: the better of `spectral` and a verified singular vector."""
    return min(majorant.spectral, singular(majorant))


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
