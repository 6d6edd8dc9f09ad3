"""Trees of case distinctions as flat arrays, with a multiplier at every leaf."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Tree:
    """Binary trees that grow: a node is a number, and all roots come first.

    Args:
        roots: How many trees.
    """

    def __init__(self, roots: int) -> None:
        self._split = torch.full((max(roots, 1),), -1)
        self._child = torch.full((max(roots, 1),), -1)
        self._leaf = torch.full((max(roots, 1),), -1)
        self._multipliers: list[Tensor] = []
        self._bounds: list[Tensor] = []
        self._closed = 0
        self.size = roots

    def grow(self, number: Tensor, neuron: Tensor) -> Tensor:
        """Split nodes; returns the numbers of their "off" children, the "on" ones follow each."""
        first = self.size + 2 * torch.arange(len(number))
        self.size += 2 * len(number)
        while len(self._split) < self.size:
            self._split, self._child, self._leaf = (
                torch.cat([t, torch.full_like(t, -1)])
                for t in (self._split, self._child, self._leaf)
            )
        self._split[number], self._child[number] = neuron, first
        return first

    def close(self, number: Tensor, multipliers: Tensor, bounds: Tensor) -> None:
        """Make nodes leaves, proved by one multiplier each."""
        self._leaf[number] = self._closed + torch.arange(len(number))
        self._closed += len(number)
        self._multipliers.append(multipliers)
        self._bounds.append(bounds)

    def preorder(self, root: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tree below a node: neuron of every split or -1, multipliers and bounds of the leaves.

        "Off" comes before "on". Leaves that were never closed have multiplier 0 and bound -inf.

        Returns:
            Shapes (N,), (L, n) and (L,).
        """
        split, child, leaf = self._split.tolist(), self._child.tolist(), self._leaf.tolist()
        order: list[int] = []
        found: list[int] = []
        stack = [root]
        while stack:
            at = stack.pop()
            order.append(split[at])
            if split[at] >= 0:
                stack += [child[at] + 1, child[at]]
            else:
                found.append(leaf[at])
        index = torch.tensor(found)
        if not self._closed:
            none = torch.full((len(index),), -torch.inf, dtype=torch.float64)
            return torch.tensor(order), torch.zeros(len(index), 0), none
        multipliers, bounds = torch.cat(self._multipliers)[index], torch.cat(self._bounds)[index]
        missing = index < 0
        multipliers[missing], bounds[missing] = 0.0, -torch.inf
        return torch.tensor(order), multipliers, bounds


def signs(split: Tensor, n: int) -> Tensor:
    """Of every leaf of a tree in preorder: the phases it has decided, 1, -1 or 0, shape (L, n)."""
    found: list[Tensor] = []
    stack = [torch.zeros(n, dtype=torch.int8)]
    for neuron in split.tolist():
        here = stack.pop()
        if neuron < 0:
            found.append(here)
            continue
        for phase in (1, -1):
            case = here.clone()
            case[neuron] = phase
            stack.append(case)
    return torch.stack(found)
