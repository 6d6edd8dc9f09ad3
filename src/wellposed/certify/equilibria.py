"""Equilibria of a dense network in float64, each with a proved bound of its own error."""

from __future__ import annotations

from math import inf
from typing import NamedTuple, final

import torch
from torch import Tensor

from wellposed.certify.resolvent import Resolvent
from wellposed.certify.wellposed import Wellposed
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import ShapeError

_BUDGET = 2000
_DIRECT = 1500
"""Largest state for which the resolvent is inverted and Newton steps are tried."""
_CHUNK = 2**24
"""Numbers in one batch of matrices."""


@final
class Fixed(NamedTuple):
    """A state near the equilibrium.

    Args:
        z: Shape (B, n).
        error: ``|z - z*| <= error``, componentwise, proved; infinite where nothing is.
    """

    z: Tensor
    error: Tensor


@final
class Injection(NamedTuple):
    """What an input contributes to the preactivations.

    Args:
        value: ``U x + b`` as computed, shape (B, n).
        size: ``|U| |x| + |b|`` as computed, which bounds its rounding.
    """

    value: Tensor
    size: Tensor

    def select(self, rows: Tensor) -> Injection:
        """Those of some inputs."""
        return Injection(self.value[rows], self.size[rows])


@torch.no_grad()
def inject(network: Network, x: Tensor) -> Injection:
    """The injections of inputs, taken as exact; shape (B, d), float64.

    Raises:
        ShapeError: `x` is not a batch of float64 inputs.
        NotCertifiableError: The activation has no rounding bound here: it is not piecewise linear.
    """
    _ = network.slope
    if x.ndim != 2 or x.shape[1] != network.d or x.dtype != torch.float64:
        raise ShapeError(
            f"Inputs must be float64 of shape (B, {network.d}), got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    size = torch.addmm(network.b.abs(), x.abs(), network.U.abs().mT)
    return Injection(torch.addmm(network.b, x, network.U.mT), size)


@torch.no_grad()
def equilibrium(network: Network, x: Tensor, wellposed: Wellposed) -> Fixed:
    """Near equilibria for inputs `x`, by Peaceman-Rachford splitting and Newton's method.

    The splitting converges for either kind of witness (`Resolvent`); a Newton step on the linear
    piece at hand then removes what is left, if it does. Neither is trusted: `state_error` measures
    what was reached.

    Args:
        network: With slopes in [0, 1].
        x: Inputs, taken as exact; shape (B, d), float64.
        wellposed: A verified witness.

    Raises:
        ShapeError: `x` is not a batch of float64 inputs.
    """
    into = inject(network, x)
    if network.n > _DIRECT:
        z = _jacobi(network, into.value)
        return Fixed(z, injected_error(network, into, z, wellposed))
    z = Resolvent.of(network).run(into.value)
    for _ in range(3):
        # more accurate than the rounding of its own residual a state cannot be shown to be
        poor = (_gap(network, into, z).abs() > _rounded(network, into, z)).any(1)
        rows = poor.nonzero().squeeze(1)
        if not len(rows):
            break
        part, old = into.select(rows), z[rows]
        trial = _newton(network, part.value, old)
        now, then = (_gap(network, part, s).abs().amax(1) for s in (trial, old))
        z[rows] = torch.where((now < then)[:, None], trial, old)
    return Fixed(z, injected_error(network, into, z, wellposed))


@torch.no_grad()
def state_error(network: Network, x: Tensor, z: Tensor, wellposed: Wellposed) -> Tensor:
    """Proved bounds of ``|z - z*(x)|`` for any `z`, componentwise, shape (B, n).

    With ``rho = z - phi(W z + U x + b)`` and its rounding error added:

    - monotone: ``z - rho`` is the equilibrium for the bias ``b + W rho``, hence
      ``|z - z*| <= |rho| + ||W rho||_Lam / (margin sqrt(Lam_i))``;
    - max norm: ``e = |z - z*|`` has ``e <= M e + r`` with ``M`` the canonical absolute matrix and
      ``r_i = |rho_i| max(1, 1 / (1 - W_ii))``. Hence
      ``e <= eta max_i( max(1, 1 - W_ii) |rho_i| / eta_i ) / margin``, and that may be put into the
      right-hand side any number of times.
    """
    return injected_error(network, inject(network, x), z, wellposed)


@torch.no_grad()
def injected_error(network: Network, into: Injection, z: Tensor, wellposed: Wellposed) -> Tensor:
    """`state_error` for injections that were formed before."""
    W = network.W
    gap, rounded = _gap(network, into, z), _rounded(network, into, z)
    rho = outward(gap.abs() + rounded, 4)
    if wellposed.kind == "max-norm":
        return _max_norm_error(W, rho, wellposed)
    lam, terms = wellposed.weights, network.n + 4
    # what was rounded in the gap and in this product, amplified by W
    blurred = rounded + rounding(terms) * rho
    spread = (gap @ W.mT).abs() + outward(blurred @ W.abs().mT, terms)
    size = outward((spread.square() * lam).sum(1, keepdim=True), network.n + 8).sqrt()
    far = size / (wellposed.margin * lam.sqrt()) * (1 + 16 * UNIT)
    return outward(rho + far, 4).nan_to_num(inf, inf)


@torch.no_grad()
def logit_gaps(network: Network, x: Tensor, label: Tensor, wellposed: Wellposed) -> Box:
    """Proved bounds of ``y_label - y_j`` at the true equilibrium of each input, shape (B, q).

    Entries at the label itself are 0. An input whose equilibrium was not found to a finite error
    has bounds of the largest finite numbers, which decide nothing.
    """
    return gaps_near(network, x, equilibrium(network, x, wellposed), label)


@torch.no_grad()
def gaps_near(network: Network, x: Tensor, fixed: Fixed, label: Tensor) -> Box:
    """`logit_gaps` from states with bounds of their errors."""
    z, error = fixed
    y, terms = network.output(z, x), network.n + network.d + 8
    flow = torch.addmm(network.c.abs(), z.abs(), network.C.abs().mT)
    if bool(network.D.any()):
        flow = torch.addmm(flow, x.abs(), network.D.abs().mT)
    own = label[:, None]
    value = y.gather(1, own) - y
    slack = rounding(terms) * (flow.gather(1, own) + flow)
    for k in label.unique().tolist():
        rows = label == k
        # the difference of two weights is rounded by a unit
        apart = outward((network.C[k] - network.C).abs())
        slack[rows] = slack[rows] + outward(error[rows] @ apart.mT, network.n)
    slack = outward(slack, terms)
    big = torch.finfo(torch.float64).max
    mine = torch.nn.functional.one_hot(label, network.q).bool()
    lower = (value - slack - 2 * UNIT * value.abs()).nan_to_num(-big, -big, -big)
    upper = (value + slack + 2 * UNIT * value.abs()).nan_to_num(big, big, big)
    return Box(lower.masked_fill(mine, 0.0), upper.masked_fill(mine, 0.0))


def _gap(network: Network, into: Injection, z: Tensor) -> Tensor:
    return z - network.phi(torch.addmm(into.value, z, network.W.mT))


def _rounded(network: Network, into: Injection, z: Tensor) -> Tensor:
    """Bound of the rounding of `_gap`; ``phi`` adds one unit of its result."""
    flow = torch.addmm(into.size + z.abs(), z.abs(), network.W.abs().mT)
    terms = network.n + network.d + 8
    return outward(rounding(terms) * flow, terms)


def _max_norm_error(W: Tensor, rho: Tensor, wellposed: Wellposed) -> Tensor:
    eta, n = wellposed.weights, len(W)
    room = 1 - torch.diagonal(W)
    least = room * (1 - 4 * UNIT)
    pull = outward(W.abs().fill_diagonal_(0.0) / least[:, None])
    forced = outward(rho * (1 / least).clamp(min=1), 2)
    worst = (rho * room.clamp(min=1) / eta).amax(1, keepdim=True) / wellposed.margin
    error = outward(worst * eta, 8).nan_to_num(inf, inf)
    for _ in range(_BUDGET):
        image = outward(error @ pull.mT + forced, n + 2).nan_to_num(inf, inf)
        closer = torch.minimum(error, image)
        done = bool((closer >= 0.9 * error).all())
        error = closer
        if done:
            break
    return error


def _newton(network: Network, q: Tensor, z: Tensor) -> Tensor:
    """``v`` with ``(I - W [d]) v = q`` on the linear piece at hand, and ``z = phi(v)``."""
    v = torch.addmm(q, z, network.W.mT)
    d = torch.where(v > 0, 1.0, network.slope)
    eye = torch.eye(network.n, dtype=z.dtype)
    size = max(1, _CHUNK // network.n**2)
    parts = [
        torch.linalg.solve_ex(eye - network.W * a[:, None], b[..., None])[0].squeeze(-1)
        for a, b in zip(d.split(size), q.split(size), strict=True)
    ]
    return network.phi(torch.cat(parts))


def _jacobi(network: Network, q: Tensor) -> Tensor:
    """Nonlinear Jacobi, which needs no inverse; exact after as many steps as there are layers."""
    own = torch.diagonal(network.W)
    off = network.W.clone().fill_diagonal_(0.0)
    d = network.slope
    z = torch.zeros_like(q)
    for _ in range(_BUDGET):
        s = torch.addmm(q, z, off.mT)
        new = torch.where(s > 0, s / (1 - own), d * s / (1 - d * own))
        done = bool(((new - z).abs() <= 4 * UNIT * new.abs()).all())
        z = new
        if done:
            break
    return z
