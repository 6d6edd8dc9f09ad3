"""Cells around any module: parameters, buffers, starts, and modules that are no equation."""

import pytest
import torch
from torch import nn

from wellposed.cells.free import FreeCell
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.functional import fixed_point


class Block(nn.Module):
    def __init__(self, inside, n_in=5, n=6):
        super().__init__()
        self.take = nn.Linear(n_in, n)
        self.mix = nn.Linear(n, n)
        self.inside = inside
        self.register_buffer("shift", torch.full((n,), 0.25))
        with torch.no_grad():
            self.mix.weight.mul_(0.3)

    def forward(self, z, x):
        return 0.5 * torch.tanh(self.inside(self.mix(z) + self.take(x) + self.shift))


UNSTEADY = [
    nn.Dropout(0.1),
    nn.AlphaDropout(0.1),
    nn.BatchNorm1d(6),
    nn.RReLU(),
    nn.Sequential(nn.Identity(), nn.Dropout(0.5)),
]


@pytest.mark.parametrize("inside", UNSTEADY, ids=lambda m: type(m).__name__)
def test_modules_that_are_no_equation_are_refused_by_name(inside):
    layer = Equilibrium(FreeCell(Block(inside), start=(6,)))
    culprit = type(inside[1] if isinstance(inside, nn.Sequential) else inside).__name__
    with pytest.raises(ConfigError, match=rf"`inside.*{culprit}.*training mode") as caught:
        layer(torch.randn(3, 5))
    assert "eval" in caught.value.hint
    layer.eval()(torch.randn(3, 5))
    z = torch.zeros(3, 6)
    with pytest.raises(ConfigError, match=culprit):
        fixed_point(Block(inside).train(), z, torch.randn(3, 5))


def test_batch_statistics_are_refused_even_in_evaluation():
    layer = Equilibrium(FreeCell(Block(nn.BatchNorm1d(6, track_running_stats=False)), start=(6,)))
    with pytest.raises(ConfigError, match="mixes the samples"):
        layer.eval()(torch.randn(3, 5))


@pytest.mark.parametrize("inside", [nn.Dropout(0.0), nn.LayerNorm(6), nn.GELU()], ids=repr)
def test_steady_modules_are_welcome(inside):
    torch.manual_seed(0)
    layer = Equilibrium(FreeCell(Block(inside), start=(6,)))
    layer(torch.randn(3, 5)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_buffers_are_constants_and_move_with_the_module():
    layer = Equilibrium(FreeCell(Block(nn.Identity()), start=(6,))).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    one = layer(x)
    layer.cell.f.shift.zero_()
    assert not torch.allclose(one, layer(x))
    assert "cell.f.shift" in layer.state_dict()


def test_starts():
    torch.manual_seed(0)
    block, x = Block(nn.Identity()), torch.randn(3, 5)
    given = Equilibrium(FreeCell(block, start=(6,)))
    called = Equilibrium(FreeCell(block, start=lambda x: x.new_ones(len(x), 6)))
    assert torch.allclose(given(x), called(x), atol=1e-3)
    same = Equilibrium(FreeCell(Block(nn.Identity(), 6)))
    assert same(torch.randn(3, 6)).shape == (3, 6)
    with pytest.raises(ShapeError, match=r"returned shape \(2, 6\) for a batch of 3"):
        Equilibrium(FreeCell(block, start=lambda x: torch.zeros(2, 6)))(x)


def test_a_warm_start_at_the_solution_costs_one_evaluation():
    torch.manual_seed(0)
    block, x = Block(nn.Identity()), torch.randn(3, 5)
    layer = Equilibrium(FreeCell(block, start=(6,))).eval()
    z = layer(x).detach()
    warm = Equilibrium(FreeCell(block, start=lambda _: z)).eval()
    assert warm.solve(x).evaluations.tolist() == [1, 1, 1]


def test_evaluations_are_counted_as_calls(monkeypatch):
    torch.manual_seed(0)
    block, calls = Block(nn.Identity()), []
    block.register_forward_hook(lambda *_: calls.append(1))
    layer = Equilibrium(FreeCell(block, start=(6,)))
    with torch.no_grad():
        solution = layer.solve(torch.randn(3, 5))
    assert len(calls) == int(solution.evaluations.max())
