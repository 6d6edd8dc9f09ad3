"""The adjoint of an operator as an operator: what a transposed convolution is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from wellposed.core.operators import Operator
from wellposed.errors import ConfigError


@final
@dataclass(frozen=True, eq=False)
class Adjoint(Operator):
    """``M^T``.

    Args:
        of: ``M``.
    """

    of: Operator

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return self.of.out_shape

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return self.of.in_shape

    @property
    @override
    def weight(self) -> Tensor:
        return self.of.weight

    @property
    @override
    def terms(self) -> int:
        return self.of.adjoint_terms

    @property
    @override
    def adjoint_terms(self) -> int:
        return self.of.terms

    @override
    def with_weight(self, weight: Tensor) -> Adjoint:
        return Adjoint(self.of.with_weight(weight))

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        return self.of.adjoint(x, offset)

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        return self.of.apply(y, offset)

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        return self.of.weight_gradient(x, y)

    @override
    def diagonal(self) -> Tensor:
        return self.of.diagonal()

    @override
    def off_diagonal(self) -> Adjoint:
        return Adjoint(self.of.off_diagonal())

    @override
    def scale_rows(self, scale: Tensor) -> Adjoint:
        raise ConfigError(
            "An adjoint has no rows of its own to scale.",
            hint="scale the columns of the operator beneath.",
        )
