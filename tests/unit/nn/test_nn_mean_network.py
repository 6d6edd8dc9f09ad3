"""The mean of monotone networks as one network: same outputs, same class, order proved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import order
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.nn.blend import Blend
from wellposed.nn.ensemble import mean_network
from wellposed.nn.export import export
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import MonotoneResidual, lipschitz_monotone
from wellposed.nn.vector_norm import constrain

SIGNS = (1, -1, 0)


def networks(count=3, *, lam=2.0, factor=1.0, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    found = [
        lipschitz_monotone((3, 8, 8, 1), SIGNS, lam, dtype=dtype, **options) for _ in range(count)
    ]
    with torch.no_grad():
        for net in found:
            for p in net.parameters():
                p.mul_(factor * torch.randn(p.shape).sign())
    return found


def layered(*layers, constant=1.0):
    return MonotoneResidual(nn.Sequential(*layers), (1, 1), constant)


def bounded(n_in, n_out, kind, budget=1.0):
    return constrain(nn.Linear(n_in, n_out), kind, budget)


@pytest.mark.parametrize("factor", [1.0, 10.0, 1e3, 1e-3])
@pytest.mark.parametrize("options", [{}, {"pinned": True}, {"first": "2->max"}])
def test_it_says_the_mean(factor, options):
    found = networks(factor=factor, **options)
    x = 3 * torch.randn(200, 3, dtype=torch.float64)
    wanted = torch.stack([net(x) for net in found]).mean(0)
    torch.testing.assert_close(mean_network(found)(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 10.0, 1e3, 1e-3])
def test_the_order_is_proved_and_holds_under_attack(factor):
    net = mean_network(networks(factor=factor, seed=1)).eval()
    order(net, in_shape=(3,)).require(SIGNS)
    assert wp.lipschitz(net.body, norm_in="1", norm_out="max", in_shape=(3,)).value <= net.constant
    x = 3 * torch.randn(200, 3, dtype=torch.float64)
    step = torch.rand(200, 3, dtype=torch.float64) * torch.tensor(SIGNS)
    for _ in range(10):  # go where it rises least
        x = x.detach().requires_grad_()
        rise = net(x + step) - net(x)
        size = float(net(x).detach().abs().max())
        assert float(rise.detach().min()) >= -1e-9 * (1 + size)
        (slope,) = torch.autograd.grad(rise.sum(), x)
        x = x - 0.3 * slope.sign()


def test_the_bound_is_reached():
    found = networks(seed=2)
    with torch.no_grad():
        for net in found:
            for p in net.parameters():
                p.fill_(5.0)
    net = mean_network(found).eval()
    x = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(slope[:, 0], torch.full_like(slope[:, 0], 4.0), rtol=1e-6, atol=0)


def test_it_stays_monotone_while_it_is_trained():
    net = mean_network(networks(dtype=torch.float32))
    x = torch.randn(64, 3)
    for _ in range(5):
        net.zero_grad()
        (net(x) + x[:, :1]).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p.sub_(p.grad)
    order(net.eval(), in_shape=(3,)).require(SIGNS)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.bfloat16())
    order(net, in_shape=(3,)).require(SIGNS)


def test_a_mean_of_plain_layers_that_left_the_bound_is_not_proved():
    found = networks()
    with torch.no_grad():
        for p in (p for net in found for p in net.parameters()):
            p.fill_(5.0)
    net = export(mean_network(found))
    order(net, in_shape=(3,)).require(SIGNS)
    with torch.no_grad():
        net[0].body[0].weight.mul_(-1.1)
    with pytest.raises(NotCertifiableError):
        order(net, in_shape=(3,)).require(SIGNS)


def test_one_layer_and_groups_by_number():
    single = [layered(bounded(2, 1, "1->max")) for _ in range(3)]
    x = torch.randn(20, 2)
    wanted = torch.stack([net(x) for net in single]).mean(0)
    torch.testing.assert_close(mean_network(single)(x), wanted)
    many = [
        layered(bounded(2, 6, "1->max"), GroupSort(n_groups=2, dim=-1), bounded(6, 2, "max->max"))
        for _ in range(2)
    ]
    wanted = torch.stack([net(x) for net in many]).mean(0)
    torch.testing.assert_close(mean_network(many)(x), wanted)


def test_a_layer_without_bias():
    found = [
        layered(
            constrain(nn.Linear(2, 4, bias=False), "1->max", 1.0),
            MaxMin(dim=-1),
            bounded(4, 1, "max->max"),
        )
        for _ in range(2)
    ]
    x = torch.randn(20, 2)
    wanted = torch.stack([net(x) for net in found]).mean(0)
    torch.testing.assert_close(mean_network(found)(x), wanted)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "no networks"),
        ([*networks(1), *networks(1, lam=1.0)], "another constant"),
        (networks(2, learned_budgets=True), "fixed budget"),
        (networks(2, first="1->1"), "1->1"),
        ([*networks(1), *networks(1, first="2->max")], "differ in a layer"),
        ([layered(bounded(2, 2, "1->max"), MaxMin(dim=-1)), layered(bounded(2, 2, "1->max"))],
         "numbers of layers"),
        ([layered(bounded(2, 2, "1->max"), nn.ReLU()), layered(bounded(2, 2, "1->max"), nn.Tanh())],
         "differ in an activation"),
        ([layered(bounded(2, 2, "1->max"), Blend(bounded(2, 2, "max->max")))], "side by side"),
        ([MonotoneResidual(bounded(2, 1, "1->max"), (1, 1))], "nn.Sequential"),
        ([layered(nn.ReLU())], "no dense layer"),
    ],
)  # fmt: skip
def test_what_is_refused(found, said):
    with pytest.raises(ConfigError, match=said):
        mean_network(found)
