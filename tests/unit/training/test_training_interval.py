"""Intervals of training: they contain, they equal the sound boxes, their gradient is exact."""

import pytest
import torch
from torch import nn

from wellposed.cells.free import FreeCell
from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.certify import enclose
from wellposed.core.activations import Tanh
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise
from wellposed.solvers.base import Stopping
from wellposed.training.certified import chain
from wellposed.training.crown import crown_margins
from wellposed.training.initialise import interval_initialise
from wellposed.training.interval import (
    Interval,
    around,
    folded_margins,
    interval,
    interval_rule,
    margin_bounds,
)

TIGHT = Stopping(1e-11, max_evaluations=2000)


def layer(cell):
    return Equilibrium(cell, stopping=TIGHT, eval_stopping=TIGHT)


def ugly(cell, size=1.5):
    """Parameters far from the start: strong coupling, uneven weights."""
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(size * torch.randn_like(p))
    return cell


def dense(activation=None, margin=0.5):
    torch.manual_seed(3)
    cell = ugly(NemonCell(36, 7, margin=margin, activation=activation))
    return nn.Sequential(
        Normalise((0.3,), (0.4,)), nn.Flatten(), layer(cell), nn.Linear(7, 4)
    ).double()


def deep():
    torch.manual_seed(4)
    return nn.Sequential(
        Normalise((0.3,), (0.4,)),
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        layer(ugly(NemonCell(27, 6), 0.7)),
        nn.Linear(6, 4),
    ).double()


