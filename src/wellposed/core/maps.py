"""Maps: the one-argument functions ``z -> f(z)`` whose fixed points are sought.

A map carries every tensor that it depends on, so that a gradient has explicit inputs and a solver
can drop the rows of samples that have converged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from wellposed.core.activations import Activation, ReLU, resolvent, resolvent_range
from wellposed.core.inverse import Memo
from wellposed.core.operators import Dense, Operator
from wellposed.core.peel import forward_mode, plain, transforming
from wellposed.errors import ConfigError

# products with 85 to 87 columns were measured to take longer than with 88, up to a fifth; the
# number of rows has no say: what a sample gets must not depend on its batch
_REGISTER, _FEW, _WIDE = 8, 3, 64
# kernels between tensors take half the time of those with a number
_ONE = torch.ones((), dtype=torch.float32, device="cpu")


class Map(ABC):
    """A function of a batched state, with the tensors it depends on held explicitly."""

    block: ClassVar[int] = 1
    """Rows are evaluated in multiples of this number. Matrix kernels round a row alike whatever
    the number of rows only if whole register blocks are filled; 4 was measured to be enough."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a gradient may flow to."""

    @property
    @abstractmethod
    def batched(self) -> tuple[bool, ...] | None:
        """Which tensors have one row a sample; `None` if unknown (samples then stay together)."""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What `tensors` are made of, for who only asks whether they carry history."""
        return self.tensors

    @abstractmethod
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        """The same map with other numbers."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """``f(z)``, of the shape of ``z``."""

    @property
    def closed(self) -> bool:
        """Whether ``f(z)`` is known to have the shape and the precision of ``z``."""
        return False

    def repeated(self, z: Tensor, times: int) -> Tensor:
        """``f`` applied `times` times, one after the other."""
        for _ in range(times):
            z = self(z)
        return z

    def start(self) -> Tensor | None:
        """A first iterate, if the map knows its state's shape."""
        return None

    def canonical(self) -> Map:
        """An equivalent map that is better to iterate: the zero-diagonal form, if there is one."""
        return self

    def widened(self) -> Map | None:
        """The map on states with some zeros behind them, where that is faster; else `None`."""
        return None

    def resolved(self) -> Map:
        """An equivalent map that is better to differentiate; its canonical form is this map's."""
        return self

    def detach(self) -> Self:
        """The map without autograd history."""
        if not (transforming() or forward_mode() or any(t.requires_grad for t in self.tensors)):
            return self
        return self.with_tensors(tuple(t.detach() for t in self.tensors))

    def select(self, rows: Tensor) -> Self:
        """The map of the samples `rows`."""
        flags = self.batched
        if flags is None:
            raise ConfigError("Rows of a map whose batched tensors are unknown cannot be selected.")
        return self.with_tensors(
            tuple(
                t.index_select(0, rows) if flag else t
                for t, flag in zip(self.tensors, flags, strict=True)
            )
        )

    def error_bound(self, z: Tensor) -> Tensor | None:
        """Bound of ``max_i |z_i - z*_i|`` a sample, or `None` where nothing is proved."""
        return None


@final
@dataclass(frozen=True, eq=False)
class FunctionMap(Map):
    """``z -> f(z, *tensors)`` for any function."""

    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...] = ()
    flags: tuple[bool, ...] | None = None

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return self.arguments

    @property
    @override
    def batched(self) -> tuple[bool, ...] | None:
        return self.flags

    @override
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> FunctionMap:
        return replace(self, arguments=tensors)

    @override
    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z, *self.arguments)


