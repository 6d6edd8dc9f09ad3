"""Certified radii in the 2-norm of whole test sets, by pairwise multipliers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.equilibria import logit_gaps
from wellposed.certify.lower import lower
from wellposed.certify.pairwise import PairwiseL2, tuned_multiplier
from wellposed.certify.wellposed import monotone_witness, wellposedness
from wellposed.core.network import Network
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import ShapeError
from wellposed.nn.normalise import Normalise

_BATCH = 2000


@final
@dataclass(frozen=True, eq=False)
class TwoNorm:
    """What is proved of a batch of inputs in the 2-norm.

    Args:
        radius: No input nearer than this has another class than the label, in units of the model's
            inputs, shape (B,); 0 where the model errs or nothing is proved.
        gap: Proved lower bounds of the smallest ``y_label - y_j`` at the inputs, shape (B,).
        gains: Proved gains of the differences of two logits, shape (q, q).
        multiplier: ``Lam``, which proves them.
        seconds: Processor time.
    """

    radius: Tensor
    gap: Tensor
    gains: Tensor
    multiplier: Tensor
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
def l2_certified(model: nn.Module | Network, x: Tensor, y: Tensor, *, steps: int = 100) -> TwoNorm:
    """Certified 2-norm radii of labelled inputs of a dense network that is monotone.

    One eigendecomposition a step of the search for the multiplier, one Cholesky factorisation a
    pair of classes for the proof, one equilibrium an input.

    Args:
        model: A module that can be lowered, in evaluation mode, with at most one `Normalise`, in
            front; or explicit weights.
        x: Inputs, shape (B, ...).
        y: Labels, shape (B,).
        steps: Of the search for the multiplier; 0 takes that of the witness.

    Raises:
        ShapeError: A label is out of range, or the shapes differ.
        NotCertifiableError: The model cannot be lowered, or is not shown to be monotone in any
            weighted 2-norm.
    """
    began = time.process_time()
    if y.shape != x.shape[:1]:
        raise ShapeError(f"There are {len(x)} inputs and labels of shape {tuple(y.shape)}.")
    scaling = None
    if isinstance(model, Network):
        network = model
    else:
        lowered = lower(model, tuple(x.shape[1:]))
        network, scaling = lowered.network(), lowered.scaling
    if len(y) and not bool(((y >= 0) & (y < network.q)).all()):
        raise ShapeError(
            f"Labels must lie between 0 and {network.q - 1}, got {int(y.min())} to {int(y.max())}."
        )
    std, points, slip = _enter(x, scaling)
    start = monotone_witness(network).weights
    first, second = torch.triu_indices(network.q, network.q, 1)
    rows = network.C[first] - network.C[second]
    lam = tuned_multiplier(network, rows, start, scale=std, steps=steps) if steps else start
    proof = PairwiseL2.of(network, lam, scale=std)
    witness = wellposedness(network)
    gaps = torch.cat(
        [
            logit_gaps(network, points[k : k + _BATCH], y[k : k + _BATCH], witness).lower
            for k in range(0, max(len(x), 1), _BATCH)
        ]
    )
    gains = proof.pairs()
    radius = (proof.certified_radius(gaps, y, gains) - slip) * (1 - 4 * UNIT)
    own = torch.nn.functional.one_hot(y, network.q).bool()
    gap = gaps.masked_fill(own, torch.inf).amin(1)
    return TwoNorm(radius.clamp(min=0), gap, gains, lam, time.process_time() - began)


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