def convolutional():
    torch.manual_seed(5)
    cell = ugly(NemonConv2d(1, 3, image=(6, 6), stride=2, margin=0.5), 0.7)
    return nn.Sequential(
        layer(cell), nn.AvgPool2d(3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(3, 4)
    ).double()


NETWORKS = [dense, deep, convolutional, lambda: dense(Tanh())]


def images(count=5):
    return torch.rand(count, 1, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("make", NETWORKS)
def test_equals_the_sound_box(make):
    net, x = make().eval(), images()
    ours = interval(net, around(x, 0.1))
    sound = enclose(net, Box.around(x, 0.1).clip(0, 1))
    assert torch.allclose(ours.lower, sound.lower, atol=1e-5)
    assert torch.allclose(ours.upper, sound.upper, atol=1e-5)
    assert float((ours.upper - ours.lower).detach().min()) > 1e-3


@pytest.mark.parametrize("make", NETWORKS)
def test_contains_samples_and_corners(make):
    net, x = make().eval(), images(1)
    box = around(x, 0.15)
    out = interval(net, box)
    draws = torch.rand(200, 1, 6, 6, dtype=torch.float64)
    draws[:100] = draws[:100].round()
    with torch.no_grad():
        y = net(box.lower + draws * (box.upper - box.lower))
    assert bool((y >= out.lower - 1e-9).all() & (y <= out.upper + 1e-9).all())


def test_a_point_is_its_own_box():
    net, x = dense().eval(), images()
    out, y = interval(net, Interval(x, x)), net(x)
    assert torch.allclose(out.lower, y, atol=1e-9)
    assert torch.allclose(out.upper, y, atol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
def test_margins_are_those_of_the_folded_layer_and_hold(make):
    net, x = make().eval(), images(3)
    labels = torch.tensor([0, 3, 1])
    box = around(x, 0.1)
    m = margin_bounds(net, box, labels)
    assert torch.equal(m.gather(1, labels[:, None]), torch.zeros(3, 1, dtype=torch.float64))
    out = interval(net, box)
    apart = out.lower.gather(1, labels[:, None]) - out.upper
    other = torch.ones_like(m, dtype=torch.bool).scatter(1, labels[:, None], False)
    assert bool((m >= apart - 1e-9)[other].all())
    assert float((m - apart)[other].detach().max()) > 1e-3
    for _ in range(20):
        y = net(box.lower + torch.rand_like(x) * (box.upper - box.lower))
        gaps = y.gather(1, labels[:, None]) - y
        assert bool((gaps >= m - 1e-9).all())


def test_the_linear_bound_holds_and_is_tighter():
    net, x = deep().eval(), images(4)
    labels = torch.tensor([0, 3, 1, 2])
    box = around(x, 0.1)
    boxes, linear = crown_margins(net, box, labels)
    assert torch.allclose(boxes, margin_bounds(net, box, labels), atol=1e-9)
    for _ in range(50):
        y = net(box.lower + torch.rand_like(x).round() * (box.upper - box.lower))
        assert bool((y.gather(1, labels[:, None]) - y >= linear - 1e-9).all())
    assert float((linear - boxes).detach().mean()) > 1e-3
    # any multiplier will do
    _, start = crown_margins(net, box, labels, steps=0)
    assert float((linear - start).detach().mean()) > 0


def test_the_linear_bound_is_exact_at_a_point():
    net, x = dense().eval(), images(3)
    labels = torch.tensor([0, 3, 1])
    y = net(x)
    _, linear = crown_margins(net, Interval(x, x), labels, steps=200)
    assert torch.allclose(linear, y.gather(1, labels[:, None]) - y, atol=1e-8)


def small():
    torch.manual_seed(0)
    cell = ugly(NemonCell(3, 4, margin=0.3), 0.8)
    head = nn.Linear(4, 3)
    return nn.Sequential(layer(cell), head).double().train()


@pytest.mark.parametrize("bound", ["boxes", "linear"])
def test_gradient_matches_finite_differences(bound):
    net = small()
    names = [name for name, _ in net.named_parameters()]
    labels = torch.tensor([2, 0])
    x = torch.rand(2, 3, dtype=torch.float64)

    def f(x, *values):
        box = Interval(x - 0.1, x + 0.1)

        class Margins(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self):
                if bound == "boxes":
                    return margin_bounds(self.net, box, labels)
                return crown_margins(self.net, box, labels, steps=100)[1]

        module = Margins()
        named = {f"net.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(module, named, ())

    values = [p.detach().clone().requires_grad_() for p in net.parameters()]
    x.requires_grad_()
    if bound == "boxes":
        assert torch.autograd.gradcheck(f, (x, *values), atol=1e-6)
        return
    # the multiplier of the linear bound is held but for one step: the value depends on it little
    m = f(x, *values)
    (g,) = torch.autograd.grad(m.sum(), x)
    step = torch.randn_like(x)
    up, down = f(x + 1e-6 * step, *values), f(x - 1e-6 * step, *values)
    slope = float((up - down).detach().sum()) / 2e-6
    assert float((g * step).sum()) == pytest.approx(slope, rel=0.2)


def test_refuses_by_name():
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(NotCertifiableError, match="Softmax"):
        interval(nn.Sequential(nn.Flatten(), nn.Softmax(1)), around(x, 0.1))
    general = Equilibrium(FreeCell(nn.Bilinear(4, 4, 4)))
    with pytest.raises(NotCertifiableError, match="FreeCell"):
        interval(general, around(x, 0.1))
    with pytest.raises(NotCertifiableError, match="LeakyReLU"):
        interval(nn.LeakyReLU(-0.5), around(x, 0.1))

    class Odd(nn.Linear):
        def forward(self, input):
            return -super().forward(input)

    with pytest.raises(NotCertifiableError, match="replaces the `forward` of Linear"):
        interval(Odd(4, 2), around(x, 0.1))
    with pytest.raises(ConfigError, match="ReLU"):
        margin_bounds(nn.Sequential(nn.Flatten(), nn.ReLU()), around(x, 0.1), torch.zeros(2).long())
    with pytest.raises(ConfigError, match="last layers"):
        crown_margins(nn.Sequential(nn.Linear(4, 2)), around(x, 0.1), torch.zeros(2).long())
    with pytest.raises(ConfigError, match="Sequential"):
        chain(nn.Linear(4, 2))
    with pytest.raises(ShapeError, match=r"expected \(batch, 5\)"):
        interval(Equilibrium(NemonCell(5, 3)), around(torch.rand(2, 4), 0.1))


def test_a_rule_can_be_registered():
    class Negate(nn.Module):
        def forward(self, x):
            return -x

    @interval_rule.register
    def _(module: Negate, box: Interval) -> Interval:
        return Interval(-box.upper, -box.lower)

    out = interval(nn.Sequential(Negate()), Interval(torch.zeros(1, 2), torch.ones(1, 2)))
    assert torch.equal(out.lower, -torch.ones(1, 2))


def test_dropout_drops_both_ends_alike():
    torch.manual_seed(0)
    out = interval(nn.Dropout(0.5), Interval(torch.ones(1, 50), 2 * torch.ones(1, 50)))
    assert torch.equal(out.upper, 2 * out.lower)
    assert 0 < int((out.lower == 0).sum()) < 50
    kept = interval(nn.Dropout(0.5).eval(), Interval(torch.ones(1, 5), 2 * torch.ones(1, 5)))
    assert torch.equal(kept.lower, torch.ones(1, 5))


def test_the_range_of_pixels_cuts_the_box():
    box = around(torch.tensor([[0.05, 0.5, 1.0]]), 0.1)
    assert torch.allclose(box.lower, torch.tensor([[0.0, 0.4, 0.9]]))
    assert torch.allclose(box.upper, torch.tensor([[0.15, 0.6, 1.0]]))


def test_the_start_keeps_widths():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(400, 300), nn.ReLU(), layer(NemonCell(300, 200)), nn.Linear(200, 5)
    )
    interval_initialise(net)
    x = torch.zeros(4, 1, 20, 20)
    box = Interval(x - 0.1, x + 0.1)
    widths = []
    for part in list(net)[:-1]:
        box = interval(part, box)
        widths.append(float((box.upper - box.lower).detach().mean()))
    assert 0.1 < widths[2] / widths[0] < 2
    assert 0.1 < widths[3] / widths[2] < 3


def test_every_affine_cell_has_a_box():
    torch.manual_seed(1)
    cell = InfNormCell(4, 5, bound=0.9)
    x = torch.rand(3, 4)
    out = interval(cell, around(x, 0.05))
    z = Equilibrium(cell).eval()(x)
    assert bool(((z >= out.lower - 1e-5) & (z <= out.upper + 1e-5)).all())


def test_folding_matches_the_rows():
    torch.manual_seed(2)
    head = nn.Linear(3, 4).double()
    low = torch.randn(2, 3, dtype=torch.float64)
    box = Interval(low, low + 1)
    m = folded_margins(head, box, torch.tensor([1, 2]))
    row = head.weight[1] - head.weight[3]
    best = torch.where(row > 0, box.lower[0], box.upper[0])
    exact = row @ best + head.bias[1] - head.bias[3]
    assert float(m[0, 3].detach()) == pytest.approx(float(exact.detach()))
