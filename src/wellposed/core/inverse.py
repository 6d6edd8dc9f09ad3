"""Inverses ``(I + [steps](I - A))^-1`` of operator splitting, and a memory for them.

The inverse of a convolution padded with zeros is not a convolution. It is never needed: the state
is extended by a border on which a circular convolution cannot tell the difference, and the other
operator of the splitting holds the border at zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import singledispatch
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.operators import Dense, Operator
from wellposed.core.peel import wrapped
from wellposed.errors import ConfigError


class Inverse(ABC):
    """``R = (I + [steps](I - A))^-1`` on a space that holds the states.

    Args:
        steps: ``alpha``, positive, broadcastable against a state.
    """

    steps: Tensor

    @property
    def mask(self) -> Tensor | None:
        """1 on states, 0 on the border of the larger space; `None` if there is no border."""
        return None

    def enter(self, z: Tensor) -> Tensor:
        """A state as an element of the larger space, zero on the border."""
        return z

    def leave(self, u: Tensor) -> Tensor:
        """The part of an element that is a state."""
        return u

    @abstractmethod
    def apply(self, h: Tensor) -> Tensor:
        """``R h``."""

    @abstractmethod
    def adjoint(self, h: Tensor) -> Tensor:
        """``R' h = (I + [steps](I - A^T))^-1 h = [steps] R^T [1/steps] h``."""

    @abstractmethod
    def reflect(self, h: Tensor) -> Tensor:
        """``(2 R - I) h``: all of `R` that a reflected splitting needs."""

    @abstractmethod
    def reflect_adjoint(self, h: Tensor) -> Tensor:
        """``(2 R' - I) h``."""


@final
class DenseInverse(Inverse):
    """A matrix of its own, held as ``2 R - I``: a reflection then is one product.

    Args:
        twice: ``2 R``, taken over.
        steps: ``alpha``, in the precision of the states.
    """

    def __init__(self, twice: Tensor, steps: Tensor) -> None:
        self.steps = steps
        twice.diagonal().sub_(1)
        self._mirror = twice.to(steps)
        self._turned: Tensor | None = None

    @override
    def apply(self, h: Tensor) -> Tensor:
        return (self.reflect(h) + h) / 2

    @override
    def adjoint(self, h: Tensor) -> Tensor:
        return (self.reflect_adjoint(h) + h) / 2

    @override
    def reflect(self, h: Tensor) -> Tensor:
        return torch.mm(h, self._mirror.mT)

    @override
    def reflect_adjoint(self, h: Tensor) -> Tensor:
        if self._turned is None:
            self._turned = (self._mirror / self.steps[:, None]).mul_(self.steps)
        return torch.mm(h, self._turned)


@singledispatch
def inverse_of(operator: Operator, steps: Tensor) -> Inverse:
    """The inverse for one operator and its steps, computed in float64 or its complex form.

    Args:
        operator: ``A``, square.
        steps: ``alpha``, of the shape of the operator's diagonal.

    Raises:
        ConfigError: There is none for operators of this type, or a weight is not finite.
    """
    raise ConfigError(
        f"The resolvent of a {type(operator).__name__} operator is not implemented.",
        hint="use `Jacobi()`, which needs no inverse, or `ForwardBackward()`.",
    )


@inverse_of.register
def _dense(operator: Dense, steps: Tensor) -> Inverse:
    half = steps.detach().double() / 2
    a = operator.diagonal().detach().double()
    whole = operator.matrix.detach() * -half[:, None]  # in float64, as one factor is
    whole.diagonal().copy_((1 - a).mul_(half).add_(0.5))
    return DenseInverse(torch.linalg.inv(whole), steps)


@final
class Memo:
    """The last inverse that was computed, for as long as the weights are the same numbers.

    A forward solve and its adjoint equation meet the same weights through different tensors. They
    are recognised by their storage and the count of their changes; the tensor that is held keeps
    the storage from being used again.
    """

    def __init__(self) -> None:
        self._held: tuple[Tensor, tuple[Any, ...], Inverse] | None = None

    def get(self, operator: Operator, key: object, make: Callable[[], Inverse]) -> Inverse:
        """The inverse for the operator as it stands, made if need be.

        Args:
            operator: ``A``.
            key: What else the inverse depends on.
            make: Computes it.
        """
        weight = operator.weight
        if wrapped(weight) or weight.is_inference():
            return make()
        mark = (weight.data_ptr(), weight._version, weight.shape, weight.dtype, key)
        if self._held is None or self._held[1] != mark:
            self._held = (weight.detach(), mark, make())
        return self._held[2]

    def __deepcopy__(self, memo: object) -> Memo:
        return Memo()

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()
