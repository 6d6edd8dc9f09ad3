"""Graph cells: implicit graph neural networks, well posed for the graph at hand."""

from __future__ import annotations

from math import sqrt
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_sizes, strictly
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.graph import GraphCoupling, NodewiseMap
from wellposed.core.operators import Dense
from wellposed.core.spectra import perron
from wellposed.errors import ConfigError, ShapeError


@final
class GraphCell(AffineCell):
    """``Z = phi(W Z S^T + U X + b)`` with ``||W||_inf rho(|S|) <= bound`` for any parameters [1].

    States and inputs have the shape (channels, nodes). With ``eta`` the Perron vector of ``|S|``,
    ``|W z S^T|_kv <= (sum_j |W_kj|) rho eta_v max_u |z_u| / eta_u``: plain iteration contracts by
    ``bound`` times the steepest slope in the max norm weighted by ``eta``. ``rho`` is a *measured*
    upper bound, taken once from the graph in float64. Rows of ``W`` above the limit are pulled back
    onto it.

    Args:
        c_in: Features of a node.
        c_state: Channels of the state.
        adjacency: ``S``, shape (nodes, nodes), where ``S_vu`` weighs the edge from u to v; no
            self-loops. See `normalised_adjacency`.
        bound: Upper bound of the norm; below 1 over the steepest slope.
        activation: ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: ``bound`` times the steepest slope is not below 1.
        ShapeError: The adjacency is not a finite square matrix with a zero diagonal.

    References:
        [1] Gu, Chang, Zhu, Sojoudi, El Ghaoui. Implicit graph neural networks. NeurIPS 2020. arXiv
        2009.06211: published training projects the rows on the ball; here they are scaled.
    """

    def __init__(
        self,
        c_in: int,
        c_state: int,
        adjacency: Tensor,
        *,
        bound: float = 0.95,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(c_in=c_in, c_state=c_state)
        self.activation = activation or ReLU()
        steepest = self.activation.steepest
        if not (bound > 0 and bound * steepest < 1):
            raise ConfigError(
                f"`bound` must lie in (0, {1 / steepest:.4g}) for {self.activation.name}, got "
                f"{bound}.",
                hint="bound times slope is the contraction factor and must stay below 1.",
            )
        if not bool(torch.isfinite(adjacency).all()):
            raise ShapeError("`adjacency` has NaN or infinite entries.")
        self.bound = float(bound)
        self.inject = nn.Parameter(torch.empty(c_state, c_in, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.W = nn.Parameter(torch.empty(c_state, c_state, dtype=dtype))
        coupling = GraphCoupling(self.W.detach(), adjacency.detach().to(self.W))
        coupling.diagonal()  # refuses self-loops here, not at first use
        measured = perron(Dense(coupling.adjacency))
        self.radius = measured.factor
        """Upper bound of the spectral radius of ``|S|``."""
        self.register_buffer("adjacency", coupling.adjacency, persistent=False)
        self.register_buffer("eta", measured.eta.to(self.W), persistent=False)
        self.adjacency: Tensor
        self.eta: Tensor
        for weight in (self.inject, self.W):
            limit = 1 / sqrt(weight.shape[1])
            nn.init.uniform_(weight, -limit, limit)

    @override
    def explicit(self) -> Affine:
        size = torch.linalg.vector_norm(self.W, 1, dim=1, keepdim=True)
        limit = self.bound / max(self.radius, 1e-30) / strictly(self.W)
        A = GraphCoupling(self.W * (limit / size.clamp(min=limit)), self.adjacency)
        B = NodewiseMap(self.inject, len(self.adjacency))
        return Affine(A, B, self.bias[:, None], self.activation, witness=self.eta)

    @override
    def extra_repr(self) -> str:
        c_state, c_in = self.inject.shape
        return (
            f"{c_in}, {c_state}, nodes={len(self.adjacency)}, radius={self.radius:.4g}, "
            f"bound={self.bound}, {self.activation.name}"
        )


def normalised_adjacency(edges: Tensor) -> Tensor:
    """``D^-1/2 A D^-1/2`` without self-loops, whose spectral radius is at most 1.

    Args:
        edges: ``A``, nonnegative weights, symmetric, shape (nodes, nodes); its diagonal is ignored.

    Raises:
        ShapeError: It is not square, not symmetric, negative or not finite.
    """
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1]:
        raise ShapeError(f"`edges` must be a square matrix, got {tuple(edges.shape)}.")
    if not bool(torch.isfinite(edges).all() & (edges >= 0).all()):
        raise ShapeError("`edges` must be finite weights that are not negative.")
    if not torch.equal(edges, edges.mT):
        raise ShapeError("`edges` must be symmetric: this is the scaling of undirected graphs.")
    A = edges - torch.diag_embed(edges.diagonal())
    degree = A.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-30).rsqrt(), torch.zeros_like(degree))
    return scale[:, None] * A * scale
