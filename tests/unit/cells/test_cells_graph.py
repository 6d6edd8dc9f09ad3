"""Graph cells: operators against matrices, the measured norm, certificates on a small graph."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import nn

from wellposed.cells.graph import GraphCell, normalised_adjacency
from wellposed.certify import enclose, lipschitz
from wellposed.core.activations import GELU, Tanh
from wellposed.core.graph import GraphCoupling, NodewiseMap
from wellposed.core.sets import Box
from wellposed.data.communities import stochastic_blocks
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping
from wellposed.testing import check_cell, check_rule


def graph(nodes: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(nodes, nodes, generator=generator) < 0.6).double().triu(1)
    return normalised_adjacency(upper + upper.mT)


def cell(seed: int = 0, **options) -> GraphCell:
    torch.manual_seed(seed)
    adjacency = options.pop("adjacency", graph())
    return GraphCell(2, 3, adjacency, dtype=torch.float64, **options)


def layer(made: GraphCell) -> Equilibrium:
    return Equilibrium(made, eval_stopping=Stopping(1e-12, max_evaluations=5000)).eval()


def directed(nodes: int = 5) -> torch.Tensor:
    """Signs and directions: nothing in the theory asks for an undirected graph."""
    generator = torch.Generator().manual_seed(4)
    S = torch.randn(nodes, nodes, generator=generator).double()
    return S - torch.diag_embed(S.diagonal())


@pytest.mark.parametrize("adjacency", [graph(), directed()])
def test_the_operators_are_their_matrices(adjacency):
    torch.manual_seed(0)
    W, U = torch.randn(3, 3).double(), torch.randn(3, 2).double()
    for operator, matrix in (
        (GraphCoupling(W, adjacency), torch.kron(W, adjacency)),
        (NodewiseMap(U, 5), torch.kron(U, torch.eye(5).double())),
    ):
        x = torch.randn(4, *operator.in_shape).double()
        y = torch.randn(4, *operator.out_shape).double()
        assert torch.allclose(operator.materialise(), matrix)
        assert torch.allclose(operator.apply(x).flatten(1), x.flatten(1) @ matrix.mT)
        assert torch.allclose(operator.apply(x, y), operator.apply(x) + y)
        assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix)
        assert torch.allclose(operator.adjoint(y, x), operator.adjoint(y) + x)
        assert torch.allclose(operator.absolute().materialise(), matrix.abs())
        weight = operator.weight.clone().requires_grad_()
        (slope,) = torch.autograd.grad((y * operator.with_weight(weight).apply(x)).sum(), weight)
        assert torch.allclose(operator.weight_gradient(y, x), slope)
        scale = torch.rand(3, 1).double()
        assert torch.allclose(
            operator.scale_rows(scale).materialise(), scale.repeat(1, 5).reshape(-1, 1) * matrix
        )
    coupling = GraphCoupling(W, adjacency)
    assert torch.equal(coupling.off_diagonal().materialise(), coupling.materialise())
    assert (
        float(coupling.materialise().diagonal().abs().max())
        == 0
        == float(coupling.diagonal().max())
    )


def test_conforms():
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    assert check_cell(cell(), x).log_norm < 0.95 + 1e-9
    made, small = layer(cell()), x[:1]
    assert torch.autograd.gradcheck(made, (small.requires_grad_(),), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("adjacency", [graph(), directed(), 100 * directed(), 0 * directed()])
def test_the_factor_is_below_the_bound_whatever_the_weights(factor, adjacency):
    made = cell(adjacency=adjacency, bound=0.9)
    with torch.no_grad():
        made.W.copy_(torch.randn(3, 3) * factor)
    matrix = made.explicit().A.materialise().detach()
    weights = made.eta.expand(3, 5).flatten()
    norm = float((matrix.abs() @ weights / weights).max())
    assert norm <= 0.9
    assert made.explicit().contraction().factor <= 0.9 * (1 + 1e-9)


def test_the_radius_is_measured():
    S = directed()
    exact = float(torch.linalg.eigvals(S.abs()).abs().max())
    assert exact <= cell(adjacency=S).radius <= exact * (1 + 1e-4)
    assert cell().radius == pytest.approx(1.0, rel=1e-5)


def test_the_lipschitz_rule_is_sound_tight_and_careful():
    def witness() -> nn.Module:
        made = cell()
        with torch.no_grad():
            for weight in (made.W, made.inject):
                weight.abs_()
            made.bias.fill_(10.0)  # every neuron awake, all signs equal: the bound is attained
        return layer(made)

    def edited() -> nn.Module:
        made = cell()
        made.W.data.abs_().mul_(1e3)
        made.radius = 1e-3  # the parametrisation is misled; what is measured is not
        return layer(made)

    sample = torch.zeros(1, 2, 5, dtype=torch.float64)
    report = check_rule(lambda: layer(cell()), sample, witness=witness, outside=[edited], rounds=1)
    assert report.refused == 0


def test_boxes_hold():
    made = layer(cell(2, activation=Tanh()))
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    box = enclose(made, Box.around(x, 0.2))
    for _ in range(50):
        z = made(x + 0.2 * (2 * torch.rand_like(x) - 1))
        assert bool((z >= box.lower).all())
        assert bool((z <= box.upper).all())


def test_the_example_uses_the_graph_and_survives_its_attack(capsys):
    path = Path(__file__).resolve().parents[3] / "examples" / "graph_communities.py"
    found = run_path(str(path))["main"](steps=30, size=60)
    assert found["graph"] > found["linear"] + 0.15
    assert 0 < found["certified@0.01"] <= found["attacked@0.01"]
    assert "certified" in capsys.readouterr().out


def test_generated_graphs_are_repeatable_and_split():
    one, two = stochastic_blocks(seed=3), stochastic_blocks(seed=3)
    assert torch.equal(one.edges, two.edges)
    assert torch.equal(one.features, two.features)
    assert bool((one.train.int() + one.validation.int() + one.test.int() == 1).all())
    assert torch.equal(one.edges, one.edges.mT)
    assert not bool(one.edges.diagonal().any())
    same = one.labels[:, None] == one.labels
    assert float(one.edges[same].mean()) > 5 * float(one.edges[~same].mean())
    assert not torch.equal(one.edges, stochastic_blocks(seed=4).edges)


def test_bad_input():
    with pytest.raises(ShapeError, match="from a node to itself"):
        cell(adjacency=torch.eye(4).double())
    with pytest.raises(ShapeError, match="square"):
        cell(adjacency=torch.zeros(4, 5).double())
    with pytest.raises(ShapeError, match="NaN"):
        cell(adjacency=graph() * float("nan"))
    with pytest.raises(ConfigError, match="bound"):
        cell(bound=1.0)
    with pytest.raises(ConfigError, match="bound"):
        cell(bound=0.95, activation=GELU())
    with pytest.raises(ShapeError, match="expected"):
        layer(cell())(torch.zeros(2, 5, 2, dtype=torch.float64))
    with pytest.raises(ShapeError, match="symmetric"):
        normalised_adjacency(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ShapeError, match="not negative"):
        normalised_adjacency(-torch.ones(2, 2))
    with pytest.raises(ConfigError, match="communities"):
        stochastic_blocks(1)
    with pytest.raises(ConfigError, match="probabilities"):
        stochastic_blocks(inside=2.0)
    made = cell()
    made.adjacency.mul_(100)
    with pytest.raises(NotCertifiableError, match="not proved to exist"):
        lipschitz(made)
