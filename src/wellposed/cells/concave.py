"""Positive concave cells: nonnegative weights of any size under an increasing concave function."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import Cell
from wellposed.cells.checks import check_input, check_sizes
from wellposed.core.activations import Sigmoid, Tanh
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.core.scalar import Activation
from wellposed.errors import ConfigError

CONCAVE = (Tanh, Sigmoid)
"""Activations that on ``v >= 0`` are nonnegative, at most 1, increasing and concave."""


@final
class ConcaveWeights(NamedTuple):
    """Explicit weights of ``z = phi(W z + floor + relu(U x + b))``.

    Args:
        W: Shape (n, n); nonnegative with a zero diagonal where the theory holds.
        U: Shape (n, d).
        b: Shape (n,).
        floor: Positive.
        activation: ``phi``.
    """

    W: Tensor
    U: Tensor
    b: Tensor
    floor: float
    activation: Activation


@final
class PositiveConcaveCell(Cell):
    """``z = phi(W z + floor + relu(U x + b))`` with ``W = |T| / sqrt(n)``, zero diagonal [1].

    The injection is positive and ``phi`` increasing and concave on positive numbers, so that the
    right-hand side is a positive concave mapping of ``z >= 0`` and hence a standard interference
    mapping [2]: the equilibrium exists, is unique and positive, and plain iteration converges to it
    geometrically from anywhere - for weights of any size. No norm of ``W`` need be below 1. The
    equilibrium increases with the injection and is concave in it.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        activation: `Tanh` (the default) or `Sigmoid`.
        floor: Smallest injection, positive; the slopes of the equilibrium grow as it shrinks.
        dtype: Of the parameters.

    Raises:
        ConfigError: The floor is not positive, or the activation is another one.

    References:
        [1] Gabor, Piotrowski, Cavalcante. Positive concave deep equilibrium models. ICML 2024.
        [2] Yates. A framework for uplink power control in cellular radio systems. IEEE JSAC 13(7),
        1995: positivity, monotonicity and scalability make the fixed point unique.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        activation: Activation | None = None,
        floor: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.activation = activation or Tanh()
        if not isinstance(self.activation, CONCAVE):
            raise ConfigError(
                f"{self.activation.name} is not known to be bounded, increasing and concave on "
                "positive numbers.",
                hint="use `Tanh()` or `Sigmoid()`.",
            )
        if not (floor > 0 and isfinite(floor)):
            raise ConfigError(
                f"`floor` must be positive and finite, got {floor}: without an injection the "
                "equilibrium need not be unique."
            )
        self.n_in, self.n_state, self.floor = n_in, n_state, float(floor)
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.T = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        off = 1 - torch.eye(n_state, dtype=dtype)
        self.register_buffer("off_diagonal", off, persistent=False)
        self.off_diagonal: Tensor
        # all signs agree: rows of size one need entries of 1 / n instead of 1 / sqrt(n), and the
        # steps of an optimiser have to shrink along
        nn.init.uniform_(self.T, 0, 1 / sqrt(n_state))
        nn.init.uniform_(self.inject.weight, -1 / sqrt(n_in), 1 / sqrt(n_in))

    def explicit(self) -> ConcaveWeights:
        """The weights after parametrisation: the only place where parameters become weights."""
        W = self.T.abs() * (self.off_diagonal / sqrt(self.n_state))
        return ConcaveWeights(W, self.inject.weight, self.inject.bias, self.floor, self.activation)

    @override
    def bind(self, x: Tensor) -> AffineMap:
        W, U, b, floor, phi = self.explicit()
        check_input(x, (self.n_in,), U)
        offset = torch.relu(torch.addmm(b, x, U.mT)).to(b.dtype) + floor
        # the diagonal is zero: there is nothing to resolve
        return AffineMap(Dense(W), offset, phi, canonical_form=True)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, {self.activation.name}, floor={self.floor}"