@final
@dataclass(frozen=True, eq=False)
class AffineMap(Map):
    """``z -> phi(A z + q)``, or ``z -> psi(A z + q)`` with ``psi(s)`` solving ``z = phi(a z + s)``.

    Args:
        operator: ``A``.
        offset: ``q = B u + b``, one row a sample.
        activation: ``phi``.
        feedback: ``a``, broadcastable against a state; `None` for no feedback.
        canonical_form: Whether the diagonal of ``A`` is known to be zero.
        memo: Holds the inverse of operator splitting, which the adjoint equation needs again.
    """

    operator: Operator
    offset: Tensor
    activation: Activation
    feedback: Tensor | None = None
    canonical_form: bool = False
    memo: Memo = field(default_factory=Memo, repr=False)
    block: ClassVar[int] = 4

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        core = (self.operator.weight, self.offset)
        return core if self.feedback is None else (*core, self.feedback)

    @property
    @override
    def batched(self) -> tuple[bool, ...]:
        return (False, True) if self.feedback is None else (False, True, False)

    @property
    @override
    def leaves(self) -> tuple[Tensor, ...]:
        given = (*self.operator.leaves, self.offset)
        return given if self.feedback is None else (*given, self.feedback)

    @override
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> AffineMap:
        weight, offset, *rest = tensors
        return AffineMap(
            self.operator.with_weight(weight),
            offset,
            self.activation,
            rest[0] if rest else None,
            canonical_form=self.canonical_form,
            memo=self.memo,
        )

    @override
    def __call__(self, z: Tensor) -> Tensor:
        v = self.operator.apply(z, self.offset)
        if self.feedback is None and not torch.is_grad_enabled() and _is_relu(self.activation):
            return torch.relu_(v)
        return self._activate(v)

    @property
    @override
    def closed(self) -> bool:
        return True

    @override
    def repeated(self, z: Tensor, times: int) -> Tensor:
        if self.feedback is not None or torch.is_grad_enabled() or not _is_relu(self.activation):
            return super().repeated(z, times)
        step = self.operator.shifted(self.offset)
        for _ in range(times):
            z = torch.relu_(step(z))
        return z

    @override
    def widened(self) -> AffineMap | None:
        operator, offset = self.operator, self.offset
        if not (isinstance(operator, Dense) and self.canonical_form and self.feedback is None):
            return None
        size = offset.shape[-1]
        more = -size % _REGISTER
        if not 0 < more <= _FEW or size < _WIDE or not self.activation.homogeneous:
            return None
        matrix = F.pad(operator.matrix, (0, more, 0, more))
        return AffineMap(
            Dense(matrix), F.pad(offset, (0, more)), self.activation, canonical_form=True
        )

    @override
    def start(self) -> Tensor:
        """``f(0)``, which costs no product."""
        return self._activate(self.offset.detach())

    @override
    def canonical(self) -> AffineMap:
        """The zero-diagonal map with the same fixed points (nonlinear Jacobi).

        Every neuron solves its own scalar equation ``z_i = phi(a_ii z_i + s_i)`` exactly. For ReLU
        that is ``relu(s_i) / (1 - a_ii)``, which folds into the weights.
        """
        form = self.resolved()
        if form.feedback is None or not _is_relu(self.activation):
            return form
        scale = form.gain
        return AffineMap(
            form.operator.scale_rows(scale),
            form.offset * scale,
            self.activation,
            canonical_form=True,
        )

    @override
    def resolved(self) -> AffineMap:
        """The zero-diagonal map with the diagonal kept apart, as `feedback`.

        Nothing is multiplied, so that no derivative of a product of matrices is ever taken.
        """
        if self.canonical_form:
            return self
        if self.feedback is not None:
            raise ConfigError("A map with feedback is canonical already or not at all.")
        a = self.operator.diagonal()
        check_feedback(a, self.activation)
        rest = self.operator.off_diagonal()
        return AffineMap(rest, self.offset, self.activation, a, canonical_form=True)

    @property
    def gain(self) -> Tensor:
        """``1 / (1 - a)``: the slope of the resolved ReLU where it is active."""
        assert self.feedback is not None
        return torch.sub(_ONE, self.feedback).reciprocal()

    @property
    def raw(self) -> bool:
        """Whether the operator has its own diagonal still."""
        return self.feedback is None and not self.canonical_form

    def slopes(self, z: Tensor, image: Tensor | None = None) -> Tensor:
        """Derivative of the (resolved) activation where the map is evaluated at ``z``.

        Args:
            z: States.
            image: The map's value at `z`, if it is known: for ReLU its sign is all that is needed.
        """
        if _is_relu(self.activation) and image is not None:
            on = image.sign()
            return on if self.feedback is None else on * self.gain
        v = self.operator.apply(z, self.offset)
        if self.feedback is None:
            return self.activation.slope(v)
        if _is_relu(self.activation):
            # ``a relu(v) / (1 - a) + v`` has the sign of ``v``
            return self.activation.slope(v) * self.gain
        d = self.activation.slope(self.feedback * self._activate(v) + v)
        return d / (1 - d * self.feedback)

    def _activate(self, v: Tensor) -> Tensor:
        if self.feedback is None:
            return self.activation(v)
        return resolvent(self.activation, self.feedback, v)

    @override
    def error_bound(self, z: Tensor) -> Tensor | None:
        from wellposed.core.posterior import affine_error_bound

        return affine_error_bound(self, z)


def _is_relu(activation: Activation) -> bool:
    return type(activation) is ReLU


def check_feedback(a: Tensor, activation: Activation) -> None:
    """Refuse a diagonal for which ``z = phi(a z + s)`` has no or several solutions."""
    low, high = resolvent_range(activation)
    value = plain(a)
    # NaN fails both comparisons
    if not (float(value.amax()) < high and (low == -inf or float(value.amin()) > low)):
        raise ConfigError(
            f"The diagonal of A reaches from {float(value.min()):.4g} to "
            f"{float(value.max()):.4g}; with {activation.name} the equilibrium of a neuron is only "
            f"unique for values between {low:.4g} and {high:.4g}.",
            hint="the cell is not well posed: bound its weights, or iterate it as it stands with "
            "`Anderson()` on a `FreeCell`.",
        )
