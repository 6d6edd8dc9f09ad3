"""Monotone convolutions by frequency: what their matrices there prove, with rounding."""

from __future__ import annotations

from math import exp, inf, prod, sqrt
from typing import NamedTuple, final

import torch
from torch import Tensor

from wellposed.certify.definite import least_eigenvalue
from wellposed.core.affine import Affine
from wellposed.core.fourier import centred_symbols, torus
from wellposed.core.golden import golden_section
from wellposed.core.operators import Convolution
from wellposed.core.spectra import TINY, UNIT, outward, rounding
from wellposed.core.symbols import symbols
from wellposed.errors import NotCertifiableError

_PHASE = 128 * UNIT  # of a product of two unit phases, each from an angle below 2 pi
_BLOCK = 1 << 22  # numbers of a batch of matrices
_SECTIONS = 32
_RANGE = 25.0  # of the logarithm of th / (th_max - th)
_SLACKS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)  # of a square of a gain, until one is proved


@final
class Outputs(NamedTuple):
    """``G = C^T C`` for outputs ``C`` of the channels, the same at every frequency.

    Args:
        C: Shape (q, c), float64.
        G: Shape (c, c), exactly symmetric.
        error: Bound of the error of `G` in the 2-norm, that of `C` included.
    """

    C: Tensor
    G: Tensor
    error: float

    @classmethod
    def of(cls, C: Tensor) -> Outputs:
        """From weights with relative errors of a few units."""
        half = (C.mT @ C) / 2
        size = C.abs().mT @ C.abs()
        error = outward((rounding(len(C) + 4) + 16 * UNIT) * size, len(C) + 4)
        return cls(C, half + half.mT, float(outward(error.sum(1), len(size)).amax()))


@final
class Symbols(NamedTuple):
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
    def of(cls, affine: Affine, *, with_input: bool) -> Symbols:
        """From checked float64 weights in the coordinates of their metric.

        Raises:
            NotCertifiableError: The state operator is no convolution.
        """
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

    def least(self, theta: float, outputs: Outputs | None = None, square: float = inf) -> float:
        """A proved lower bound of the eigenvalues of ``S - theta Q - G / square``, all frequencies.

        Args:
            theta: Of the input, at least 0.
            outputs: ``G``; nothing is subtracted by default.
            square: Of the gain times `theta`, positive.
        """
        found = inf
        error = self.S_error + theta * self.Q_error
        taken = None
        if outputs is not None:
            taken = outputs.G / square
            error += (outputs.error + 8 * UNIT * float(outputs.G.abs().sum(1).amax())) / square
        step = max(1, _BLOCK // (4 * self.S.shape[-1] ** 2))
        for rows in torch.arange(len(self.S)).split(step):
            pencil = self._pencil(theta, rows)
            slack = error * (1 + 8 * UNIT)
            if taken is not None:
                pencil = pencil - taken
                slack += 4 * UNIT * float(torch.linalg.matrix_norm(pencil).amax())
            re, im = pencil.real, pencil.imag
            whole = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
            found = min(found, float(least_eigenvalue(whole, slack).amin()))
        return found

    def gain(self, outputs: Outputs) -> float:
        """A proved ``||C dz|| <= L ||dx||``, infinite if nothing is proved.

        For every ``th, t > 0`` with ``S - th Q - C^T C / t >= 0`` at all frequencies
        ``L^2 = t / th``: ``dz^T S dz <= 2 dz^T B dx <= th dz^T Q dz + ||dx||^2 / th``.

        Args:
            outputs: ``C``.
        """
        theta, guess = self._search(outputs)
        if not (0 < theta < inf and guess < inf):
            return inf
        for slack in _SLACKS:
            square = guess * (1 + slack) + TINY
            if self.least(theta, outputs, square) >= 0:
                return sqrt(square / theta) * (1 + 8 * UNIT)
        return inf

    def _search(self, outputs: Outputs) -> tuple[float, float]:
        """``th`` with the smallest ``t / th``, and the ``t`` it has: a hint.

        ``t = lambda_max( C (S - th Q)^-1 C^T )`` over all frequencies. The ``(th, 1 / t)`` that
        prove something are a convex set and their product is to be large: it has one maximum on its
        border, which golden section finds, on a scale that resolves both ends.
        """
        assert self.D is not None
        L, info = torch.linalg.cholesky_ex(self.S)
        if bool(info.any()):
            return inf, inf
        half = torch.linalg.solve_triangular(L, self.D, upper=False)
        om, V = torch.linalg.eigh(half @ half.mH)
        om = om.clamp(min=0)
        top = float(om.amax().clamp(min=1e-150))
        om = om / top
        C = outputs.C.mT.to(L.dtype).expand(len(L), -1, -1)
        R = V.mH @ torch.linalg.solve_triangular(L, C, upper=False)
        wide = R.shape[-1] > R.shape[-2]

        def value(part: float) -> float:
            half = R * (1 - part * om).rsqrt()[..., None]
            short = half @ half.mH if wide else half.mH @ half
            return float(torch.linalg.eigvalsh(short)[..., -1].amax())

        def loss(x: float) -> float:
            return value(1 / (1 + exp(-x))) * (1 + exp(-x))

        part = 1 / (1 + exp(-golden_section(loss, -_RANGE, _RANGE, _SECTIONS)))
        return part / top, value(part)

    def _pencil(self, theta: float, rows: Tensor) -> Tensor:
        S = self.S[rows]
        if self.D is None or theta == 0:
            return S
        Q = self.D[rows] @ self.D[rows].mH
        return S - (theta / 2) * (Q + Q.mH)
