"""`order`: signs of slopes, derived; sound on samples, complete on witnesses, refusing the rest."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import lipschitz, order
from wellposed.certify.order import add_signs, compose_signs, order_rule
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.blend import Blend
from wellposed.nn.export import export
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import convolutional_monotone, lipschitz_monotone
from wellposed.nn.residual import Residual

NAN = float("nan")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Any multipliers prove a bound: here six steps of their search serve as well as forty."""
    monkeypatch.setattr("wellposed.certify.multipliers._STEPS", 6)


def jacobians(net, x):
    """All Jacobians, inputs and outputs flattened: shape (samples, outputs, inputs)."""
    total = torch.autograd.functional.jacobian(lambda z: net(z).flatten(1).sum(0), x)
    return total.movedim(1, 0).flatten(2)


def check(net, x, signs, slack=1e-9):
    """No sampled slope contradicts a sign."""
    slopes = jacobians(net, x)
    assert bool((slopes >= -slack)[:, signs == 1].all())
    assert bool((slopes <= slack)[:, signs == -1].all())
    assert bool((slopes.abs() <= slack)[:, signs == 0].all())


class Wired(wp.AffineCell):
    """A contractive equilibrium with given signs of its weights."""

    def __init__(self, A, B, activation=None):
        super().__init__()
        self.A = nn.Parameter(torch.as_tensor(A, dtype=torch.float64))
        self.B = nn.Parameter(torch.as_tensor(B, dtype=torch.float64))
        self.phi = activation or wp.ReLU()

    def explicit(self):
        return Affine(Dense(self.A), Dense(self.B), torch.full((len(self.A),), 0.3).double(),
                      self.phi)  # fmt: skip


def test_the_algebra_of_signs():
    two = torch.tensor([[1.0, -1.0, 0.0], [NAN, 0.0, 0.0], [1.0, 1.0, NAN]])
    one = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [NAN, 0.0]])
    found = compose_signs(two, one)
    assert found[:, 1].tolist() == [0, 0, 0]
    assert float(found[0, 0]) == 1
    assert bool(found[1:, 0].isnan().all())
    assert add_signs(torch.tensor([1.0, 1.0, 0.0, NAN]), torch.tensor([0.0, -1.0, 0.0, 0.0]))[
        [0, 2]
    ].tolist() == [1, 0]


NETS = {
    "dense": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
    "sorted": lambda: nn.Sequential(nn.Linear(4, 6), GroupSort(group_size=3), nn.Linear(6, 3)),
    "residual": lambda: nn.Sequential(
        Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), Blend(nn.Linear(4, 4)), nn.Linear(4, 2)
    ),
    "gelu": lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)),
    "norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sigmoid()),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("positive", [False, True])
def test_no_sampled_slope_contradicts_a_sign(name, positive):
    torch.manual_seed(0)
    net = NETS[name]().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.randn_like(parameter).round())
            if positive:
                parameter.abs_()
    x = 3 * torch.randn(60, 4).double()
    signs = order(net).signs
    check(net, x, signs)
    assert bool((signs != -1).all()) or not positive
    if positive and name != "gelu":
        assert not bool(signs.isnan().any())
    for eps in (0.05, 1.0):
        local = order(net, region=Box.around(x[0], eps))
        check(net, x[0] + eps * (2 * torch.rand(60, 4).double() - 1), local.signs)
        assert int(local.signs.isnan().sum()) <= int(signs.isnan().sum())


def test_gelu_is_ordered_where_it_rises():
    with pytest.raises(NotCertifiableError, match="not proved"):
        order(nn.GELU(), in_shape=(2,)).require([1, 1])
    region = Box(torch.tensor([0.5, -3.0]).double(), torch.tensor([2.0, -1.0]).double())
    assert order(nn.GELU(), region=region).signs.diagonal().tolist() == [1, -1]


def test_images_and_windows():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), MaxMin(), nn.MaxPool2d(2),
        nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(2, 2),
    ).double()  # fmt: skip
    x = torch.randn(30, 1, 4, 4).double()
    check(net, x, order(net, in_shape=(1, 4, 4)).signs)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    assert bool((order(net, in_shape=(1, 4, 4)).signs == 1).all())


