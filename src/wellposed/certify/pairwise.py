"""Two-norm gains of single rows of outputs by multipliers, verified with rounding.

For slopes in [0, 1] every pair of inputs has ``dz_i (dv_i - dz_i) >= 0``. With a positive diagonal
``Lam``, ``S = Lam (I - W) + (I - W)^T Lam`` and ``Q = Lam U U^T Lam``,

    |c dz|^2 <= (1/th) c (S - th Q)^-1 c^T ||dx||^2    for every th > 0 with S - th Q > 0,

because ``dz^T S dz <= 2 dz^T Lam U dx <= th dz^T Q dz + ||dx||^2 / th`` and by Cauchy and Schwarz.
One eigendecomposition of the pair (S, Q) makes the search over ``th`` scalar for every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple, final

import torch
from torch import Tensor

from wellposed.certify.definite import balance, least_eigenvalue, reach, symmetric
from wellposed.certify.descent import Adam
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import NotCertifiableError, ShapeError

_SECTIONS = 48
_CHUNK = 2**23


@final
class Gains(NamedTuple):
    """Proved bounds of rows.

    Args:
        gain: ``|r dz + s dx| <= gain ||dx||_2``, shape (R,), infinite where nothing is proved.
        theta: The ``th`` that proves each, shape (R,).
    """

    gain: Tensor
    theta: Tensor


@final
@dataclass(frozen=True, eq=False)
class PairwiseL2:
    """The multiplier certificate of a network for one ``Lam``.

    Args:
        network: What is certified.
        multiplier: The diagonal of ``Lam``, positive, shape (n,).
        S: As computed, exactly symmetric.
        Q: As computed, exactly symmetric, for inputs that were divided by their scale.
        S_error: Bound of the rounding of `S`, elementwise.
        Q_error: Bound of the rounding of `Q`, elementwise.
    """

    network: Network
    multiplier: Tensor
    S: Tensor
    Q: Tensor
    S_error: Tensor
    Q_error: Tensor
    scale: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, network: Network, multiplier: Tensor | None = None, *, scale: Tensor | float = 1.0
    ) -> PairwiseL2:
        """The certificate for given weights.

        Args:
            network: With slopes in [0, 1].
            multiplier: ``Lam``; ones by default.
            scale: What inputs were divided by before the network: gains and radii are then those
                of the undivided inputs (pixels). A number or shape (d,), taken as exact.

        Raises:
            ShapeError: `multiplier` or `scale` is not positive or of the wrong shape.
            NotCertifiableError: ``S`` is not proved to be positive definite.
        """
        n, d = network.n, network.d
        lam = torch.ones(n).double() if multiplier is None else multiplier.double()
        divisor = torch.as_tensor(scale, dtype=torch.float64).expand(d)
        for name, value, size in (("multiplier", lam, n), ("scale", divisor, d)):
            if value.shape != (size,) or not bool(((value > 0) & torch.isfinite(value)).all()):
                raise ShapeError(
                    f"`{name}` must be {size} positive finite numbers, got shape "
                    f"{tuple(value.shape)} with a smallest value of {float(value.min()):.3g}."
                )
        eye = torch.eye(n).double()
        S = symmetric(lam[:, None] * (eye - network.W))
        # the difference, the product, the sum: a unit each
        S_error = outward(8 * UNIT * symmetric(lam[:, None] * (eye + network.W.abs())), 4)
        X = lam[:, None] * (network.U / divisor)
        Q = symmetric(X @ X.mT) / 2
        size = X.abs() @ X.abs().mT
        Q_error = outward(rounding(d + 12) * torch.maximum(size, size.mT), d)
        made = cls(network, lam, S, Q, S_error, Q_error, divisor)
        least = made._definite()[1]
        if not least > 0:
            raise NotCertifiableError(
                f"Lam (I - W) + (I - W)^T Lam has no eigenvalue proved above 0: {least:.4g}.",
                hint="take the weights of `monotone_witness` as multiplier.",
            )
        return made

    @torch.no_grad()
    def gain(
        self, rows: Tensor, direct: Tensor | None = None, theta: Tensor | None = None
    ) -> Gains:
        """Bounds of ``|r dz + s dx| / ||dx||_2`` for rows ``r`` of states and ``s`` of inputs.

        Args:
            rows: Shape (R, n), taken as exact.
            direct: Shape (R, d); its 2-norm is added. None by default.
            theta: ``th`` of each row; searched by default. Where ``S - th Q`` is not proved to be
                positive definite the gain is infinite.

        Raises:
            ShapeError: The rows do not fit the network.
        """
        if rows.ndim != 2 or rows.shape[1] != self.network.n:
            raise ShapeError(
                f"`rows` must have shape (R, {self.network.n}), got {tuple(rows.shape)}."
            )
        rows = rows.double()
        if theta is None:
            theta = _Spectrum.of(self.S, self.Q).search(rows)[0]
        size = max(1, _CHUNK // self.network.n**2)
        parts = [
            self._prove(r, t) for r, t in zip(rows.split(size), theta.split(size), strict=True)
        ]
        square = torch.cat(parts) if parts else theta.new_zeros(0)
        gain = outward(square.sqrt(), 2)
        if direct is not None:
            own = direct.double() / self.scale
            gain = gain + outward(own.square().sum(1), self.network.d + 6).sqrt()
        return Gains(outward(gain, 4).nan_to_num(inf, inf), theta)

    def _prove(self, c: Tensor, theta: Tensor) -> Tensor:
        """``(1/th) c M^-1 c^T`` from above, ``M = S - th Q`` proved positive definite.

        For any ``y`` and ``r = c - M y``: ``c M^-1 c = c y + r y + r M^-1 r`` and the last term is
        at most ``||r||^2 / lambda_min(M)``.
        """
        n, th = self.network.n, theta[:, None, None]
        plain = self.S - th * self.Q
        blurred = self.S_error + th * self.Q_error + 4 * UNIT * (self.S.abs() + plain.abs())
        # in units in which the diagonal is about one: c M^-1 c^T is the same number
        k = balance(self.S)
        M, slip, c = k[:, None] * plain * k, k[:, None] * outward(blurred, 4) * k, c * k
        least = least_eigenvalue(M, reach(slip))
        y = torch.linalg.solve_ex(M, c[..., None])[0]
        image = M @ y
        r = (c[..., None] - image).squeeze(-1)
        flow = c.abs() + (M.abs() @ y.abs()).squeeze(-1)
        blur = rounding(n + 4) * flow + (slip @ y.abs()).squeeze(-1)
        y = y.squeeze(-1)
        left = outward(r.abs() + outward(blur, n + 4), 4)
        value = (c * y).sum(1) + outward((left * y.abs()).sum(1), n + 4)
        value = value + rounding(n + 4) * outward((c * y).abs().sum(1), n + 4)
        value = value + outward(left.square().sum(1), n + 4) / least
        good = (least > 0) & (theta > 0) & torch.isfinite(value)
        return torch.where(good, outward(value.clamp(min=0) / theta, 8), inf)

    @torch.no_grad()
    def pairs(self) -> Tensor:
        """Gains of ``y_t - y_j`` for all classes, shape (q, q), 0 on the diagonal."""
        q = self.network.q
        first, second = torch.triu_indices(q, q, 1)
        out = torch.zeros(q, q, dtype=torch.float64)
        out[first, second] = out[second, first] = self.differences(first, second)
        return out

    @torch.no_grad()
    def differences(self, first: Tensor, second: Tensor) -> Tensor:
        """Gains of ``y_t - y_j`` for some pairs of classes ``(t, j)``, shape (P,)."""
        net = self.network
        rows, direct = net.C[first] - net.C[second], net.D[first] - net.D[second]
        gain = self.gain(rows, direct).gain
        # the differences of the weights were rounded: their error is a row like any other, bounded
        # by the gain of the states in the plain norm
        slip = 2 * UNIT * rows.abs().square().sum(1).sqrt()
        return gain + outward(
            slip * self._states() + 2 * UNIT * (direct / self.scale).abs().sum(1), net.d + 8
        )

    def _states(self) -> float:
        """``||dz|| <= ... ||dx||`` from ``dz^T S dz <= 2 dz^T Lam U dx``."""
        k, least = self._definite()
        spread = torch.diagonal(self.Q) + torch.diagonal(self.Q_error)
        top = float(outward(k.square() * spread, 4).sum())
        return 2 * float(k.amax()) * top**0.5 / least * (1 + 1e-12)

    def _definite(self) -> tuple[Tensor, float]:
        """Units ``k`` and a proved lower bound of the least eigenvalue of ``[k] S [k]``."""
        k = balance(self.S)
        S, error = k[:, None] * self.S * k, k[:, None] * self.S_error * k
        return k, float(least_eigenvalue(S, reach(error)))


@torch.no_grad()
def certified_radius(gaps: Tensor, label: Tensor, gains: Tensor) -> Tensor:
    """2-norm radii within which no other class overtakes the label, 0 where one has already.

    Args:
        gaps: Proved lower bounds of ``y_label - y_j`` at the inputs, shape (B, q).
        label: Shape (B,).
        gains: Proved bounds of ``|d(y_t - y_j)| / ||dx||_2``, shape (q, q).
    """
    own = torch.nn.functional.one_hot(label, len(gains)).bool()
    radii = torch.where(own, inf, gaps / gains[label].clamp(min=1e-300))
    return (radii.amin(1) * (1 - 4 * UNIT)).clamp(min=0)


def active_part(network: Network, bounds: Box) -> tuple[Network, Tensor]:
    """The network without its stably inactive neurons, and which are kept, shape (n,).

    Args:
        network: ReLU neurons only are dropped: the others have no flat piece.
        bounds: Of preactivations over a set of inputs, shape (n,); the part equals the network on
            that set alone.
    """
    keep = (bounds.upper > 0) | (network.slope > 0)
    index = keep.nonzero().squeeze(1)
    W = network.W[index][:, index]
    part = Network.of(
        W,
        network.U[index],
        network.b[index],
        network.C[:, index],
        network.c,
        D=network.D,
        activation=network.activation,
        linear=network.linear[index],
    )
    return part, keep


@torch.no_grad()
def tuned_multiplier(
    network: Network,
    rows: Tensor,
    start: Tensor | None = None,
    *,
    scale: Tensor | float = 1.0,
    steps: int = 100,
    rate: float = 0.05,
) -> Tensor:
    """``Lam`` that nearly minimises the mean logarithm of the gains of `rows`: a hint.

    With ``y = (S - th Q)^-1 c`` the derivative of ``g^2`` with respect to ``Lam_i`` at the best
    ``th`` is ``-(2 y_i / th) ( (I - W) y - th U U^T Lam y )_i``.

    Args:
        network: What is to be certified.
        rows: Shape (R, n).
        start: First weights, such as those of `monotone_witness`; ones by default.
        scale: What inputs were divided by, as in `PairwiseL2.of`.
        steps: Of Adam.
        rate: Of Adam, on ``log Lam``.
    """
    theta = torch.zeros(network.n).double() if start is None else start.double().log()
    eye = torch.eye(network.n).double()
    V = network.U / torch.as_tensor(scale, dtype=torch.float64)
    rows, gram, adam = rows.double(), V @ V.mT, Adam(rate, steps)
    best, level = theta.exp(), inf
    for _ in range(steps):
        lam = theta.exp()
        S = symmetric(lam[:, None] * (eye - network.W))
        if int(torch.linalg.cholesky_ex(S)[1]):
            theta = (theta + best.log()) / 2
            adam = Adam(adam.rate / 2, steps)
            continue
        spectrum = _Spectrum.of(S, lam[:, None] * gram * lam)
        th, square, y = spectrum.search(rows)
        now = float(square.log().mean())
        if now < level:
            best, level = lam, now
        pull = y @ (eye - network.W).mT - th[:, None] * ((y * lam) @ gram)
        slope = -(2 * y * pull / th[:, None] / square[:, None]).mean(0) * lam
        theta = theta - adam.step(slope)
    return best


@final
@dataclass(frozen=True, eq=False)
class _Spectrum:
    """``T S T^T = I`` and ``T Q T^T = [om]``."""

    T: Tensor
    om: Tensor

    @classmethod
    def of(cls, S: Tensor, Q: Tensor) -> _Spectrum:
        L, _ = torch.linalg.cholesky_ex(S)
        half = torch.linalg.solve_triangular(L, Q, upper=False)
        whole = torch.linalg.solve_triangular(L, half.mT, upper=False)
        om, V = torch.linalg.eigh((whole + whole.mT) / 2)
        T = torch.linalg.solve_triangular(L.mT, V, upper=True).mT
        return cls(T, om.clamp(min=0))

    def search(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``th``, ``g^2`` and ``(S - th Q)^-1 c`` of each row, by golden section.

        ``(1/t) sum_k b_k^2 / (1 - t om_k)`` is a sum of log-convex functions: it has one minimum.
        """
        top = float(self.om.amax().clamp(min=1e-290))
        part, b = self.om / top, rows @ self.T.mT
        weight = b.square()

        def value(t: Tensor) -> Tensor:
            return (weight / (1 - t[:, None] * part)).sum(1) / t

        low, high = torch.zeros_like(weight[:, 0]), torch.ones_like(weight[:, 0])
        ratio = (5**0.5 - 1) / 2
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        at_left, at_right = value(left), value(right)
        for _ in range(_SECTIONS):
            down = at_left < at_right
            low, high = torch.where(down, low, left), torch.where(down, right, high)
            fresh = torch.where(down, high - ratio * (high - low), low + ratio * (high - low))
            new = value(fresh)
            left, right = torch.where(down, fresh, right), torch.where(down, left, fresh)
            at_left, at_right = (
                torch.where(down, new, at_right),
                torch.where(down, at_left, new),
            )
        t = ((low + high) / 2).clamp(max=1 - 1e-9)
        y = (b / (1 - t[:, None] * part)) @ self.T
        return t / top, value(t) * top, y
