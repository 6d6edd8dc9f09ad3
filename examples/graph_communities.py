"""Find the communities of a generated graph with an implicit graph network, and certify the nodes.

Run it with ``python examples/graph_communities.py``; it takes some seconds on one core.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from wellposed.cells.graph import GraphCell, normalised_adjacency
from wellposed.certify import box_certified, enclose, lipschitz
from wellposed.core.sets import Box
from wellposed.data.communities import Communities, stochastic_blocks
from wellposed.nn.equilibrium import Equilibrium


def train(front: nn.Module, head: nn.Linear, data: Communities, steps: int, decay: float) -> None:
    """Fit front and readout to the nodes whose label is known."""
    parameters = [*front.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 0.01, weight_decay=decay)
    for _ in range(steps):
        logits = outputs(front, head, data.features)
        loss = nn.functional.cross_entropy(logits[data.train], data.labels[data.train])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def outputs(front: nn.Module, head: nn.Linear, features: Tensor) -> Tensor:
    """Logits of every node, shape (nodes, communities)."""
    return head(front(features[None])[0].mT)


def accuracy(front: nn.Module, head: nn.Linear, data: Communities, part: Tensor) -> float:
    """Share of the nodes of a part that are classified rightly."""
    right = outputs(front, head, data.features).argmax(1) == data.labels
    return float(right[part].double().mean())


def certified(layer: nn.Module, head: nn.Linear, data: Communities, eps: float) -> Tensor:
    """Nodes whose class is proved if every feature of every node moves by at most `eps`."""
    states = enclose(layer, Box.around(data.features[None], eps))
    nodes = Box(states.lower[0].mT.contiguous(), states.upper[0].mT.contiguous())
    return box_certified(nn.Sequential(head), nodes, data.labels)


def attacked(layer: nn.Module, head: nn.Linear, data: Communities, eps: float) -> Tensor:
    """Nodes that projected gradient descent on the features of all nodes leaves right."""
    sign = torch.zeros_like(data.features)
    left = outputs(layer, head, data.features).argmax(1) == data.labels
    for _ in range(20):
        moved = (data.features + eps * sign).requires_grad_()
        logits = outputs(layer, head, moved)
        loss = nn.functional.cross_entropy(logits, data.labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        sign = (sign + 0.25 * slope.sign()).clamp(-1, 1)
        with torch.no_grad():
            found = outputs(layer, head, data.features + eps * sign)
            left &= found.argmax(1) == data.labels
    return left


def main(steps: int = 100, size: int = 80, seed: int = 0) -> dict[str, float]:
    """Train both networks and print what they reach; returns the figures."""
    data = stochastic_blocks(size=size, seed=seed)
    torch.manual_seed(seed)
    linear, baseline = nn.Linear(8, 3), nn.Identity()
    train(baseline, linear, data, steps, 1e-2)
    layer = Equilibrium(GraphCell(8, 16, normalised_adjacency(data.edges)))
    head = nn.Linear(16, 3)
    train(layer, head, data, steps, 1e-2)
    layer.eval()
    out = {
        "linear": accuracy(baseline, linear, data, data.test),
        "graph": accuracy(layer, head, data, data.test),
        "lipschitz": lipschitz(layer).value,
    }
    print(f"test accuracy without the graph: {100 * out['linear']:.1f} %")
    print(f"test accuracy with the graph:    {100 * out['graph']:.1f} %")
    print(f"states move at most {out['lipschitz']:.3g} times as far as features (max norm)")
    for eps in (0.01, 0.05):
        proved = certified(layer, head, data, eps)[data.test]
        left = attacked(layer, head, data, eps)[data.test]
        if bool((proved & ~left).any()):
            raise AssertionError("An attack broke a certificate.")
        out[f"certified@{eps}"] = float(proved.double().mean())
        out[f"attacked@{eps}"] = float(left.double().mean())
        print(
            f"features within {eps}: {100 * out[f'certified@{eps}']:.1f} % certified, "
            f"{100 * out[f'attacked@{eps}']:.1f} % after the attack"
        )
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=80, help="nodes of a community")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.steps, given.size, given.seed)
