"""Equilibrium networks that rise in one input and fall in another, proved rather than hoped for.

A toy of demand: it falls with the price, rises with income, and depends on the season in any way.
Three networks learn it from few noisy points:

1. a cooperative equilibrium, whose states are ordered, under a monotone Lipschitz network;
2. a contracting equilibrium with free signs inside the body of a monotone Lipschitz network;
3. a plain equilibrium network, for comparison.

    python examples/monotone_equilibrium.py            # under a minute on one core
    python examples/monotone_equilibrium.py --steps 20 # a quick look
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.cells.cooperative import CooperativeCell
from wellposed.certify import order
from wellposed.errors import NotCertifiableError
from wellposed.nn.monotone import MonotoneResidual, lipschitz_monotone
from wellposed.nn.vector_norm import constrain, retract

FEATURES = ("price", "income", "season")
SIGNS = (-1, 1, 0)


def demand(x: Tensor) -> Tensor:
    """The truth: saturating in price and income, a wave in the season."""
    price, income, season = x.unbind(1)
    return torch.sigmoid(3 * (income - price)) + 0.3 * torch.sin(4 * season)


def networks(n: int = 12) -> dict[str, nn.Module]:
    """The three networks, untrained."""
    cell = CooperativeCell(3, n, signs=SIGNS)
    ordered = nn.Sequential(wp.Equilibrium(cell), lipschitz_monotone((n, 8, 1), [1] * n))
    # inputs enter entry by entry (1 to max), states contract by a half in the max norm
    free = wp.InfNormCell(3, n, bound=0.5)
    constrain(free.inject, "1->max", 2.0 * (1 - 0.5))
    body = nn.Sequential(wp.Equilibrium(free), constrain(nn.Linear(n, 1), "max->max", 1.0))
    wrapped = MonotoneResidual(body, SIGNS, 2.0)
    plain = nn.Sequential(wp.Equilibrium(wp.NemonCell(3, n)), nn.Linear(n, 1))
    return {
        "cooperative equilibrium": ordered,
        "equilibrium in a monotone residual": wrapped,
        "plain equilibrium": plain,
    }


def fit(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Full-batch Adam; raw weights return to their bounds after every step."""
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        loss = nn.functional.mse_loss(net(x)[:, 0], y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        retract(net)


@torch.no_grad()
def violation(net: nn.Module, pairs: int = 5000, seed: int = 1) -> float:
    """How far the output moves against the signs at most, on random ordered pairs."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(pairs, 3, generator=generator) - 0.5
    step = torch.rand(pairs, 3, generator=generator) * torch.tensor(SIGNS)
    return float((net(x) - net(x + step)).max().clamp(min=0))


def main(steps: int = 300, points: int = 60, seed: int = 0) -> dict[str, dict[str, float]]:
    """Train all three and print error, violation and proof; returns the figures."""
    torch.manual_seed(seed)
    x, x_test = torch.rand(points, 3), torch.rand(2000, 3)
    y = demand(x) + 0.15 * torch.randn(points)
    found: dict[str, dict[str, float]] = {}
    for name, net in networks().items():
        fit(net, x, y, steps)
        net.eval()
        with torch.no_grad():
            error = float((net(x_test)[:, 0] - demand(x_test)).square().mean().sqrt())
        try:
            order(net, in_shape=(3,)).require(SIGNS)
            proved = True
        except NotCertifiableError:
            proved = False
        moved = violation(net)
        found[name] = {"error": error, "violation": moved, "proved": float(proved)}
        word = "proved" if proved else "not proved"
        print(f"{name:36} error {error:.3f}, against the order by {moved:.2g}, {word}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.steps, given.points, given.seed)
