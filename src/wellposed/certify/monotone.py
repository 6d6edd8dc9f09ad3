"""Strong monotonicity of affine equilibria in the 2-norm, measured on explicit weights.

On a torus the symmetric part of a convolution is one Hermitian matrix a frequency, so that the
modulus is exact and costs no matrix of the size of the state. Zero padding is a compression of the
convolution on a torus large enough that nothing wraps around: its modulus is at least as large.
Every matrix is judged by a Cholesky factorisation with a bound of its rounding
(`least_eigenvalue`), the rounding of the symbols included.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, prod, sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.certify.chain import Chain
from wellposed.certify.frequencies import Outputs, Symbols
from wellposed.certify.gain import Gain, Gains2, gain_of
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.linear import spectral_norm
from wellposed.certify.lipschitz import lipschitz_rule
from wellposed.certify.loop import Loop, explicit_weights
from wellposed.certify.majorant import Majorant, Rearrangement
from wellposed.certify.wellposed import (
    Wellposed,
    check_slopes,
    monotone_margin,
    wellposedness,
)
from wellposed.core.affine import Affine
from wellposed.core.network import Network
from wellposed.core.operators import Convolution, Dense
from wellposed.core.spectra import UNIT
from wellposed.core.spectral import two_norm_bracket
from wellposed.errors import NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium


@torch.no_grad()
def modulus(affine: Affine) -> float:
    """A proved lower bound of the ``m`` with ``Lam (I - A) + (I - A)^T Lam >= 2 m Lam``.

    ``Lam`` is the metric that the weights come with, or ``I``. A result that is not positive proves
    nothing but tells how much is missing.

    Raises:
        NotCertifiableError: A weight is not finite, or the operator is of another kind.
    """
    affine = _whole(affine)
    if isinstance(affine.A, Dense):
        matrix, lam = affine.A.matrix, affine.metric
        ones = matrix.new_ones(len(matrix))
        return monotone_margin(matrix, ones if lam is None else lam.expand(len(matrix)))
    least = Symbols.of(_balanced(affine)[0], with_input=False).least(0.0)
    return least / 2 * (1 - UNIT if least > 0 else 1 + UNIT)


@torch.no_grad()
def two_norm_gain(affine: Affine, readout: Tensor | None = None) -> float:
    """A proved ``||C z(x) - C z(x')||_2 <= L ||x - x'||_2`` for slopes in [0, 1].

    For every ``th > 0`` and ``t > 0`` with ``(I - A) + (I - A)^T - th B B^T - C^T C / t >= 0``,
    ``L^2 = t / th``, because such pairs have ``dz^T (I - A) dz <= dz^T B dx``. It is at most
    ``||C|| ||B|| / m``, the published bound, which ``th = m / ||B||^2`` gives; ``th`` is searched.
    Dense weights are judged with a multiplier (`gain_of`), convolutions a frequency at a time, in
    the coordinates of their metric.

    Args:
        affine: Explicit weights.
        readout: ``C``, shape (q, channels) of a convolution or (q, n); the state itself by default.

    Raises:
        NotCertifiableError: No modulus of strong monotonicity is proved to be positive, or a weight
            is not finite.
    """
    affine = _whole(affine)
    check_slopes(affine.activation)
    if readout is not None:
        readout = readout.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(readout).all()):
            raise NotCertifiableError("The readout of the equilibrium holds NaN or infinity.")
    if isinstance(affine.A, Dense) and isinstance(affine.B, Dense):
        return gain_of(_network(affine, readout)).joint
    m = modulus(affine)
    if not m > 0:
        raise _missing(m)
    affine, inverse = _balanced(affine)
    # entries of C K^-1 have relative errors of three units
    C = torch.diag(inverse) if readout is None else readout * inverse
    leave = float(inverse.amax()) * (1 + 4 * UNIT)
    if readout is not None:
        leave = spectral_norm(C) * (1 + 8 * UNIT * sqrt(min(C.shape)))
    top = two_norm_bracket(affine.B).upper * (1 + 8 * UNIT)
    plain = leave * top / m * (1 + 4 * UNIT)
    A, B = affine.A, affine.B
    if not isinstance(A, Convolution) or not isinstance(B, Convolution) or top == 0:
        return plain
    if A.padding != B.padding:
        return plain
    pencil = Symbols.of(affine, with_input=True)
    return min(plain, pencil.gain(Outputs.of(C)))


def monotone_majorant(affine: Affine) -> Majorant:
    """The majorant of an affine equilibrium: that of the max norm, of monotonicity, or of both.

    Raises:
        NotCertifiableError: Neither norm contracts.
    """
    try:
        return _Either(affine, Loop(affine))
    except NotCertifiableError as error:
        try:
            joint = two_norm_gain(affine)
        except NotCertifiableError as other:
            raise NotCertifiableError(
                f"{error.message} In the 2-norm: {other.message}", hint=error.hint
            ) from other
    return two_norm_majorant(affine.B.in_shape, affine.A.out_shape, joint)


@wellposedness.register
@torch.no_grad()
def _affine(network: Affine) -> Wellposed:
    """The witness of an affine equilibrium whose matrix need not be formed."""
    affine = _whole(network)
    if isinstance(affine.A, Dense) and isinstance(affine.B, Dense):
        return wellposedness(_network(affine))
    check_slopes(affine.activation)
    m = modulus(affine)
    if m > 0:
        lam = torch.ones(1, dtype=torch.float64) if affine.metric is None else affine.metric
        return Wellposed("monotone", lam.expand(affine.A.in_shape).flatten(), m)
    own = affine.A.diagonal()
    found = affine.contraction() if bool((own < 1).all()) else None
    if found is None or not found.factor < 1:
        raise _missing(m)
    # (1 - a_ii) eta_i - sum_j |a_ij| eta_j >= (1 - factor) (1 - a_ii) eta_i
    least = (1 - found.factor) * float((1 - own).amin()) * (1 - 8 * UNIT)
    return Wellposed("max-norm", found.eta.expand(affine.A.in_shape).flatten(), least)


@wellposedness.register(AffineCell)
@wellposedness.register(Equilibrium)
def _module(network: nn.Module) -> Wellposed:
    check_genuine(network, lipschitz_rule.registry, "")
    cell = network.cell if isinstance(network, Equilibrium) else network
    if not isinstance(cell, AffineCell):
        raise refuse(network, "", "a general cell has no explicit weights to measure")
    check_genuine(cell, lipschitz_rule.registry, "")
    return wellposedness(cell.explicit())


@final
class _Either(Majorant):
    """A contraction in the max norm, whose 2-norm is also bounded by monotonicity if asked for."""

    def __init__(self, affine: Affine, loop: Loop) -> None:
        super().__init__(loop.in_shape, loop.out_shape)
        self.affine, self.loop, self.assumes = affine, loop, loop.assumes

    @override
    def apply(self, v: Tensor) -> Tensor:
        return self.loop.apply(v)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return self.loop.adjoint(c)

    @property
    @override
    def spectral(self) -> float:
        try:
            # weights are not searched where a bound exists already
            return two_norm_gain(self.affine) if modulus(self.affine) > 0 else inf
        except NotCertifiableError:
            return inf

    @property
    @override
    def rule(self) -> str:
        return self.loop.rule


def two_norm_majorant(into: tuple[int, ...], out: tuple[int, ...], joint: float) -> Majorant:
    """A gain in the 2-norm between values of two shapes."""
    rows = torch.full((prod(out),), joint, dtype=torch.float64)
    gain = Gain(Gains2(joint, rows, prod(into)))
    if len(into) == len(out) == 1:
        return gain
    links: list[Majorant] = [
        Rearrangement(nn.Flatten(), into),
        gain,
        Rearrangement(lambda y: y.reshape(len(y), *out), (prod(out),)),
    ]
    return Chain(links, into)


def _whole(affine: Affine) -> Affine:
    """Checked float64 weights with the diagonal in the operator."""
    affine = explicit_weights(affine)
    if affine.feedback is not None or affine.canonical_form:
        raise NotCertifiableError(
            "Monotonicity is measured on the weights as they are given, not on canonical ones."
        )
    return affine


def _balanced(affine: Affine) -> tuple[Affine, Tensor]:
    """The network of ``K z`` for the metric ``K^2``, and ``K^-1``, one number a channel.

    A scale for each channel: entries change by a few units of themselves, for which the errors of
    `Symbols` have room.

    Raises:
        NotCertifiableError: The metric is not one positive number a channel.
    """
    lam, A, B = affine.metric, affine.A, affine.B
    if lam is None or not isinstance(A, Convolution):
        return affine, torch.ones(A.out_shape[0], dtype=torch.float64)
    channels = len(A.kernel)
    fits = lam.numel() == channels and bool((torch.isfinite(lam) & (lam > 0)).all())
    if not fits or not isinstance(B, Convolution):
        raise NotCertifiableError(
            f"The metric of a convolution must be one positive number for each of its {channels} "
            f"channels, got shape {tuple(lam.shape)}.",
        )
    k = lam.reshape(channels, 1, 1, 1).sqrt()
    kernel = A.kernel * (k / k.reshape(1, channels, 1, 1))
    there = replace(affine, A=A.with_weight(kernel), B=B.with_weight(k * B.kernel), metric=None)
    return there, 1 / k.flatten()


def _network(affine: Affine, readout: Tensor | None = None) -> Network:
    """States as outputs, or what is read out of them."""
    A, B = affine.A.weight, affine.B.weight
    n = len(A)
    metric = None if affine.metric is None else affine.metric.expand(n)
    C = torch.eye(n) if readout is None else readout
    return Network.of(
        A, B, affine.bias.expand(n), C, torch.zeros(len(C)),
        activation=affine.activation, metric=metric,
    )  # fmt: skip


def _missing(m: float) -> NotCertifiableError:
    return NotCertifiableError(
        f"The margin of monotonicity in the 2-norm is {m:.4g}, expected above 0.",
        hint="train a cell that is monotone by construction (`MonotoneCell`, `MonotoneConv2d`); "
        "weights edited by hand lose that guarantee.",
    )
