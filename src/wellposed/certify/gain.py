"""Majorants from gains in the 2-norm: what multipliers prove about a whole network."""

from __future__ import annotations

from math import inf
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.lmi import joint_gain
from wellposed.certify.loop import EXACT
from wellposed.certify.majorant import Majorant
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.wellposed import monotone_witness
from wellposed.core.network import Network
from wellposed.core.spectra import outward
from wellposed.errors import NotCertifiableError

RULE = (
    "matrix inequality with a diagonal multiplier, verified by Cholesky factorisation (after "
    "Revay et al., arXiv 2010.01732)"
)


@final
class Gains2(NamedTuple):
    """Proved 2-norm gains of a network.

    Args:
        joint: ``||dy||_2 <= joint ||dx||_2``.
        rows: ``|dy_i| <= rows_i ||dx||_2``, shape (q,).
        d: Inputs.
    """

    joint: float
    rows: Tensor
    d: int


@torch.no_grad()
def gain_of(network: Network) -> Gains2:
    """Gains with the multiplier that the parametrisation offers, or one that is searched.

    The offered one is tried first. Weights that were edited by hand may break it; then a witness
    of strong monotonicity is searched, which proves some gain if there is one.

    Raises:
        NotCertifiableError: No multiplier proves anything.
    """
    proof = PairwiseL2.of(network, monotone_witness(network).weights)
    joint = joint_gain(proof).gain
    if joint == inf:
        raise NotCertifiableError(
            "No multiplier proves a finite gain in the 2-norm.",
            hint="the margin of monotonicity may be within rounding of 0; train with a larger one.",
        )
    rows = proof.gain(network.C, network.D if bool(network.D.any()) else None).gain
    return Gains2(joint, rows.clamp(max=joint), network.d)


@final
class Gain(Majorant):
    """A network of which a gain in the 2-norm is known.

    With ``||J_i||_2 <= rows_i`` and ``||J||_2 <= joint``: ``|J| v <= rows ||v||_2`` and
    ``|J|^T c <= joint ||c||_2`` in every component, by Cauchy and Schwarz.

    Args:
        gains: What is proved.
        inner: Another majorant of the same network, if there is one; the smaller bound counts.
    """

    assumes = (EXACT,)

    def __init__(self, gains: Gains2, inner: Majorant | None = None) -> None:
        super().__init__((gains.d,), (len(gains.rows),))
        self._gains, self._inner = gains, inner

    @override
    def apply(self, v: Tensor) -> Tensor:
        found = outward(self._gains.rows * _norm(v), 4)
        return found if self._inner is None else torch.minimum(found, self._inner.apply(v))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        found = outward(self._gains.joint * _norm(c), 4).expand(len(c), self._gains.d)
        return found if self._inner is None else torch.minimum(found, self._inner.adjoint(c))

    @property
    @override
    def spectral(self) -> float:
        return self._gains.joint

    @property
    @override
    def rule(self) -> str:
        return RULE


def _norm(v: Tensor) -> Tensor:
    return outward(torch.linalg.vector_norm(v, dim=1, keepdim=True), v.shape[1])
