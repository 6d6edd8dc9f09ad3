"""Generated graphs with communities: the stochastic block model with weak node features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.errors import ConfigError


@final
@dataclass(frozen=True, eq=False)
class Communities:
    """A graph whose nodes belong to communities.

    Args:
        edges: Adjacency, 0 or 1, symmetric, shape (nodes, nodes).
        features: Shape (features, nodes).
        labels: Community of each node, int64.
        train: Nodes whose label is known in training, boolean.
        validation: Nodes to choose by, boolean.
        test: The others, boolean.
    """

    edges: Tensor
    features: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor


def stochastic_blocks(
    communities: int = 3,
    size: int = 80,
    *,
    inside: float = 0.15,
    between: float = 0.01,
    features: int = 8,
    signal: float = 1.0,
    known: float = 0.1,
    seed: int = 0,
) -> Communities:
    """Draw a stochastic block model whose features tell little about the community.

    Nodes of a community are joined with probability `inside`, others with `between`. The features
    of a node are those of its community, `signal` times a random unit vector, plus normal noise of
    variance 1 in every component.

    Args:
        communities: How many, at least 2.
        size: Nodes of each.
        inside: Probability of an edge within a community.
        between: Probability of an edge between two.
        features: Of a node.
        signal: Length of the mean feature vector of a community.
        known: Part of the nodes whose label is known; as many serve for validation.
        seed: Of everything.

    Raises:
        ConfigError: A number is out of its range.
    """
    if communities < 2 or size < 2 or features < 1:
        raise ConfigError(
            f"Got {communities} communities of {size} nodes with {features} features, expected at "
            "least 2, 2 and 1."
        )
    if not (0 <= between <= 1 and 0 <= inside <= 1 and 0 < known <= 0.5):
        raise ConfigError(
            f"`inside` {inside} and `between` {between} must be probabilities and `known` {known} "
            "at most a half."
        )
    generator = torch.Generator().manual_seed(seed)
    nodes = communities * size
    labels = torch.arange(nodes) % communities
    odds = torch.where(labels[:, None] == labels, inside, between)
    upper = (torch.rand(nodes, nodes, generator=generator) < odds).float().triu(1)
    centres = torch.randn(communities, features, generator=generator)
    centres = signal * centres / centres.norm(dim=1, keepdim=True)
    noise = torch.randn(nodes, features, generator=generator)
    order = torch.randperm(nodes, generator=generator)
    count = max(1, round(known * nodes))
    part = torch.full((nodes,), 2)
    part[order[:count]], part[order[count : 2 * count]] = 0, 1
    return Communities(
        upper + upper.mT,
        (centres[labels] + noise).mT.contiguous(),
        labels,
        part == 0,
        part == 1,
        part == 2,
    )
