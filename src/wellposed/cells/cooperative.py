"""Cooperative cells: equilibria that rise or fall with chosen inputs, for any parameters."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_cone, check_margin, check_sizes
from wellposed.cells.skewed import skewed
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError


@final
class CooperativeCell(AffineCell):
    """Dense cell whose equilibrium is order-monotone: ``A`` is a Metzler matrix [1].

    ``A = [eta] offdiag(|T|) [eta]^-1 + diag( margin - sum_{j != i} |T_ij| - softplus(d_i) )`` has
    no negative entry off the diagonal and logarithmic max norm below `margin`, as a `NemonCell`
    has; column j of ``B`` is ``s_j |V_j|`` where ``s_j = +-1`` and free where ``s_j = 0``. Then
    every component of ``z*(x)`` rises in inputs of sign +1 and falls in those of sign -1.

    *Proof.* In the canonical form the diagonal is zero, the activation still does not fall, and
    the map ``F(., x)`` contracts. If ``x <= x'`` in the order of the signs, then
    ``z* = F(z*, x) <= F(z*, x')``; iterating ``F(., x')`` from ``z*`` never falls and ends at the
    equilibrium of ``x'``.

    This is monotonicity in the order of vectors, not of operators: `MonotoneCell` is something
    else. A computed equilibrium keeps the order up to its own error (`Solution.error_bound`).

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        signs: +1, -1 or 0 for each input; all +1 by default.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: A sign is none of -1, 0, 1, there are not as many as inputs, or the activation
            leaves the cone.

    References:
        [1] Smith. Monotone dynamical systems. AMS 1995: cooperative systems. The margin is that of
        Jafarpour et al., arXiv 2106.03194.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        signs: Sequence[int] | None = None,
        margin: float = 0.0,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.n_in, self.n_state = n_in, n_state
        self.margin = check_margin(margin)
        self.activation = check_cone(activation or ReLU())
        given = [1] * n_in if signs is None else list(signs)
        if len(given) != n_in or any(s not in (-1, 0, 1) for s in given):
            raise ConfigError(
                f"`signs` must be {n_in} numbers of -1, 0 and 1, one an input, got {given}."
            )
        floats = dtype or torch.get_default_dtype()
        self.signs: Tensor
        self.register_buffer("signs", torch.tensor(given, dtype=floats), persistent=False)
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.T = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.log_eta = nn.Parameter(torch.zeros(n_state, dtype=dtype))
        self.damping = nn.Parameter(torch.full((n_state,), -3.0, dtype=dtype))
        off = 1 - torch.eye(n_state, dtype=dtype)
        self.register_buffer("off_diagonal", off, persistent=False)
        self.off_diagonal: Tensor
        nn.init.uniform_(self.T, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        S, a, eta = skewed(self.T.abs(), self.log_eta, self.damping, self.off_diagonal, self.margin)
        A = Dense.of_parts(S, a)
        V = self.inject.weight
        B = torch.where(self.signs == 0, V, V.abs() * self.signs)
        return Affine(A, Dense(B), self.inject.bias, self.activation, witness=eta)

    @override
    def extra_repr(self) -> str:
        signs = tuple(self.signs.long().tolist())
        return (
            f"{self.n_in}, {self.n_state}, signs={signs}, margin={self.margin}, "
            f"{self.activation.name}"
        )
