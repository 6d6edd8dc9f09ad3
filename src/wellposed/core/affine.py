"""The affine equilibrium network ``z = phi(A z + B u + b)`` with explicit weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wellposed.core.activations import Activation, ReLU
from wellposed.core.maps import AffineMap, check_feedback
from wellposed.core.operators import Operator
from wellposed.core.spectra import Contraction, perron, resolved_gain
from wellposed.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Affine:
    """Explicit weights of an affine equilibrium network: what runs, and what is certified.

    Args:
        A: State operator, square.
        B: Input operator, from inputs to states.
        bias: ``b``, broadcastable against a state.
        activation: ``phi``.
        witness: Weights ``eta`` of the max norm in which the parametrisation claims contraction,
            broadcastable against a state. A hint only: every rule measures for itself.
        metric: Diagonal ``Lam`` with which the parametrisation claims that ``Lam (I - A)`` is
            strongly monotone, broadcastable against a state. A hint as well.
        canonical_form: Whether the diagonal of ``A`` is zero and ``gain`` is in force.
        feedback: ``a`` of the resolved activation (see `AffineMap`), canonical form only.
    """

    A: Operator
    B: Operator
    bias: Tensor
    activation: Activation
    witness: Tensor | None = None
    feedback: Tensor | None = None
    canonical_form: bool = False
    metric: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.A.square or self.B.out_shape != self.A.out_shape:
            raise ShapeError(
                f"A maps {self.A.in_shape} to {self.A.out_shape} and B ends in {self.B.out_shape}; "
                "all three must be equal."
            )

    def bind(self, u: Tensor) -> AffineMap:
        """Inject the inputs ``u`` once: the map ``z -> phi(A z + (B u + b))``."""
        # mixed precision may have lowered the product; the state keeps the weights' precision
        offset = self.B.apply(u, self.bias).to(self.bias.dtype)
        return AffineMap(
            self.A, offset, self.activation, self.feedback, canonical_form=self.canonical_form
        )

    def canonical(self) -> Affine:
        """The zero-diagonal network with the same fixed points.

        ReLU: ``A^ = [1/(1 - a_ii)] offdiag(A)``, ``B^`` and ``b^`` scaled alike, diagonal zero.
        Other activations: the diagonal moves into the resolved activation.
        """
        if self.canonical_form:
            return self
        a, rest = self.A.diagonal(), self.A.off_diagonal()
        check_feedback(a, self.activation)
        if not isinstance(self.activation, ReLU):
            return replace(self, A=rest, feedback=a, canonical_form=True, metric=None)
        scale = 1 / (1 - a)
        return replace(
            self,
            A=rest.scale_rows(scale),
            B=self.B.scale_rows(scale),
            bias=self.bias * scale,
            canonical_form=True,
            metric=None if self.metric is None else self.metric / scale,
        )

    def contraction(self) -> Contraction:
        """Best weighted max-norm contraction of the canonical map, measured in float64."""
        canonical = self.double().canonical()
        gain = resolved_gain(canonical.activation, canonical.feedback)
        return perron(canonical.A, gain)

    def double(self) -> Affine:
        """Detached, in float64: the form in which certificates are computed."""
        return self._each(lambda t: t.detach().to(torch.float64))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Affine:
        return replace(
            self,
            A=self.A.with_weight(change(self.A.weight)),
            B=self.B.with_weight(change(self.B.weight)),
            bias=change(self.bias),
            witness=None if self.witness is None else change(self.witness),
            feedback=None if self.feedback is None else change(self.feedback),
            metric=None if self.metric is None else change(self.metric),
        )
