"""Small networks for the cascade, and checks of verdicts against brute force."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.certify.centre import approximate_equilibrium
from wellposed.core.activations import LeakyReLU
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.verify.branch import Budget
from wellposed.verify.classifier import Classifier
from wellposed.verify.verdicts import Verdicts

SMALL = Budget(seconds=5.0, batch=16)


def contracting(seed: int, n: int = 6, d: int = 3, q: int = 3, slope: float = 0.0) -> Network:
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=g)
    A = 0.9 * A / A.abs().sum(1, keepdim=True)
    return Network.of(
        A - torch.diag(torch.rand(n, generator=g)),
        3 * torch.randn(n, d, generator=g),
        torch.randn(n, generator=g),
        torch.randn(q, n, generator=g),
        torch.randn(q, generator=g),
        activation=LeakyReLU(slope),
    )


def monotone(seed: int, n: int = 6, d: int = 3, q: int = 3) -> Network:
    g = torch.Generator().manual_seed(seed)
    F, S = (1.5 * torch.randn(n, n, generator=g) / n**0.5 for _ in range(2))
    return Network.of(
        torch.eye(n) * 0.2 - F.mT @ F + 2 * (S - S.mT),
        3 * torch.randn(n, d, generator=g),
        torch.randn(n, generator=g),
        torch.randn(q, n, generator=g),
        torch.randn(q, generator=g),
        D=torch.randn(q, d, generator=g),
    )


def module(seed: int, *, scale: float = 4.0) -> nn.Sequential:
    torch.manual_seed(seed)
    cell = wp.NemonCell(3, 8)
    with torch.no_grad():
        cell.inject.weight.mul_(scale)
    return nn.Sequential(wp.Equilibrium(cell), nn.Linear(8, 3)).eval()


def margins(model: nn.Module | Network, x: Tensor, y: Tensor) -> Tensor:
    """Smallest margins in float64, from scratch."""
    if isinstance(model, Network):
        v = approximate_equilibrium(model, x)
        logits = model.output(model.phi(v), x)
    else:
        task = Classifier.of(model, tuple(x.shape[1:]))
        assert task.network is not None
        inside = task.enter(Box(x, x)).box.lower
        logits = task.network.output(
            task.network.phi(approximate_equilibrium(task.network, inside)), inside
        )
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return (own - others.amax(1, keepdim=True))[:, 0]


def grid(region: Box, k: int, points: int = 9) -> Tensor:
    """A grid of one region with all its corners."""
    axes = [
        torch.linspace(0, 1, points).double() * (b - a) + a
        for a, b in zip(region.lower[k].flatten(), region.upper[k].flatten(), strict=True)
    ]
    x = torch.tensor(list(product(*[a.tolist() for a in axes]))).double()
    return torch.minimum(torch.maximum(x, region.lower[k].flatten()), region.upper[k].flatten())


def check(model: nn.Module | Network, x: Tensor, y: Tensor, region: Box, found: Verdicts) -> None:
    """Verified against a grid with its corners; falsified against the witness itself."""
    assert len(found.verdicts) == len(x)
    for k, verdict in enumerate(found.verdicts):
        label = y[k]
        if verdict.status == "verified":
            points = grid(region, k)
            low = float(margins(model, points, label.expand(len(points))).min())
            assert 0 < verdict.margin <= low + 1e-9
        elif verdict.status == "falsified":
            assert verdict.witness is not None
            point = torch.tensor(verdict.witness, dtype=torch.float64).reshape(1, *x.shape[1:])
            assert bool(region.select(torch.tensor([k])).contains(point)[0])
            margin = float(margins(model, point, label[None]))
            assert margin <= verdict.margin + 1e-9
            assert margin < 0
            assert verdict.margin < 0


def classes(network: Network, x: Tensor) -> Tensor:
    v = approximate_equilibrium(network, x.double())
    return network.output(network.phi(v), x.double()).argmax(1)


def weights(network: Network) -> list[Tensor]:
    return [network.W, network.U, network.b, network.C, network.c]
