"""A valid upper bound of a 2-norm within training, at the price of one step of power iteration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import inf, prod, sqrt
from typing import final

import torch
from torch import Tensor, nn

from wellposed.core.brackets import NormBracket, bracket
from wellposed.core.convolutions import GeneralConvolution, general
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.opnorm import operator_norm
from wellposed.core.spectra import UNIT, outward
from wellposed.core.tori import torus
from wellposed.core.transposed import Adjoint
from wellposed.errors import ConfigError, NotCertifiableError

_FIRST = 20  # steps of the power method at the first call


@final
@dataclass(frozen=True, eq=False)
class WarmValue:
    """What one step knows of a norm.

    Args:
        value: ``<u, M v>`` with the present vectors; its gradient is ``u v^T``. From below.
        bracket: Bounds of the norm, both proved.
        refreshed: Whether the upper bound was computed anew.
    """

    value: Tensor
    bracket: NormBracket
    refreshed: bool


@final
class WarmNorm(nn.Module):
    """The 2-norm of an operator whose weights move a little at a time.

    Vectors are kept from call to call and improved by one step of the power method, which gives
    the value and its gradient. The bounds are those of the last exact computation, wider by a
    bound of what the weights have moved since: ``| ||M + E|| - ||M|| | <= ||E||`` (Weyl).

    Args:
        operator: One with the structure and the present weights.
        refresh: Calls after which the bound is computed anew.
        width: Relative growth by movement after which it is computed anew.

    Raises:
        ConfigError: `refresh` is not positive or `width` is negative.
    """

    vector: Tensor
    known: Tensor
    lower: Tensor
    upper: Tensor
    age: Tensor

    def __init__(self, operator: Operator, *, refresh: int = 100, width: float = 0.05) -> None:
        super().__init__()
        if refresh < 1 or not width >= 0:
            raise ConfigError(
                f"Needs refresh >= 1 and width >= 0, got refresh={refresh} and width={width}."
            )
        self.refresh, self.width = refresh, width
        weight = operator.weight.detach()
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(1, *operator.in_shape, generator=generator).to(weight)
        self.register_buffer("vector", start / start.norm())
        self.register_buffer("known", weight.clone())
        self.register_buffer("lower", torch.tensor(0.0, dtype=torch.float64, device=weight.device))
        self.register_buffer("upper", torch.tensor(inf, dtype=torch.float64, device=weight.device))
        self.register_buffer("age", torch.tensor(0, device=weight.device))

    def forward(self, operator: Operator) -> WarmValue:
        """The norm of `operator`, whose structure is that given at construction.

        Raises:
            NotCertifiableError: A weight is not finite, or nothing bounds how far this operator
                moves.
        """
        fixed = operator.detach()
        with torch.no_grad():
            v = self.vector.clone()
            for _ in range(1 if float(self.upper) < inf else _FIRST):
                v = _unit(fixed.adjoint(fixed.apply(v)))
            u = _unit(fixed.apply(v))
            self.vector.copy_(v)
            moved = fixed.weight.double() - self.known.double()
            drift = quick_bound(fixed.to(torch.float64).with_weight(moved)) * (1 + 4 * UNIT)
            upper = float(self.upper)
            stale = int(self.age) >= self.refresh or not drift <= self.width * upper
            if stale or upper == inf:
                found, drift = operator_norm(fixed), 0.0
                self.lower.fill_(found.lower)
                self.upper.fill_(found.upper)
                self.known.copy_(fixed.weight)
                self.age.zero_()
            self.age.add_(1)
        value = (operator.apply(v) * u).sum()
        found = bracket(
            (float(self.lower) - drift) * (1 - 4 * UNIT),
            (float(self.upper) + drift) * (1 + 4 * UNIT),
            "last computed norm and movement since",
        )
        return WarmValue(value, found, drift == 0.0)


@singledispatch
def quick_bound(operator: Operator) -> float:
    """An upper bound of the 2-norm from one look at the weights, in float64.

    A matrix: its Frobenius norm. A convolution: ``sqrt(taps) ||K||_F``, of the largest group.

    Raises:
        NotCertifiableError: The operator is of another kind.
    """
    raise NotCertifiableError(
        f"{type(operator).__name__} has no quick bound of its 2-norm.",
        hint="register one with `@wellposed.core.warm.quick_bound.register`.",
    )


@quick_bound.register
def _dense(operator: Dense) -> float:
    square = outward(operator.matrix.double().square().sum(), operator.matrix.numel())
    return sqrt(float(square)) * (1 + 4 * UNIT)


@quick_bound.register
def _general(operator: GeneralConvolution) -> float:
    groups = operator.kernel.double().unflatten(0, (operator.groups, -1)).flatten(1)
    square = outward(groups.square().sum(1), groups.shape[1]).amax()
    taps = prod(operator.kernel.shape[2:])
    # the factor for copied pixels does not depend on the weights
    return sqrt(float(square) * taps) * torus(operator).factor * (1 + 16 * UNIT)


@quick_bound.register
def _convolution(operator: Convolution) -> float:
    return quick_bound(general(operator))


@quick_bound.register
def _adjoint(operator: Adjoint) -> float:
    return quick_bound(operator.of)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)
