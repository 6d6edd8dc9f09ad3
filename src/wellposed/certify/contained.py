"""Contained zonotopes: the published abstract interpreter of equilibrium networks, as a baseline.

For comparison only. It works in float64 *without* rounding outward, like the published code; what
it returns is no certificate, and `zonotope_enclosure` is sharper and far cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import final

import torch
from torch import Tensor

from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.fallback import checked
from wellposed.certify.relax import neurons_of, relax
from wellposed.certify.system import Neurons
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError


@final
@dataclass(frozen=True, eq=False)
class ContainedZonotope:
    """``{ centre + generators e : |e| <= 1 }`` of the states of all equilibria of one region.

    Args:
        centre: Shape (n,).
        generators: Shape (n, k).
        contained: Whether the search ended with containment; nothing is meant otherwise.
        steps: Steps taken.
    """

    centre: Tensor
    generators: Tensor
    contained: bool
    steps: int

    def minimum(self, rows: Tensor) -> Tensor:
        """Smallest values of rows of shape (R, n) on the zonotope, up to rounding."""
        return rows @ self.centre - (rows @ self.generators).abs().sum(1)


@torch.no_grad()
def contained_zonotope(
    network: Network,
    region: Box,
    *,
    steps: int = 300,
    every: int = 30,
    refine: int = 20,
    alpha: float | None = None,
    widening: float = 1e-3,
) -> ContainedZonotope:
    """Abstract Peaceman-Rachford steps with consolidation until one contains a later one [1].

    ``p+ = (2 V - I)(2 relu(p) - p) + 2 alpha V (U x + b)``, ``V = ((1 + alpha) I - alpha W)^-1``,
    with ``relu`` by parallel lines, started at the equilibrium of the centre. Every few steps the
    generators are replaced by n of them in a principal basis Q, ``Q diag(|Q^-1 G| 1)``, slightly
    enlarged. A later set ``a' + G' e`` lies in ``a + G e`` if ``|G^-1 G'| 1 + |G^-1 (a' - a)|`` is
    at most 1; then the later one holds the fixed points of all inputs, and so does every further
    step.

    Args:
        network: Monotone, with one-kink activations.
        region: One box of inputs, a batch of one.
        steps: At most.
        every: Steps between consolidations.
        refine: Steps after containment, without consolidation.
        alpha: Step length; ``1 / sqrt(m L)`` if absent, with the monotonicity modulus and the norm
            of ``I - W``.
        widening: By which consolidated generators are enlarged.

    Raises:
        ShapeError: The region is no batch of one.
        ConfigError: The activation has more than one kink.

    References:
        [1] Mueller, Fischer, Staab, Vechev. Abstract interpretation of fixpoint iterators with
        applications to neural networks. PLDI 2023, arXiv 2110.08260.
    """
    region = checked(network, region).box
    if len(region.lower) != 1:
        raise ShapeError(f"One region at a time, got {len(region.lower)}.")
    neurons = neurons_of(network)
    if neurons.kink is None:
        raise ConfigError(f"`{network.activation.name}` has no proximal operator here.")
    W, eye = network.W, torch.eye(network.n, dtype=torch.float64)
    M = eye - W
    alpha = _step(M) if alpha is None else alpha
    V = torch.linalg.inv(eye + alpha * M)
    turn = 2 * V - eye
    inputs = 2 * alpha * (V @ network.U) * region.radius
    offset = 2 * alpha * V @ (network.U @ region.centre[0] + network.b)
    v = approximate_equilibrium(network, region.centre)[0]
    z = neurons(v)
    p, own, shared = (1 - alpha) * z + alpha * v, torch.zeros(network.n, 0).double(), inputs * 0
    outer: list[tuple[Tensor, Tensor]] = []
    contained, left, taken = False, refine, 0
    while taken < steps + refine and left > 0:
        taken += 1
        if not contained and taken % every == 0:
            own, shared = (
                _consolidated(torch.cat([own, shared], 1), widening),
                torch.zeros_like(shared),
            )
            outer = [*outer[-9:], (p, torch.linalg.inv(own))]
        slope, centre, radius = _lines(neurons, p, torch.cat([own, shared], 1))
        fold = 2 * slope - 1
        own = turn @ torch.cat([fold[:, None] * own, 2 * torch.diag(radius)[:, radius > 0]], 1)
        shared = turn @ (fold[:, None] * shared) + inputs
        p = turn @ (fold * p + 2 * centre) + offset
        whole = torch.cat([own, shared], 1)
        if not bool(torch.isfinite(whole).all()) or float(whole.abs().amax()) > 1e9:
            break
        contained = contained or any(
            bool(((inv @ whole).abs().sum(1) + (inv @ (p - a)).abs() <= 1).all())
            for a, inv in outer
        )
        left -= contained
        if not contained and taken >= steps:
            break
    whole = torch.cat([own, shared], 1)
    slope, centre, radius = _lines(neurons, p, whole)
    states = torch.cat([slope[:, None] * whole, torch.diag(radius)], 1)
    return ContainedZonotope(slope * p + centre, states, contained, taken)


def _step(M: Tensor) -> float:
    low = float(torch.linalg.eigvalsh((M + M.mT) / 2)[0])
    high = float(torch.linalg.matrix_norm(M, 2))
    return 1 / sqrt(max(low, 1e-6 * high) * high)


def _lines(neurons: Neurons, p: Tensor, generators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes, centres and radii of the parallel lines on the bounds of a zonotope."""
    reach = generators.abs().sum(1)
    found = relax(neurons, (p - reach)[None], (p + reach)[None])
    return found.slope[0], found.centre[0], found.radius[0]


def _consolidated(generators: Tensor, widening: float) -> Tensor:
    """N generators that contain all: principal axes, as long as the others reach along them."""
    basis, _, _ = torch.linalg.svd(generators, full_matrices=True)
    size = (basis.mT @ generators).abs().sum(1)
    return basis * (size * (1 + widening) + widening * size.mean() + 1e-12)
