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
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.certify.definite import least_eigenvalue
from wellposed.certify.gain import Gain, Gains2, gain_of
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.lipschitz import lipschitz_rule
from wellposed.certify.loop import Loop, explicit_weights
from wellposed.certify.majorant import Chain, Majorant, Rearrangement
from wellposed.certify.wellposed import (
    Wellposed,
    check_slopes,
    monotone_margin,
    wellposedness,
)
from wellposed.core.affine import Affine
from wellposed.core.fourier import centred_symbols, torus
from wellposed.core.network import Network
from wellposed.core.operators import Convolution, Dense
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.core.spectral import two_norm_bracket
from wellposed.core.symbols import symbols
from wellposed.errors import NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium

_PHASE = 128 * UNIT  # of a product of two unit phases, each from an angle below 2 pi
_BLOCK = 1 << 22  # numbers of a batch of matrices
_SECTIONS = 10


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
    least = _Symbols.of(_balanced(affine)[0], with_input=False).least(0.0)
    return least / 2 * (1 - UNIT if least > 0 else 1 + UNIT)


@torch.no_grad()
def two_norm_gain(affine: Affine) -> float:
    """A proved ``||z(x) - z(x')||_2 <= L ||x - x'||_2`` for slopes in [0, 1].

    For every ``th > 0``: ``L^2 = 1 / (th lambda)`` with
    ``(I - A) + (I - A)^T - th B B^T >= lambda I > 0``, because such pairs have
    ``dz^T (I - A) dz <= dz^T B dx``. It is at most ``||B|| / m``, the published bound, which
    ``th = m / ||B||^2`` gives; ``th`` is searched. Dense weights are judged with a multiplier
    (`gain_of`), convolutions a frequency at a time, in the coordinates of their metric.

    Raises:
        NotCertifiableError: No modulus of strong monotonicity is proved to be positive.
    """
    affine = _whole(affine)
    check_slopes(affine.activation)
    if isinstance(affine.A, Dense) and isinstance(affine.B, Dense):
        return gain_of(_network(affine)).joint
    m = modulus(affine)
    if not m > 0:
        raise _missing(m)
    affine, leave = _balanced(affine)
    top = two_norm_bracket(affine.B).upper * (1 + 8 * UNIT)
    plain = leave * top / m * (1 + 4 * UNIT)
    A, B = affine.A, affine.B
    if not isinstance(A, Convolution) or not isinstance(B, Convolution) or top == 0:
        return plain
    if A.padding != B.padding:
        return plain
    pencil = _Symbols.of(affine, with_input=True)
    theta = pencil.search(m / top**2)
    least = pencil.least(theta)
    if not least > 0:
        return plain
    return min(plain, leave * sqrt(1 / (theta * least)) * (1 + 8 * UNIT))


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
    return _gain(affine, joint)


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


def _gain(affine: Affine, joint: float) -> Majorant:
    """The gain between values of the shapes of inputs and states."""
    into, out = affine.B.in_shape, affine.A.out_shape
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


