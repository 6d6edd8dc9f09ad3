"""Linear maps with a right-hand side: adjoint and tangent equations of fixed points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from wellposed.core.inverse import Memo
from wellposed.core.maps import Map
from wellposed.core.operators import Operator


@final
@dataclass(frozen=True, eq=False)
class Transpose:
    """What a `LinearMap` is made of if it is ``w -> [d] A^T w + rhs`` with tensors ``(A, d)``.

    Args:
        operator: ``A``, whose weight is the map's first argument.
        memo: Of the map whose adjoint equation this is.
        binary: Whether the slopes ``d`` are known to be 0 or 1, and `rhs` zero where they are 0.
    """

    operator: Operator
    memo: Memo
    binary: bool = False


@final
@dataclass(frozen=True, eq=False)
class LinearMap(Map):
    """``u -> M u + rhs``; the adjoint and tangent equations of a fixed point have this form.

    Args:
        make: Builds ``u -> M u`` from `arguments`.
        rhs: One row a sample.
        arguments: Tensors that ``M`` depends on.
        flags: Which of them have one row a sample; `None` if unknown.
        fuse: Builds ``(u, rhs) -> M u + rhs`` from `arguments`, where that is cheaper than its
            two steps.
        form: The structure of ``M``, if it is the transpose of an affine map's.
    """

    make: Callable[..., Callable[[Tensor], Tensor]]
    rhs: Tensor
    arguments: tuple[Tensor, ...] = ()
    flags: tuple[bool, ...] | None = None
    fuse: Callable[..., Callable[[Tensor, Tensor], Tensor]] | None = None
    form: Transpose | None = None
    block: ClassVar[int] = 4

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.rhs, *self.arguments)

    @property
    @override
    def batched(self) -> tuple[bool, ...] | None:
        return None if self.flags is None else (True, *self.flags)

    @override
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> LinearMap:
        return replace(self, rhs=tensors[0], arguments=tensors[1:])

    def __post_init__(self) -> None:
        object.__setattr__(self, "matvec", self.make(*self.arguments))
        fused = None if self.fuse is None else self.fuse(*self.arguments)
        object.__setattr__(self, "_fused", fused)

    matvec: Callable[[Tensor], Tensor] = None  # type: ignore[assignment]  # set once, above
    _fused: Callable[[Tensor, Tensor], Tensor] | None = None

    @override
    def __call__(self, z: Tensor) -> Tensor:
        return self.matvec(z) + self.rhs if self._fused is None else self._fused(z, self.rhs)

    @property
    @override
    def closed(self) -> bool:
        return self._fused is not None

    @override
    def start(self) -> Tensor:
        return self.rhs
