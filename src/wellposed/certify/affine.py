"""Lipschitz bounds L0 to L4 of an affine equilibrium network, max norm to max norm.

``z = phi(A z + B u + b)``, ``y = C z``. Each rule measures the explicit weights in float64 and
rounds outward; none trusts the parametrisation. With equal weights ``eta``,
``L4 <= L3 <= L2 <= L1 <= L0``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wellposed.certify.box import equilibrium_box
from wellposed.certify.loop import (
    EXACT,
    RULE_L3,
    RULE_L4,
    Loop,
    explicit_weights,
    full_diagonal,
)
from wellposed.core.affine import Affine
from wellposed.core.operators import Operator
from wellposed.core.records import Certificate
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import NotCertifiableError

_PAPER = "Jafarpour et al., arXiv 2106.03194"


def bound_l0(
    affine: Affine, readout: Operator | None = None, eta: Tensor | None = None
) -> Certificate:
    """``||C||_{inf<-eta} ||B||_{eta<-inf} / (1 - mu_eta(A)^+)``, the published bound [1].

    Slopes up to ``d2`` count as ``d2 A`` and ``d2 B``.

    Args:
        affine: Explicit weights.
        readout: ``C``; by default the state itself is the output.
        eta: Weights, of the shape of a state; by default the witness of the parametrisation.

    Raises:
        NotCertifiableError: The activation is not monotone or ``d2 mu_eta(A)`` is not below 1.

    References:
        [1] Jafarpour et al., Robust implicit networks via non-Euclidean contractions, 2021,
        theorem on input-output Lipschitz constants.
    """
    pieces = _Pieces.of(affine, readout, eta)
    room = torch.minimum(pieces.room, torch.ones_like(pieces.room)).min()
    value = float(pieces.output * pieces.inject.max() / room)
    return _certificate(value, f"L0: norms and positive part of the logarithmic norm ({_PAPER})")


def bound_l1(
    affine: Affine, readout: Operator | None = None, eta: Tensor | None = None
) -> Certificate:
    """``||C|| ||B|| / (1 - mu_eta(A))``: as L0 without the positive part [1].

    At ``i = argmax |dz_i| / eta_i`` with that maximum ``M``: ``M (1 - d mu_i) <= d ||B du||``, and
    ``d / (1 - d mu_i)`` increases with the slope ``d``.

    Args:
        affine: Explicit weights.
        readout: ``C``; by default the state itself is the output.
        eta: Weights; by default the witness.

    Raises:
        NotCertifiableError: As `bound_l0`.

    References:
        [1] Davydov, Jafarpour, Proskurnikov, Bullo, Non-Euclidean monotone operator theory and
        applications, JMLR 2024, arXiv 2303.11273.
    """
    pieces = _Pieces.of(affine, readout, eta)
    value = float(pieces.output * pieces.inject.max() / pieces.room.min())
    return _certificate(value, "L1: norms and logarithmic norm (after arXiv 2303.11273)")


def bound_l2(
    affine: Affine, readout: Operator | None = None, eta: Tensor | None = None
) -> Certificate:
    """``||C|| max_i (|B| 1)_i / (eta_i (1 - mu_i))``: as L1, row by row.

    Args:
        affine: Explicit weights.
        readout: ``C``; by default the state itself is the output.
        eta: Weights; by default the witness.

    Raises:
        NotCertifiableError: As `bound_l0`.
    """
    pieces = _Pieces.of(affine, readout, eta)
    value = float(pieces.output * (pieces.inject / pieces.room).max())
    return _certificate(value, "L2: norms and logarithmic norm, row by row")


def bound_l3(affine: Affine, readout: Operator | None = None) -> Certificate:
    """``max_k (|C| K 1)_k`` with ``K = (I - [g] |A_off|)^-1 [g] |B|``: no weights are left.

    It equals L2 minimised over all weights, holds for non-monotone activations as well, and is
    attained by nonnegative weights with every neuron active. See `Loop` for the proof.

    Args:
        affine: Explicit weights.
        readout: ``C``; by default the state itself is the output.

    Raises:
        NotCertifiableError: The canonical map is no contraction in any weighted max norm.
    """
    value = _spread(Loop(affine), readout)
    return _certificate(value, RULE_L3)


def bound_l4(affine: Affine, region: Box, readout: Operator | None = None) -> Certificate:
    """L3 with the slopes that occur on a box of inputs; never worse than L3.

    Boxes of the preactivations bound every difference quotient of the activation between two
    inputs of `region`: an inactive ReLU has slope 0, a saturated tanh a small one.

    Args:
        affine: Explicit weights.
        region: One box of inputs, of the shape of one input.
        readout: ``C``; by default the state itself is the output.

    Raises:
        NotCertifiableError: As `bound_l3`.
    """
    loop = Loop(affine)
    value = min(_spread(local_loop(loop, region), readout), _spread(loop, readout))
    return _certificate(value, RULE_L4, region="box of inputs")


def local_loop(loop: Loop, region: Box) -> Loop:
    """The loop with the slopes that occur on one box of inputs."""
    found = equilibrium_box(loop.affine, region.unsqueeze(), loop=loop)
    v, phi = found.preactivation, loop.affine.activation
    low, high = phi.slope_range(v.lower, v.upper)
    if not phi.homogeneous:
        # computed derivatives are a few units off; the global slopes still hold
        low, high = (low - 1e-14).clamp(min=phi.slopes[0]), (high + 1e-14).clamp(max=phi.slopes[1])
    return loop.narrowed(low[0], high[0])


@dataclass(frozen=True, eq=False)
class _Pieces:
    """What L0 to L2 are made of: ``(|d2 B| 1)_i / eta_i``, ``1 - d2 mu_i`` and ``||C||``."""

    inject: Tensor
    room: Tensor
    output: float

    @classmethod
    def of(cls, affine: Affine, readout: Operator | None, eta: Tensor | None) -> _Pieces:
        affine = explicit_weights(affine)
        low, top = affine.activation.slopes
        if low < 0:
            raise NotCertifiableError(
                f"{affine.activation.name} has slopes in [{low}, {top}]; this rule needs them "
                "nonnegative.",
                hint="use `bound_l3`, which covers every slope-restricted activation.",
            )
        A, B, a = affine.A.off_diagonal().absolute(), affine.B.absolute(), full_diagonal(affine)
        ones = torch.ones(A.in_shape, dtype=torch.float64)
        weights = affine.witness if eta is None else eta.detach().double().cpu()
        weights = ones if weights is None else ones * weights
        if not bool((weights > 0).all() & torch.isfinite(weights).all()):
            raise NotCertifiableError("The weights `eta` must be positive and finite.")
        off = outward(A.apply(weights[None])[0], A.terms) / weights
        room = 1 - top * (a + off)
        # room is a difference: the error of its terms counts, not its own size
        room = room - 8 * UNIT * (1 + top * (a.abs() + off)) - top * off * rounding(A.terms)
        if not bool((room > 0).all()):
            worst = float((top * (a + off)).max())
            raise NotCertifiableError(
                f"The logarithmic max norm times the steepest slope is {worst:.6g}, expected "
                "below 1.",
                hint="pass better weights `eta` (`affine.contraction().eta`) or use `bound_l3`.",
            )
        inject = outward(B.apply(torch.ones(1, *B.in_shape, dtype=torch.float64))[0], B.terms)
        inject = inject * top / weights * (1 + 8 * UNIT)
        if readout is None:
            output = float(weights.max())
        else:
            C = readout.detach().to(torch.float64).absolute()
            output = float(outward(C.apply(weights[None]), C.terms).max())
        return cls(inject, room, output * (1 + 16 * UNIT))


def _spread(loop: Loop, readout: Operator | None) -> float:
    e = loop.apply(torch.ones(1, *loop.in_shape, dtype=torch.float64))
    if readout is not None:
        C = readout.detach().to(torch.float64).absolute()
        e = outward(C.apply(e), max(C.terms, C.adjoint_terms))
    return float(e.max())


def _certificate(value: float, rule: str, region: str = "everywhere") -> Certificate:
    return Certificate("lipschitz", value, "max", "max", rule, region, (EXACT,))
