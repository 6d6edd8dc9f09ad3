"""The differentiable bounds: value, exact gradient, and the published surrogate."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import lipschitz, lipschitz_penalty, spread, surrogate_penalty
from wellposed.certify import penalty as module_under_test
from wellposed.core.activations import LeakyReLU, ReLU, Sigmoid, Tanh
from wellposed.errors import NonConvergenceError, NotCertifiableError, ShapeError


def _parts(activation=None, n=5):
    torch.manual_seed(0)
    cell = wp.NemonCell(3, n, margin=0.3, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        cell.T.mul_(3)
    return wp.Equilibrium(cell), nn.Linear(n, 4, dtype=torch.float64)


@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh(), Sigmoid()], ids=repr)
def test_value_is_that_of_the_certificate(activation):
    layer, readout = _parts(activation)
    value = lipschitz_penalty(layer, readout, differences=False)
    assert value.item() == pytest.approx(lipschitz(nn.Sequential(layer, readout)).value, rel=1e-9)
    pairs = lipschitz_penalty(nn.Sequential(layer, readout))
    wide = nn.Linear(5, 16, dtype=torch.float64)
    with torch.no_grad():
        wide.weight.copy_((readout.weight[:, None] - readout.weight[None]).flatten(0, 1))
    assert pairs.item() == pytest.approx(lipschitz(nn.Sequential(layer, wide)).value, rel=1e-9)


@pytest.mark.parametrize("direct", [True, False])
def test_gradient_is_exact(direct, monkeypatch):
    if not direct:
        monkeypatch.setattr(module_under_test, "_DIRECT_LIMIT", 0)
    layer, readout = _parts()
    names = [name for name, _ in layer.named_parameters()]

    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.readout = layer, readout

        def forward(self):
            return lipschitz_penalty(self.layer, self.readout, rtol=1e-14)

    def call(*values):
        given = {f"layer.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Bound(), given, ())

    values = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradcheck(call, values, atol=1e-6)


def test_convolution_and_deeper_chains():
    torch.manual_seed(0)
    cell = wp.NemonConv2d(1, 3, image=(6, 6), stride=2, dtype=torch.float64)
    net = nn.Sequential(
        wp.Equilibrium(cell),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ).double()
    value = lipschitz_penalty(net, differences=False)
    assert value.item() == pytest.approx(lipschitz(net).value, rel=1e-8)
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in (cell.K, cell.inject, cell.damping))


def test_descending_the_penalty_lowers_the_certificate():
    layer, readout = _parts()
    net = nn.Sequential(layer, readout)
    before = lipschitz(net).value
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(30):
        optimiser.zero_grad()
        lipschitz_penalty(net).backward()
        optimiser.step()
    assert lipschitz(net).value < 0.6 * before


def test_surrogate_is_at_least_the_published_bound():
    from wellposed.certify import bound_l0
    from wellposed.core.operators import Dense

    layer, readout = _parts()
    value = surrogate_penalty(layer.cell, readout)
    assert value.item() >= bound_l0(layer.cell.explicit(), Dense(readout.weight)).value * (1 - 1e-9)
    value.backward()
    assert layer.cell.log_eta.grad is not None


def test_refusals():
    layer, readout = _parts()
    with pytest.raises(NotCertifiableError, match="differentiable"):
        lipschitz_penalty(layer, nn.LayerNorm(5), readout)
    with pytest.raises(ShapeError, match="in_shape"):
        lipschitz_penalty(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(NonConvergenceError, match="contract"):
        module_under_test._direct(torch.eye(2) * 2, torch.ones(1, 2))
    assert callable(spread.register)
