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
from math import inf, prod
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.eclipse import LARGEST, WIDEST
from wellposed.certify.ellipsoid import Opaque, Slope, Step, Weights
from wellposed.core.spectra import UNIT, outward, rounding

_ALIKE = 1e-12  # relative width of an interval of quotients that stands for one number


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
    def linear(self) -> bool:
        """Whether ``J`` is within rounding of one matrix for all pairs, known with its signs."""
        return False

    def pull(self, rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Covectors through the transpose of ``J``, if it is `linear`.

        Args:
            rows: Shape (batch, *out).
            error: Bound of their distance from the covectors that are meant, entry by entry.

        Returns:
            ``J^T rows`` and such a bound, of shape (batch, *in).
        """
        raise NotImplementedError(f"{type(self).__name__} is not known as one matrix")

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
    def linear(self) -> bool:
        if self._quotients is None:
            return False
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in self._quotients)
        return bool((high - low <= _ALIKE * self._slope).all())

    @override
    def pull(self, rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        assert self._quotients is not None
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in self._quotients)
        middle = (low + high) / 2
        out, spread = rows * middle, (high - low) / 2 + 2 * UNIT * self._slope
        return out, outward(error * self._slope + rows.abs() * spread, 4)

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
    def linear(self) -> bool:
        return True

    @override
    def pull(self, rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        return self.adjoint(rows), self.adjoint(error)

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
        return outward(self._transposed(self._absolute, c), self._terms)

    @property
    @override
    def linear(self) -> bool:
        return self._signed is not None

    @override
    def pull(self, rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        assert self._signed is not None
        gamma = 2 * rounding(self._terms + 8)
        return self._transposed(self._signed, rows), self.adjoint(error + gamma * rows.abs())

    def _transposed(self, apply: Callable[[Tensor], Tensor], c: Tensor) -> Tensor:
        with torch.enable_grad():
            point = torch.zeros(len(c), *self.in_shape, dtype=torch.float64, requires_grad=True)
            return torch.autograd.grad(apply(point), point, c)[0]

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
