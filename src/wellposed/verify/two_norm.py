"""Certified radii in the 2-norm of whole test sets, by pairwise multipliers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.composed import composed_gains
from wellposed.certify.equilibria import logit_gaps
from wellposed.certify.lower import lower
from wellposed.certify.pairwise import PairwiseL2, certified_radius, tuned_multiplier
from wellposed.certify.wellposed import monotone_witness, wellposedness
from wellposed.core.network import Network
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.normalise import Normalise

_BATCH = 2000
EACH = 64  # pairs of classes up to which each has a multiplier of its own
TUNED = 300  # neurons up to which multipliers are tuned
STEPS = 100  # of the search for a multiplier


@final
@dataclass(frozen=True, eq=False)
class TwoNorm:
    """What is proved of a batch of inputs in the 2-norm.

    Args:
        radius: No input nearer than this has another class than the label, in units of the model's
            inputs, shape (B,); 0 where the model errs or nothing is proved.
        gap: Proved lower bounds of the smallest ``y_label - y_j`` at the inputs, shape (B,).
        gains: Proved gains of the differences of two logits, shape (q, q).
        seconds: Processor time.
    """

    radius: Tensor
    gap: Tensor
    gains: Tensor
    seconds: float

    def certified(self, radius: float) -> float:
        """Part of the inputs that is classified as labelled on the whole closed ball.

        Raises:
            ShapeError: The radius is negative.
        """
        if not radius >= 0:
            raise ShapeError(f"A radius must not be negative, got {radius}.")
        return float((self.radius > radius).double().mean())


@torch.no_grad()
def pair_gains(
    network: Network,
    start: Tensor | None = None,
    *,
    scale: Tensor | float = 1.0,
    steps: int = STEPS,
) -> Tensor:
    """Proved gains ``|d(y_t - y_j)| <= g_tj ||dx||_2`` of all pairs of classes, shape (q, q).

    Any multiplier ``Lam`` proves a bound for every pair (`PairwiseL2`), so that each pair may have
    one of its own: the multiplier that is good for all of them is tuned first, and then, from
    there, for one pair after the other. The smallest proved gain counts.

    Args:
        network: Monotone in a weighted 2-norm.
        start: Weights of a witness; searched by default.
        scale: What inputs were divided by before the network, as in `PairwiseL2.of`.
        steps: Of each search; 0 takes the multiplier of the witness. Above 300 neurons nothing is
            tuned, above 64 pairs one multiplier serves all.

    Raises:
        NotCertifiableError: The network is not shown to be monotone.
    """
    lam = monotone_witness(network).weights if start is None else start
    if network.n > TUNED:
        steps = 0
    first, second = torch.triu_indices(network.q, network.q, 1)
    rows = network.C[first] - network.C[second]
    gains = PairwiseL2.of(network, lam, scale=scale).differences(first, second)
    if steps:
        lam = tuned_multiplier(network, rows, lam, scale=scale, steps=steps)
        gains = torch.minimum(gains, _differences(network, lam, scale, first, second))
    if steps and len(first) <= EACH:
        for k in range(len(first)):
            one = slice(k, k + 1)
            own = tuned_multiplier(network, rows[one], lam, scale=scale, steps=steps)
            found = _differences(network, own, scale, first[one], second[one])
            gains[one] = torch.minimum(gains[one], found)
    out = torch.zeros(network.q, network.q, dtype=torch.float64)
    out[first, second] = out[second, first] = gains
    return out


@torch.no_grad()
def better_gains(
    network: Network,
    composed: Tensor | None,
    start: Tensor | None = None,
    *,
    scale: Tensor | float = 1.0,
    steps: int = STEPS,
) -> Tensor:
    """The smaller of `pair_gains` and of gains that are known otherwise, pair by pair.

    Args:
        network: As in `pair_gains`.
        composed: Proved gains of the same pairs, such as those of `composed_gains`, shape (q, q).
        start: As in `pair_gains`.
        scale: As in `pair_gains`.
        steps: As in `pair_gains`.

    Raises:
        NotCertifiableError: There are no finite ones of either kind.
    """
    if composed is None:
        return pair_gains(network, start, scale=scale, steps=steps)
    try:
        own = pair_gains(network, start, scale=scale, steps=steps)
    except NotCertifiableError:
        if not bool(torch.isfinite(composed).all()):
            raise
        return composed
    return torch.minimum(own, composed)


def _differences(
    network: Network, lam: Tensor, scale: Tensor | float, first: Tensor, second: Tensor
) -> Tensor:
    """Gains by a multiplier that was searched; infinite if it proves nothing."""
    try:
        return PairwiseL2.of(network, lam, scale=scale).differences(first, second)
    except NotCertifiableError:
        return torch.full((len(first),), torch.inf, dtype=torch.float64)


@torch.no_grad()
def l2_certified(
    model: nn.Module | Network, x: Tensor, y: Tensor, *, steps: int = STEPS
) -> TwoNorm:
    """Certified 2-norm radii of labelled inputs of a dense network that is monotone.

    One eigendecomposition a step of the searches for multipliers (`pair_gains`), one Cholesky
    factorisation a pair of classes for the proof, one equilibrium an input.

    Args:
        model: A module that can be lowered, in evaluation mode, with at most one `Normalise`, in
            front; or explicit weights.
        x: Inputs, shape (B, ...).
        y: Labels, shape (B,).
        steps: Of each search for a multiplier; 0 takes that of the witness.

    Raises:
        ShapeError: A label is out of range, or the shapes differ.
        NotCertifiableError: The model cannot be lowered, or is not shown to be monotone in any
            weighted 2-norm.
    """
    began = time.process_time()
    if y.shape != x.shape[:1]:
        raise ShapeError(f"There are {len(x)} inputs and labels of shape {tuple(y.shape)}.")
    scaling, composed = None, None
    if isinstance(model, Network):
        network = model
    else:
        lowered = lower(model, tuple(x.shape[1:]))
        network, scaling = lowered.network(), lowered.scaling
        composed = composed_gains(model, lowered.in_shape, network.q)
    if len(y) and not bool(((y >= 0) & (y < network.q)).all()):
        raise ShapeError(
            f"Labels must lie between 0 and {network.q - 1}, got {int(y.min())} to {int(y.max())}."
        )
    std, points, slip = _enter(x, scaling)
    gains = better_gains(network, composed, scale=std, steps=steps)
    witness = wellposedness(network)
    gaps = torch.cat(
        [
            logit_gaps(network, points[k : k + _BATCH], y[k : k + _BATCH], witness).lower
            for k in range(0, max(len(x), 1), _BATCH)
        ]
    )
    radius = (certified_radius(gaps, y, gains) - slip) * (1 - 4 * UNIT)
    own = torch.nn.functional.one_hot(y, network.q).bool()
    gap = gaps.masked_fill(own, torch.inf).amin(1)
    return TwoNorm(radius.clamp(min=0), gap, gains, time.process_time() - began)


def _enter(x: Tensor, scaling: Normalise | None) -> tuple[Tensor | float, Tensor, Tensor]:
    """The divisor of each input, the points in the network's coordinates, and how far they are off.

    The difference and the quotient are rounded by a unit each, so that in the model's coordinates
    the point is off by at most ``2 u |x - mean|``.
    """
    wide = x.detach().double()
    if scaling is None:
        return 1.0, wide.flatten(1), wide.new_zeros(len(x))
    mean, std = scaling.mean.detach().double(), scaling.std.detach().double()
    apart = wide - mean
    far = outward(4 * UNIT * apart.flatten(1).square().sum(1).sqrt(), 4)
    return std.expand(x.shape[1:]).flatten(), (apart / std).flatten(1), far
