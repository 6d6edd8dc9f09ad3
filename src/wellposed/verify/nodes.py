"""A batch of nodes of branch and bound: cases of neuron phases, and where their search stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Nodes:
    """Cases of the phases of the open neurons, each for one linear function of the outputs.

    Args:
        number: Of the node in its tree, shape (N,).
        row: Which function is bounded, shape (N,).
        phases: 1 on, -1 off, 0 undecided, shape (N, k), int8.
        below: Slopes ``a`` of the lower lines, shape (N, k).
        beta: Multipliers of the phases, not negative, shape (N, k).
        adjoint: Iterate of the splitting that solves for the multipliers, shape (N, k).
        primal: That of the relaxed states, shape (N, k).
        p: Best multipliers found, of the open neurons, shape (N, k).
        bound: The lower bound that they prove, shape (N,).
        choice: The neuron to branch on, shape (N,); -1 if none is left.
    """

    number: Tensor
    row: Tensor
    phases: Tensor
    below: Tensor
    beta: Tensor
    adjoint: Tensor
    primal: Tensor
    p: Tensor
    bound: Tensor
    choice: Tensor

    @classmethod
    def roots(cls, row: Tensor, below: Tensor) -> Nodes:
        """One undecided node for each entry of `row`, numbered from 0; `below` is (N, k)."""
        count, k = below.shape
        zero = torch.zeros(count, k, dtype=below.dtype)
        return cls(
            torch.arange(count),
            row,
            torch.zeros(count, k, dtype=torch.int8),
            below,
            zero,
            zero,
            zero,
            zero,
            torch.full((count,), -torch.inf, dtype=below.dtype),
            torch.full((count,), -1),
        )

    def __len__(self) -> int:
        return len(self.row)

    def select(self, index: Tensor) -> Nodes:
        """Some of the nodes, by position or by mask."""
        return Nodes(*(t[index] for t in self._fields()))

    @staticmethod
    def join(parts: list[Nodes]) -> Nodes:
        """All nodes of several batches."""
        columns = zip(*(part._fields() for part in parts), strict=True)
        return Nodes(*(torch.cat(column) for column in columns))

    def children(self, first: Tensor, slope: Tensor, lam: Tensor) -> Nodes:
        """Both cases of every node's chosen neuron: all "off", then all "on".

        A child starts at its parent's multiplier: with ``p_i = g lam_i -+ beta_i``, ``g`` the slope
        of the phase, ``beta_i`` is what makes ``p_i`` the same, where that is not negative.

        Args:
            first: Number of the "off" child of each node; the "on" child has the next one.
            slope: ``s`` of every neuron, shape (k,).
            lam: ``r + W^T p`` of the nodes, shape (N, k).
        """
        at = self.choice[:, None]
        parts: list[Nodes] = []
        for phase, gain in ((-1, slope), (1, torch.ones_like(slope))):
            own = gain.expand_as(lam).gather(1, at) * lam.gather(1, at)
            beta = (phase * (own - self.p.gather(1, at))).clamp(min=0)
            parts.append(
                Nodes(
                    first + (phase > 0),
                    self.row,
                    self.phases.scatter(1, at, phase),
                    self.below,
                    self.beta.scatter(1, at, beta),
                    self.adjoint,
                    self.primal,
                    self.p,
                    self.bound,
                    self.choice,
                )
            )
        return Nodes.join(parts)

    def _fields(self) -> tuple[Tensor, ...]:
        return (
            self.number,
            self.row,
            self.phases,
            self.below,
            self.beta,
            self.adjoint,
            self.primal,
            self.p,
            self.bound,
            self.choice,
        )