@pytest.mark.parametrize("seed", range(5))
def test_monotone_lipschitz_networks_are_ordered_by_derivation(seed):
    torch.manual_seed(seed)
    first = ("1->max", "2->max", "max->max", "1->1", "1->max")[seed]
    signs = torch.randint(-1, 2, (5,)).tolist()
    net = lipschitz_monotone(
        [5, 8, 8, 2], signs, 0.1 * 3**seed, first=first, learned_budgets=seed == 4
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(20)
    found = order(net)
    found.require(signs)
    # ordered pairs: only what is declared moves
    s = torch.tensor(signs, dtype=torch.float32)
    x = torch.randn(2000, 5)
    step = torch.randn(2000, 5).abs().exp() * s
    with torch.no_grad():
        rise = net(x + step) - net(x)
    assert float(rise.min()) >= -1e-4 * float(step.abs().sum(1).max())
    plain = export(net)
    order(plain).require(signs)
    with torch.no_grad():
        plain[0].skip.weight.mul_(0.3)  # too flat for the body that it carries
    tilted = order(plain)
    if any(signs) and bool(tilted.signs.isnan().any()):
        with pytest.raises(NotCertifiableError, match="output"):
            tilted.require([s or 1 for s in signs])


def test_a_flat_tilt_is_not_trusted():
    """A body as steep as 1 on a tilt of one half falls: the certificate says so by silence."""
    net = lipschitz_monotone([2, 4, 1], [1, 1], 1.0)
    with torch.no_grad():
        for layer, value in zip(net.body[::2], (-1.0, 1.0), strict=True):
            layer.parametrizations.weight.original.fill_(value)
    order(net).require([1, 1])
    assert float(jacobians(net, torch.randn(50, 2)).min()) >= -1e-6
    net.constant = 0.5  # edited behind the back of the constructor
    assert bool(order(net).signs.isnan().all())
    assert float(jacobians(net, torch.randn(50, 2)).min()) < -0.1


def test_images_of_monotone_networks():
    net = convolutional_monotone((1, 6, 6), (4,), [1], 2.0)
    order(net).require([1] * 36)
    assert lipschitz(net, norm_in="1", norm_out="max").value <= 4 * (1 + 1e-5)


def test_contractive_equilibria_keep_the_order_of_their_weights():
    A = [[0.0, 0.4, 0.0], [0.2, -0.5, 0.3], [0.0, 0.0, 0.0]]
    B = [[1.0, 0.0], [0.0, 0.0], [0.0, -2.0]]
    layer = wp.Equilibrium(Wired(A, B))
    found = order(layer).signs
    assert found.tolist() == [[1, -1], [1, -1], [0, -1]]
    check(layer, torch.randn(40, 2).double(), found, slack=1e-6)
    mixed = [[0.0, -0.9, 0.0], [0.9, 0.0, 0.3], [0.0, 0.0, 0.0]]
    other = order(wp.Equilibrium(Wired(mixed, B))).signs
    assert bool(other[0, 0].isnan())  # a loop with a negative product, too strong to be outweighed
    with pytest.raises(NotCertifiableError, match="factor"):
        order(wp.Equilibrium(Wired([[0.0, 3.0], [3.0, 0.0]], [[1.0], [1.0]])))
    with pytest.raises(NotCertifiableError, match="not monotone"):
        order(wp.Equilibrium(Wired(A, B, wp.GELU())))


class Own(nn.Module):
    def forward(self, x):
        return -x


class RMSNorm(nn.Module):
    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt()


REFUSED = {
    "user module": Own, "layer norm": lambda: nn.LayerNorm(3), "rms norm": RMSNorm,
    "torch rms norm": lambda: nn.RMSNorm(3), "training batch norm": lambda: nn.BatchNorm1d(3),
    "tanh GELU": lambda: nn.GELU(approximate="tanh"), "training dropout": nn.Dropout,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_modules_are_named_by_every_certificate(name):
    """Inside a chain, in every norm and by every method: nothing is returned instead."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(REFUSED[name]()), nn.Linear(3, 2))
    asked = [
        lambda: order(net),
        lambda: order(Residual(nn.Sequential(net, nn.Linear(2, 3)))),
        *(lambda p=p: lipschitz(net, norm_in=p) for p in ("1", "2", "max")),
        *(lambda m=m: lipschitz(net, norm_in="2", method=m) for m in ("eclipse", "descent")),
        lambda: lipschitz(net, norm_in="1", norm_out="max"),
        lambda: lipschitz(net, norm_in="1", norm_out="max", mixed="refuse"),
    ]
    for ask in asked:
        with pytest.raises(NotCertifiableError, match=r"1\.0.*cannot be certified") as caught:
            ask()
        assert caught.value.hint


def test_a_registered_rule_is_composed():
    order_rule.register(Own, lambda module, site: -torch.eye(site.shape[0]).double())
    from wellposed.certify import Slopes, lipschitz_rule

    lipschitz_rule.register(Own, lambda module, site: Slopes(1.0, site.shape))
    net = nn.Sequential(nn.Linear(2, 2), Own())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    assert torch.equal(order(net).signs, -torch.eye(2).double())


def test_bad_signs():
    found = order(nn.Linear(3, 2))
    for bad in ([1, 1], [1, 1, 2], [[1, 1, 1]] * 3):
        with pytest.raises(ShapeError, match="for each of 3 inputs"):
            found.require(bad)
    found.require([0, 0, 0])
    with pytest.raises(ShapeError, match="in_shape"):
        order(nn.Conv2d(1, 1, 3))
    with pytest.raises(NotCertifiableError, match="entries"):
        order(nn.ReLU(), in_shape=(5000,))
