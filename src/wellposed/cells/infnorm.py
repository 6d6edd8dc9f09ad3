"""Cells whose state matrix has a bounded infinity norm: the implicit deep learning baseline."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_sizes, strictly
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError


@final
class InfNormCell(AffineCell):
    """Dense cell with ``||A||_inf <= bound`` for any parameters [1].

    ``A_i = W_i min(1, bound / ||W_i||_1)``, row by row: rows inside the ball are free, others are
    pulled back onto it. Plain iteration contracts in the max norm by ``bound`` times the steepest
    slope of the activation, which may leave [0, 1] as long as that product stays below 1.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        bound: Upper bound of the norm.
        activation: ReLU by default; GELU asks for ``bound < 0.885``, SiLU for ``bound < 0.909``.
        dtype: Of the parameters.

    Raises:
        ConfigError: ``bound`` times the steepest slope is not below 1.

    References:
        [1] El Ghaoui, Gu, Travacca, Askari, Tsai. Implicit deep learning. SIMODS 2021. arXiv
        1908.06315: well-posedness for ``||A||_inf < 1``. Published training projects the rows on
        the ball; here they are scaled, which is differentiable.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        bound: float = 0.95,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.activation = activation or ReLU()
        steepest = self.activation.steepest
        if not (bound > 0 and bound * steepest < 1):
            raise ConfigError(
                f"`bound` must lie in (0, {1 / steepest:.4g}) for {self.activation.name}, whose "
                f"slopes reach {steepest:.4g} in absolute value; got {bound}.",
                hint="bound times slope is the contraction factor and must stay below 1.",
            )
        self.n_in, self.n_state, self.bound = n_in, n_state, float(bound)
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.W = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        nn.init.uniform_(self.W, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        size = torch.linalg.vector_norm(self.W, 1, dim=1, keepdim=True)
        limit = self.bound / strictly(self.W)
        A = self.W * (limit / size.clamp(min=limit))
        eta = torch.ones_like(self.inject.bias)
        return Affine(
            Dense(A), Dense(self.inject.weight), self.inject.bias, self.activation, witness=eta
        )

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, bound={self.bound}, {self.activation.name}"
