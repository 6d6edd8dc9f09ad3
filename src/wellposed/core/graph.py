"""Linear maps between signals on the nodes of a graph: channels are mixed, nodes are coupled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.operators import Operator
from wellposed.errors import ShapeError


@final
@dataclass(frozen=True, eq=False)
class GraphCoupling(Operator):
    """``x -> W x S^T`` on signals of shape (channels, nodes).

    Args:
        channels: ``W``, shape (out, in).
        adjacency: ``S``, shape (nodes, nodes), where ``S_vu`` weighs the edge from u to v; dense.
            A diagonal of zeros is asked for where the diagonal of the operator is.
    """

    channels: Tensor
    adjacency: Tensor

    def __post_init__(self) -> None:
        if self.channels.ndim != 2:
            raise ShapeError(f"`channels` must be a matrix, got {tuple(self.channels.shape)}.")
        if self.adjacency.ndim != 2 or self.adjacency.shape[0] != self.adjacency.shape[1]:
            raise ShapeError(
                f"`adjacency` must be a square matrix, got {tuple(self.adjacency.shape)}."
            )

    @property
    def nodes(self) -> int:
        """How many nodes the graph has."""
        return len(self.adjacency)

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return (self.channels.shape[1], self.nodes)

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return (self.channels.shape[0], self.nodes)

    @property
    @override
    def weight(self) -> Tensor:
        return self.channels

    @override
    def with_weight(self, weight: Tensor) -> GraphCoupling:
        return GraphCoupling(weight, self.adjacency.to(weight))

    @override
    def absolute(self) -> GraphCoupling:
        return GraphCoupling(self.channels.abs(), self.adjacency.abs())

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        y = torch.matmul(self.channels, torch.matmul(x, self.adjacency.mT))
        return y if offset is None else y + offset

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        x = torch.matmul(self.channels.mT, torch.matmul(y, self.adjacency))
        return x if offset is None else x + offset

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("bov,biv->oi", y, torch.matmul(x, self.adjacency.mT))

    @override
    def diagonal(self) -> Tensor:
        self._refuse_loops()
        return torch.zeros_like(self.channels[:, :1])

    @override
    def off_diagonal(self) -> GraphCoupling:
        self._refuse_loops()
        return self

    @override
    def scale_rows(self, scale: Tensor) -> GraphCoupling:
        return replace(self, channels=scale.reshape(-1, 1) * self.channels)

    @property
    @override
    def terms(self) -> int:
        # a sum over channels of sums over nodes
        return self.channels.shape[1] + self.nodes

    @property
    @override
    def adjoint_terms(self) -> int:
        return self.channels.shape[0] + self.nodes

    def _refuse_loops(self) -> None:
        if bool((self.adjacency.diagonal() != 0).any()):
            raise ShapeError(
                "The graph has edges from a node to itself, so that the diagonal of the operator "
                "is no multiple of one number a channel.",
                hint="leave self-loops out: a node's own features enter through the injection.",
            )


@final
@dataclass(frozen=True, eq=False)
class NodewiseMap(Operator):
    """``x -> U x`` on signals of shape (channels, nodes): every node by itself.

    Args:
        channels: ``U``, shape (out, in).
        nodes: How many nodes the graph has.
    """

    channels: Tensor
    nodes: int

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return (self.channels.shape[1], self.nodes)

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return (self.channels.shape[0], self.nodes)

    @property
    @override
    def weight(self) -> Tensor:
        return self.channels

    @override
    def with_weight(self, weight: Tensor) -> NodewiseMap:
        return replace(self, channels=weight)

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        y = torch.matmul(self.channels, x)
        return y if offset is None else y + offset

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        x = torch.matmul(self.channels.mT, y)
        return x if offset is None else x + offset

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("bov,biv->oi", y, x)

    @override
    def diagonal(self) -> Tensor:
        return torch.diagonal(self.channels)[:, None]

    @override
    def off_diagonal(self) -> NodewiseMap:
        return replace(self, channels=self.channels - torch.diag_embed(self.channels.diagonal()))

    @override
    def scale_rows(self, scale: Tensor) -> NodewiseMap:
        return replace(self, channels=scale.reshape(-1, 1) * self.channels)