@final
class _Symbols(NamedTuple):
    """``2 I - A^ - A^^H`` and ``B^`` at each frequency, and bounds of their errors in the 2-norm.

    Args:
        S: Shape (f, c, c), complex, exactly Hermitian.
        D: Shape (f, c, k), complex; `None` where it was not asked for.
        S_error: Of every matrix of `S`.
        Q_error: Of every ``B^ B^^H``.
    """

    S: Tensor
    D: Tensor | None
    S_error: float
    Q_error: float

    @classmethod
    def of(cls, affine: Affine, *, with_input: bool) -> _Symbols:
        A, B = affine.A, affine.B
        if not isinstance(A, Convolution):
            raise NotCertifiableError(
                f"No rule measures the monotonicity of a {type(A).__name__} operator.",
                hint="matrices and convolutions are covered.",
            )
        kernel = A.kernel
        grid = torus(A)
        if with_input and isinstance(B, Convolution) and A.padding == "zeros":
            # the input's torus is the state's times the stride, and must not wrap around either
            reach = [side // 2 for side in B.kernel.shape[2:]]
            least = (-(-(n + r) // B.stride) for n, r in zip(B.image, reach, strict=True))
            height, width = (max(a, b) for a, b in zip(grid, least, strict=True))
            grid = height, width
        hat = centred_symbols(kernel, grid)
        eye = torch.eye(len(kernel), dtype=torch.float64)
        # sums of two entries commute and differences change sign: Hermitian to the last bit
        re, im = hat.real, hat.imag
        S = torch.complex(2 * eye - (re + re.mT), im.mT - im)
        unit = _PHASE + 2 * rounding(prod(kernel.shape[2:]) + 4)
        taps = kernel.abs().sum((2, 3))
        wrong = (unit + 32 * UNIT) * (taps + taps.mT) + 8 * UNIT * eye
        S_error = float(outward(wrong.sum(1), len(wrong) + taps.numel()).amax())
        S_error += 16 * UNIT * float(torch.linalg.matrix_norm(S).amax())
        if not with_input or not isinstance(B, Convolution):
            return cls(S, None, S_error, 0.0)
        # conjugate, as `symbols` turns the other way; phases of a column drop out of B B^T
        D = symbols(B.kernel, (grid[0] * B.stride, grid[1] * B.stride), B.stride).conj()
        size = float(outward(B.kernel.abs().sum((2, 3)).square().sum(), B.kernel.numel()))
        unit = _PHASE + 2 * rounding(prod(B.kernel.shape[2:]) + 4)
        Q_error = 4 * size * (unit + rounding(2 * D.shape[-1] + 8) + 32 * UNIT)
        return cls(S, D.resolve_conj(), S_error, Q_error)

    def least(self, theta: float) -> float:
        """A proved lower bound of the eigenvalues of ``S - theta Q`` over all frequencies."""
        found = inf
        step = max(1, _BLOCK // (4 * self.S.shape[-1] ** 2))
        for rows in torch.arange(len(self.S)).split(step):
            M = self._pencil(theta, rows)
            re, im = M.real, M.imag
            whole = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
            error = (self.S_error + theta * self.Q_error) * (1 + 8 * UNIT)
            found = min(found, float(least_eigenvalue(whole, error).amin()))
        return found

    def search(self, start: float) -> float:
        """``theta`` that nearly maximises ``theta lambda_min(S - theta Q)``: a hint."""
        every = torch.arange(len(self.S))

        def value(theta: float) -> float:
            return theta * float(torch.linalg.eigvalsh(self._pencil(theta, every))[..., 0].amin())

        best, level = start, value(start)
        step = 2.0
        for _ in range(_SECTIONS):
            for factor in (step, 1 / step):
                now = value(best * factor)
                if now > level:
                    best, level = best * factor, now
                    break
            else:
                step = sqrt(step)
        return best

    def _pencil(self, theta: float, rows: Tensor) -> Tensor:
        S = self.S[rows]
        if self.D is None or theta == 0:
            return S
        Q = self.D[rows] @ self.D[rows].mH
        return S - (theta / 2) * (Q + Q.mH)


def _whole(affine: Affine) -> Affine:
    """Checked float64 weights with the diagonal in the operator."""
    affine = explicit_weights(affine)
    if affine.feedback is not None or affine.canonical_form:
        raise NotCertifiableError(
            "Monotonicity is measured on the weights as they are given, not on canonical ones."
        )
    return affine


def _balanced(affine: Affine) -> tuple[Affine, float]:
    """The network of ``K z`` for the metric ``K^2``, and a bound of ``||K^-1||``.

    A scale for each channel: entries change by a few units of themselves, for which the errors of
    `_Symbols` have room.

    Raises:
        NotCertifiableError: The metric is not one positive number a channel.
    """
    lam, A, B = affine.metric, affine.A, affine.B
    if lam is None or not isinstance(A, Convolution):
        return affine, 1.0
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
    return there, float((1 / k).amax()) * (1 + 4 * UNIT)


def _network(affine: Affine) -> Network:
    """States as outputs."""
    A, B = affine.A.weight, affine.B.weight
    n = len(A)
    metric = None if affine.metric is None else affine.metric.expand(n)
    return Network.of(
        A, B, affine.bias.expand(n), torch.eye(n), torch.zeros(n),
        activation=affine.activation, metric=metric,
    )  # fmt: skip


def _missing(m: float) -> NotCertifiableError:
    return NotCertifiableError(
        f"The margin of monotonicity in the 2-norm is {m:.4g}, expected above 0.",
        hint="train a cell that is monotone by construction (`MonotoneCell`, `MonotoneConv2d`); "
        "weights edited by hand lose that guarantee.",
    )
