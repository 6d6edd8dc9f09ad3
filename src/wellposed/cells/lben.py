"""Lipschitz-bounded equilibrium networks: a cell that owns its input and output weights."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.accretive import Weights, bounded
from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_cone, check_sizes
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError


@final
class LBENCell(AffineCell):
    """Dense cell that makes ``y = C z + D x + c`` ``gamma``-Lipschitz in the 2-norm [1].

    ``W = I - Psi H`` with ``Psi = diag(exp(asinh(p)))`` and

        H = V^T V + margin I + S - S^T + ( C^T C + X (I + K^T K) X^T ) / (2 gamma),
        X = Psi^-1 U + C^T N,   N = L^-1 K,   L L^T = I + K K^T,   D = gamma N,

    for free ``V, S, p, U, C, K``. Then ``Lam = Psi^-1`` satisfies, with at least ``2 margin I`` to
    spare, the matrix inequality of the theorem: for ``Z = 2 Lam - Lam W - W^T Lam``,

        [ Z - C^T C / gamma               -Lam U - C^T D / gamma  ]
        [ -U^T Lam - D^T C / gamma     gamma I - D^T D / gamma ]   >=  0,

    because ``(gamma I - D^T D / gamma)^-1 = (I + K^T K) / gamma`` and any ``||D|| < gamma`` has
    this form. Without a skip path ``K = 0`` and this is the published parametrisation, up to its
    factors of 2; without `gamma` the last term of ``H`` is absent and the network is well posed
    only. What rounding can take away is added to the diagonal of ``H``, so that the inequality
    holds for the weights as computed. `certify.lmi` measures it on them.

    Operator splitting converges: ``Lam (I - W)`` is strongly monotone, so `PeacemanRachford` and
    `DouglasRachford` contract for any positive steps ``alpha_i`` in the norm weighted by
    ``Lam_i / alpha_i``.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        n_out: Length of the output.
        gamma: Bound of the Lipschitz constant from ``x`` to ``y``, positive; `None` for none.
        margin: Added to ``H``; positive. The published value is 1.
        skip: Whether there is a path ``D x``; needs `gamma`.
        activation: Slopes in [0, 1]; ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: `gamma` or `margin` is not positive and finite, or the activation leaves the
            cone.

    References:
        [1] Revay, Wang, Manchester. Lipschitz bounded equilibrium networks. arXiv 2010.01732,
        theorems 2 and 4 (without the skip path).
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        n_out: int,
        *,
        gamma: float | None,
        margin: float = 0.1,
        skip: bool = False,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state, n_out=n_out)
        if gamma is not None and not (gamma > 0 and isfinite(gamma)):
            raise ConfigError(
                f"`gamma` must be positive and finite, got {gamma}: it bounds a gain.",
                hint="None asks for a well-posed network without a bound.",
            )
        if not (margin > 0 and isfinite(margin)):
            raise ConfigError(
                f"`margin` must be positive and finite, got {margin}: the equilibrium is only "
                "proved to exist if it is.",
                hint="0.1 is a good choice.",
            )
        if skip and gamma is None:
            raise ConfigError(
                "`skip` needs `gamma`: without a bound there is nothing to tie the path to.",
                hint="give `gamma`, or add a linear layer beside the network.",
            )
        self.n_in, self.n_state, self.n_out = n_in, n_state, n_out
        self.gamma = None if gamma is None else float(gamma)
        self.margin = float(margin)
        self.activation = check_cone(activation or ReLU())
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.readout = nn.Linear(n_state, n_out, dtype=dtype)
        self.V = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.S = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.log_psi = nn.Parameter(torch.zeros(n_state, dtype=dtype))
        self.K = nn.Parameter(torch.empty(n_out, n_in, dtype=dtype)) if skip else None
        for weight in (self.V, self.S, *([] if self.K is None else [self.K])):
            bound = 1 / sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)

    @property
    def psi(self) -> Tensor:
        """The diagonal of ``Psi``, positive: the inverse of the multiplier ``Lam``."""
        # `asinh` is a logarithm: neither this nor its inverse overflows
        return torch.asinh(self.log_psi).exp()

    @override
    def explicit(self) -> Affine:
        # mixed precision would lower the products, and with them the bound
        with torch.autocast(self.V.device.type, enabled=False):
            W, psi = self._weights() if self.K is None else self._with_path()
        return Affine(
            Dense(W),
            Dense(self.inject.weight),
            self.inject.bias,
            self.activation,
            metric=psi.reciprocal(),
        )

    def _weights(self) -> tuple[Tensor, Tensor]:
        scale = 0.0 if self.gamma is None else 1 / (2 * self.gamma)
        U, C = self.inject.weight, self.readout.weight
        weights = Weights(self.V, self.S, self.log_psi, U, C)
        return bounded(weights, self.margin, scale, self._terms())

    def _with_path(self) -> tuple[Tensor, Tensor]:
        psi, factors = self.psi, self.factors()
        whole = self.S - self.S.mT
        # as in `bounded`, and what an error in `N` costs
        with torch.no_grad():
            size = torch.linalg.vector_norm(whole) + self._hidden(factors)
            for factor in factors:
                size = size + factor.square().sum()
            unit = self._terms() * torch.finfo(whole.dtype).eps
            room = self.margin + unit * (size + self.margin + 1 / psi)
        for factor in factors:
            whole = torch.addmm(whole, factor, factor.mT)
        H = whole.diagonal_scatter(torch.diagonal(whole) + room)
        feedback = -psi[:, None] * H
        return feedback.diagonal_scatter(1 + torch.diagonal(feedback)), psi

    def _terms(self) -> int:
        return max(self.n_in, self.n_state, self.n_out) + 16

    def direct(self) -> Tensor | None:
        """``D``, shape (n_out, n_in); `None` without a skip path."""
        if self.K is None or self.gamma is None:
            return None
        with torch.autocast(self.K.device.type, enabled=False):
            # a little below gamma, so that rounding leaves ||D|| below it
            return self.gamma * (1 - self._room(self.K)) * self._unit(self.K)

    def _unit(self, K: Tensor) -> Tensor:
        """``N = L^-1 K``: ``N N^T = I - (L L^T)^-1``."""
        eye = torch.eye(self.n_out, dtype=K.dtype, device=K.device)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(eye + K @ K.mT), K, upper=False)

    def _room(self, K: Tensor) -> float:
        return 4 * (self.n_out + 8) * torch.finfo(K.dtype).eps

    def _hidden(self, factors: list[Tensor]) -> Tensor | float:
        """What an error of a unit in ``N`` and ``D`` costs, in units."""
        if self.K is None:
            return 0.0
        # (gamma I - D^T D / gamma)^-1 has the norm (1 + ||K||^2) / gamma
        _, C, X, _ = factors
        return 8 * (1 + self.K.square().sum()) * (C.square().sum() + X.square().sum())

    def factors(self) -> list[Tensor]:
        """``F`` such that ``H`` is the sum of all ``F F^T`` and of what is skew."""
        if self.gamma is None:
            return [self.V.mT]
        scale = 1 / sqrt(2 * self.gamma)
        X, C = self.inject.weight / self.psi[:, None], self.readout.weight
        if self.K is None:
            return [self.V.mT, scale * C.mT, scale * X]
        joined = X + C.mT @ self._unit(self.K)
        return [self.V.mT, scale * C.mT, scale * joined, scale * (joined @ self.K.mT)]

    @override
    def extra_repr(self) -> str:
        skip = "" if self.K is None else ", skip=True"
        return (
            f"{self.n_in}, {self.n_state}, {self.n_out}, gamma={self.gamma}, "
            f"margin={self.margin}{skip}, {self.activation.name}"
        )
