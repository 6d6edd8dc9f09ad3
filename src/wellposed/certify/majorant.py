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
from typing import ClassVar, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.eclipse import LARGEST, WIDEST
from wellposed.certify.ellipsoid import Opaque, Slope, Step, Weights
from wellposed.certify.multipliers import chain_gain
from wellposed.core.spectra import UNIT, collatz, outward, rounding


class Majorant(ABC):
    """A componentwise Lipschitz bound of a function between two spaces.

    Args:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
    """

    assumes: tuple[str, ...] = ()
    neutral: ClassVar[bool] = False
    """Whether it acts alike in every norm, as elementwise functions do."""

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
    def steps(self) -> tuple[Step, ...] | None:
        """What is known of ``J`` beyond its absolute value; `None` if nothing is."""
        return None

    @property
    def summands(self) -> tuple[Majorant, ...]:
        """Majorants of functions that this one is the sum of, if it is one."""
        return ()

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
        quotients: Smallest and largest difference quotients, where more is known than `slope`.
    """

    neutral: ClassVar[bool] = True

    def __init__(
        self,
        slope: Tensor | float,
        shape: tuple[int, ...],
        assumes: tuple[str, ...] = (),
        *,
        quotients: tuple[Tensor | float, Tensor | float] | None = None,
    ) -> None:
        super().__init__(shape, shape)
        self._slope = torch.as_tensor(slope, dtype=torch.float64).detach().abs()
        self._quotients = quotients
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
    def steps(self) -> tuple[Step, ...]:
        ends = (-self._slope, self._slope) if self._quotients is None else self._quotients
        low, high = (
            torch.as_tensor(end, dtype=torch.float64).detach().expand(self.in_shape).flatten()
            for end in ends
        )
        if len(low) > WIDEST and not torch.equal(low, high):
            return (Opaque(self.spectral, len(low)),)
        return (Slope(low, high),)

    @property
    @override
    def rule(self) -> str:
        return "largest slope of an elementwise function"


@final
class Rearrangement(Majorant):
    """A function that only moves components about: flatten, unflatten, identity."""

    neutral: ClassVar[bool] = True

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
    def steps(self) -> tuple[Step, ...]:
        return ()  # every one of them keeps the order of components

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
        signed: ``x -> W x``, where it is known.
        assumes: What is taken on trust.
    """

    def __init__(
        self,
        absolute: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        terms: int,
        *,
        spectral: Callable[[], float] | None = None,
        signed: Callable[[Tensor], Tensor] | None = None,
        assumes: tuple[str, ...] = (),
    ) -> None:
        probe = torch.zeros(1, *shape, dtype=torch.float64)
        super().__init__(shape, tuple(absolute(probe).shape[1:]))
        self._absolute, self._terms = absolute, terms
        self._spectral, self._signed = spectral, signed
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
    def steps(self) -> tuple[Step, ...] | None:
        n_in, n_out = prod(self.in_shape), prod(self.out_shape)
        if self._signed is None or n_out > WIDEST or n_in * n_out > LARGEST:
            return None
        eye = torch.eye(n_in, dtype=torch.float64).reshape(n_in, *self.in_shape)
        matrix = self._signed(eye).reshape(n_in, n_out).mT.contiguous()
        size = self._absolute(eye).reshape(n_in, n_out).mT
        return (Weights(matrix, rounding(self._terms + 8) * size),)

    @property
    @override
    def rule(self) -> str:
        return "absolute weights of a linear map"


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
    def steps(self) -> tuple[Step, ...]:
        found: list[Step] = []
        for link in self.links:
            own = link.steps
            found += [Opaque(two_norm(link), prod(link.out_shape))] if own is None else own
        return tuple(found)

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
