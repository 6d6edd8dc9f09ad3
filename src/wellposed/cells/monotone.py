"""Monotone cells: affine cells with a strongly monotone ``I - A`` by construction."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, final

import torch
from torch import nn
from typing_extensions import override

from wellposed.cells.accretive import accretive
from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_cone, check_modulus, check_sizes
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.solvers.base import Solver
from wellposed.solvers.splitting import PeacemanRachford


@final
class MonotoneCell(AffineCell):
    """Dense cell with ``(I - A) + (I - A)^T >= 2 margin I`` for any parameters [1].

    ``A = (1 - margin - r) I - F^T F + S - S^T`` with ``F, S`` free and ``r >= 0`` just large enough
    to absorb the rounding of the product. The equilibrium is unique and ``1 / margin``-Lipschitz in
    the injection, in the 2-norm; the max norm need not contract, so plain iteration may diverge.
    Operator splitting converges: `PeacemanRachford` and `DouglasRachford` for any positive steps
    ``alpha_i``, in the 2-norm weighted by ``1 / alpha_i`` [2]; `ForwardBackward` needs a step below
    ``2 margin / ||I - A||^2``, far less than its default. `Auto` was not seen to fail here either,
    at up to twice the evaluations.

    With `scaled`, ``A`` is ``[1/d] (...) [d]`` with ``d = exp(asinh(log_scale))`` free, so that
    ``Lam (I - A) + (I - A)^T Lam >= 2 margin Lam`` for ``Lam = [d]^2`` [3, condition 1]: all
    networks that are monotone in some diagonal metric, at one more number a state.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        margin: Modulus of strong monotonicity, positive. The published 20 with all other
            parameters multiplied by ``sqrt(20)`` or 20 is the same network.
        scaled: Whether the metric is free.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: The margin is not positive, or the activation leaves the cone.

    References:
        [1] Winston, Kolter. Monotone operator equilibrium networks. NeurIPS 2020. arXiv 2006.08591,
        proposition 1.
        [2] Lions, Mercier. Splitting algorithms for the sum of two nonlinear operators. SIAM J.
        Numer. Anal. 16(6), 1979: one of the operators is strongly monotone and Lipschitz.
        [3] Revay, Wang, Manchester. Lipschitz bounded equilibrium networks. 2020. arXiv 2010.01732.
    """

    preferred: ClassVar[Solver | None] = PeacemanRachford()

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        margin: float = 1.0,
        scaled: bool = False,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.n_in, self.n_state, self.margin = n_in, n_state, check_modulus(margin)
        self.activation = check_cone(activation or ReLU())
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.F = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.S = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(n_state, dtype=dtype)) if scaled else None
        for weight in (self.F, self.S):
            nn.init.uniform_(weight, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        # mixed precision would lower the product, and with it the bound
        with torch.autocast(self.F.device.type, enabled=False):
            whole, metric = accretive(self.F, self.S, self.margin), None
        if self.log_scale is not None:
            d = torch.asinh(self.log_scale).exp()
            whole, metric = whole * (d / d[:, None]), d.square()
        A, B = Dense(whole), Dense(self.inject.weight)
        return Affine(A, B, self.inject.bias, self.activation, metric=metric)

    @override
    def extra_repr(self) -> str:
        scaled = "" if self.log_scale is None else "scaled, "
        return f"{self.n_in}, {self.n_state}, margin={self.margin}, {scaled}{self.activation.name}"
