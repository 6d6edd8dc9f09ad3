"""The componentwise Lipschitz matrix of an affine equilibrium, used without forming it."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Self, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.dominate import Resolvent
from wellposed.certify.majorant import Majorant
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense, Operator
from wellposed.core.spectra import outward, resolved_gain, slope_gain
from wellposed.errors import NotCertifiableError

EXACT = (
    "the map from inputs to equilibria, in exact arithmetic; a computed output is within "
    "`Solution.error_bound` of it"
)
RULE_L3 = (
    "L3: componentwise bound of the equilibrium by the resolvent of an M-matrix (after Jafarpour "
    "et al., arXiv 2106.03194)"
)
RULE_L4 = (
    "L4: componentwise bound with the slopes that occur on a box (after Jafarpour et al., arXiv "
    "2106.03194 and 2112.05310)"
)
_DENSE_LIMIT = 3000
_FORMED_LIMIT = 600  # up to this size a convolution is factorised as well


@final
class Loop(Majorant):
    """``|dz| <= K |du|`` with ``K = (I - [g] |A_off|)^-1 [g] |B|`` [1].

    For a pair of inputs ``dz = D (A dz + B du)`` with a diagonal ``D`` of difference quotients
    ``d_i``. Solving row i for ``dz_i`` gives ``dz_i = d_i / (1 - d_i a_ii) (A_off dz + B du)_i``;
    hence ``|dz| <= [g] (|A_off| |dz| + |B| |du|)`` with ``g_i`` the largest ``|d / (1 - d a_ii)|``.
    If ``[g] |A_off|`` has spectral radius below 1 its resolvent is nonnegative, which proves it.

    Args:
        affine: Explicit weights; they are measured as they are.
        gain: ``g``, where a region makes it smaller than the one of all slopes.

    Raises:
        NotCertifiableError: A weight is not finite, a neuron's own equation has no unique
            solution, or the map is no contraction in any weighted max norm.

    References:
        [1] Jafarpour, Davydov, Proskurnikov, Bullo. Robust implicit networks via non-Euclidean
        contractions. NeurIPS 2021, arXiv 2106.03194 (normwise form); the componentwise form
        follows from the M-matrix property of ``I - [g] |A_off|``.
    """

    assumes = (EXACT,)

    def __init__(self, affine: Affine, gain: Tensor | None = None) -> None:
        affine = explicit_weights(affine)
        super().__init__(affine.B.in_shape, affine.A.out_shape)
        self.affine = affine
        self.diagonal = full_diagonal(affine)
        self.off: Operator = affine.A.off_diagonal()
        self._A, self._B = self.off.absolute(), affine.B.absolute()
        self._global = gain is None
        self.gain = resolved_gain(affine.activation, self.diagonal) if gain is None else gain
        self.forward = Resolvent(self._couple, self.out_shape, self._matrix())
        self.forward.require()

    def narrowed(self, low: Tensor, high: Tensor) -> Self:
        """The same loop where the slopes of ``phi`` are known to lie in ``[low, high]``."""
        gain = torch.minimum(slope_gain(low, high, self.diagonal), self.gain)
        return type(self)(self.affine, gain)

    def _matrix(self) -> Tensor | None:
        limit = _DENSE_LIMIT if isinstance(self._A, Dense) else _FORMED_LIMIT
        if prod(self.out_shape) > limit:
            return None
        return self.gain.expand(self.out_shape).reshape(-1, 1) * self._A.materialise()

    def _couple(self, e: Tensor) -> Tensor:
        return outward(self.gain * self._A.apply(e), self.off.terms + 1)

    def _couple_back(self, y: Tensor) -> Tensor:
        return outward(self._A.adjoint(self.gain * y), self.off.adjoint_terms + 1)

    def inject(self, v: Tensor) -> Tensor:
        """Upper bound of ``[g] |B| v``."""
        return outward(self.gain * self._B.apply(v), self.affine.B.terms + 1)

    @cached_property
    def backward(self) -> Resolvent:
        """Bounds of ``(I - |A_off|^T [g])^-1 c``."""
        matrix = self._matrix()
        transposed = None if matrix is None else matrix.mT.contiguous()
        return Resolvent(self._couple_back, self.out_shape, transposed)

    @override
    def apply(self, v: Tensor) -> Tensor:
        return self.forward(self.inject(v))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        y = self.backward(c)
        return outward(self._B.adjoint(self.gain * y), self.affine.B.adjoint_terms + 1)

    @property
    @override
    def rule(self) -> str:
        return RULE_L3 if self._global else RULE_L4


def explicit_weights(affine: Affine) -> Affine:
    """Detached float64 weights on the CPU.

    Raises:
        NotCertifiableError: Some weight is NaN or infinite.
    """
    affine = affine.double()._each(lambda t: t.cpu())  # pyright: ignore[reportPrivateUsage]
    named = {"A": affine.A.weight, "B": affine.B.weight, "bias": affine.bias}
    for name, value in named.items():
        if not bool(torch.isfinite(value).all()):
            raise NotCertifiableError(
                f"`{name}` of the equilibrium holds NaN or infinity.",
                hint="training diverged; certify a checkpoint with finite weights.",
            )
    return affine


def full_diagonal(affine: Affine) -> Tensor:
    """``a_ii`` of the equation before any feedback was resolved, broadcastable to a state."""
    own = affine.A.diagonal()
    return own if affine.feedback is None else own + affine.feedback
