"""Subhomogeneous cells: weights of any size and sign, contraction of logarithms by construction."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import Cell
from wellposed.cells.checks import check_input, check_sizes
from wellposed.core.maps import FunctionMap
from wellposed.errors import ConfigError

LEAST = 1e-30
"""Smallest floor: far above the numbers at which products underflow."""


@final
class RatioWeights(NamedTuple):
    """Explicit weights of `SubhomogeneousCell`.

    Args:
        E: Excitation, shape (n, n); nonnegative where the theory holds.
        I: Inhibition, alike.
        U: Shape (n, d).
        b: Shape (n,).
        degree: In (0, 1).
        floor: Positive.
    """

    E: Tensor
    I: Tensor  # noqa: E741 - excitation and inhibition
    U: Tensor
    b: Tensor
    degree: float
    floor: float


@final
class SubhomogeneousCell(Cell):
    """``z = ( (T+ z + f + s(u)) / (T- z + f + s(-u)) )^(p/2)``, ``u = U x + b``; returns ``log z``.

    ``T+`` and ``T-`` are the positive and negative parts of a free matrix, ``s`` is the sigmoid.
    Excitation over inhibition, raised to a power, is positive and subhomogeneous of degree
    ``p < 1`` [1]: in Thomson's metric, the max norm of ``y = log z``, which is the state, it
    contracts by ``p``, because row i of the Jacobian in ``y`` has the absolute sum
    ``p/2 ((T+ z)_i / (T+ z + q)_i + (T- z)_i / (T- z + q')_i) < p``. The equilibrium is unique and
    plain iteration converges at that rate for weights of any size and sign.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        degree: ``p``, in (0, 1).
        floor: ``f``, smallest injection; at least `LEAST`.
        dtype: Of the parameters.

    Raises:
        ConfigError: The degree or the floor is out of its range.

    References:
        [1] Sittoni, Tudisco. Subhomogeneous deep equilibrium models. ICML 2024. arXiv 2403.00720:
        uniqueness and rate by Thomson's metric. The ratio that allows both signs is ours.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        degree: float = 0.9,
        floor: float = 0.01,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        if not 0 < degree < 1:
            raise ConfigError(
                f"`degree` must lie in (0, 1), got {degree}.",
                hint="it is the factor by which plain iteration contracts.",
            )
        if not (floor >= LEAST and isfinite(floor)):
            raise ConfigError(f"`floor` must be finite and at least {LEAST:g}, got {floor}.")
        self.n_in, self.n_state = n_in, n_state
        self.degree, self.floor = float(degree), float(floor)
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.T = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        nn.init.uniform_(self.T, -1 / sqrt(n_state), 1 / sqrt(n_state))

    def explicit(self) -> RatioWeights:
        """The weights after parametrisation: the only place where parameters become weights."""
        E, inhibition = self.T.relu(), (-self.T).relu()
        return RatioWeights(
            E, inhibition, self.inject.weight, self.inject.bias, self.degree, self.floor
        )

    @override
    def bind(self, x: Tensor) -> FunctionMap:
        E, inhibition, U, b, degree, floor = self.explicit()
        check_input(x, (self.n_in,), U)
        u = torch.addmm(b, x, U.mT).to(b.dtype)

        def ratio(y: Tensor, *tensors: Tensor) -> Tensor:
            up, down, more, less = tensors
            # logarithms of sums of mixed precision would not be worth their digits
            with torch.autocast(y.device.type, enabled=False):
                z = y.exp()
                excited, inhibited = torch.addmm(more, z, up.mT), torch.addmm(less, z, down.mT)
                return degree / 2 * (excited.log() - inhibited.log())

        tensors = (E, inhibition, floor + u.sigmoid(), floor + (-u).sigmoid())
        return FunctionMap(ratio, tensors, (False, False, True, True))

    @override
    def start(self, x: Tensor, map_: object) -> Tensor:
        return torch.zeros(len(x), self.n_state, dtype=self.T.dtype, device=x.device)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, degree={self.degree}, floor={self.floor}"
