"""Classifiers prepared for verification: rows, coordinates, first bounds, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.growth import Search
from wellposed.certify.zonotope import zonotope_enclosure
from wellposed.core.activations import GELU, Activation, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.verify import classifier as module
from wellposed.verify.classifier import Classifier


def dense(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(wp.Equilibrium(wp.NemonCell(3, 6)), nn.Linear(6, 4)).eval()


def image(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        wp.Normalise([0.4], [0.3]), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    ).eval()


def monotone(seed: int = 0, n: int = 6, d: int = 3, q: int = 3) -> Network:
    g = torch.Generator().manual_seed(seed)
    F, S = (1.5 * torch.randn(n, n, generator=g) / n**0.5 for _ in range(2))
    return Network.of(
        torch.eye(n) * 0.2 - F.mT @ F + 2 * (S - S.mT),
        torch.randn(n, d, generator=g),
        0.5 * torch.randn(n, generator=g),
        torch.randn(q, n, generator=g),
        torch.randn(q, generator=g),
        D=torch.randn(q, d, generator=g),
    )


def test_rows_are_the_differences_of_logits() -> None:
    x = torch.rand(5, 3).double()
    labels = torch.tensor([0, 1, 2, 2, 0])
    network = monotone()
    task = Classifier.of(network, (3,))
    z = network.phi(approximate_equilibrium(network, x))
    y = network.output(z, x)
    rows = task.rows(labels)
    index = torch.arange(5).repeat_interleave(2)
    found = rows.offset + (rows.state * z[index]).sum(1) + (rows.input * x[index]).sum(1)
    expected = [float(y[i, labels[i]] - y[i, j]) for i in range(5) for j in range(3)
                if j != int(labels[i])]  # fmt: skip
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_rows_of_a_large_module_read_its_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([2, 0])
    small = Classifier.of(image(), (1, 5, 5))
    assert small.network is not None
    monkeypatch.setattr(module, "DENSE_LIMIT", 5)
    large = Classifier.of(image(), (1, 5, 5))
    assert large.network is None
    assert not large.branches
    x = torch.rand(2, 1, 5, 5)
    region = Box.around(x, 0.02)
    mine, other = ((task.scope(task.enter(region)), task.rows(labels)) for task in (small, large))
    index = torch.arange(2).repeat_interleave(2)
    one, _ = crown(small.system, mine[0].select(index), mine[1])
    two, _ = crown(large.system, other[0].select(index), other[1])
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)
    with pytest.raises(NotCertifiableError, match="no exact matrix"):
        _ = large.wellposed
    assert large.guess(torch.rand(2, 25).double()) is None


def test_enter_and_leave_are_inverse() -> None:
    task = Classifier.of(image(), (1, 5, 5))
    x = torch.rand(4, 1, 5, 5).double()
    entered = task.enter(Box(x, x)).box.centre
    torch.testing.assert_close(task.leave(entered), x, rtol=1e-12, atol=1e-12)
    plain = Classifier.of(monotone(), (3,))
    flat = torch.rand(4, 3).double()
    assert torch.equal(plain.leave(flat), flat)
    assert plain.enter(Box(flat, flat)).box.shape == (4, 3)
    with pytest.raises(ShapeError):
        plain.enter(Box(x, x))
    with pytest.raises(ShapeError):
        task.enter(Box(flat, flat))


@pytest.mark.parametrize("make", [dense, image])
def test_guess_is_the_class_of_the_module(make) -> None:
    shape = (3,) if make is dense else (1, 5, 5)
    model = make()
    task = Classifier.of(model, shape)
    x = torch.rand(40, *shape)
    guess = task.guess(task.enter(Box(x.double(), x.double())).box.lower)
    assert guess is not None
    with torch.no_grad():
        assert (guess == model(x).argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("kind", ["max-norm", "monotone", "smooth", "identities"])
def test_first_bounds_are_proved_in_every_row(kind: str) -> None:
    network = monotone(3)
    if kind == "max-norm":
        model = dense()
        network = Classifier.of(model, (3,)).network
    assert network is not None
    if kind == "smooth":
        network = Network.of(network.W, network.U, network.b, network.C, network.c,
                             activation=Tanh())  # fmt: skip
    if kind == "identities":
        W = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 20
        network = Network.of(
            W, network.U, network.b, network.C, network.c, linear=torch.arange(6) < 2
        )
    task = Classifier.of(network, (3,))
    assert isinstance(task.system, DenseSystem)
    x = torch.rand(4, 3)
    region = Box.around(x, torch.tensor([0.0, 0.01, 0.3, 30.0])[:, None].double())
    scope = task.scope(task.enter(region))
    points = region.lower + torch.rand(300, 4, 3).double() * (region.upper - region.lower)
    v = approximate_equilibrium(network, points.reshape(-1, 3)).reshape(300, 4, -1)
    slack = 1e-9 * (1 + v.abs())
    assert ((v >= scope.lower - slack) & (v <= scope.upper + slack)).all()
    ball = task.scope(task.enter(Ball(x, 0.1)))
    assert bool(torch.isfinite(ball.lower).all())


@pytest.mark.parametrize("kind", [ReLU(), Tanh()], ids=str)
def test_without_any_zonotope_there_are_still_bounds(
    kind: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = monotone(4)
    network = Network.of(base.W, base.U, base.b, base.C, base.c, activation=kind)
    task = Classifier.of(network, (3,))
    assert task.wellposed.kind == "monotone"
    none = partial(zonotope_enclosure, search=Search(steps=0))
    monkeypatch.setattr(module, "zonotope_enclosure", none)
    x = torch.rand(3, 3)
    region = Box.around(x, torch.tensor([0.0, 0.05, 1.0])[:, None].double())
    scope = task.scope(region)
    points = region.lower + torch.rand(300, 3, 3).double() * (region.upper - region.lower)
    v = approximate_equilibrium(network, points.reshape(-1, 3)).reshape(300, 3, -1)
    assert ((v >= scope.lower - 1e-9) & (v <= scope.upper + 1e-9)).all()


def test_models_that_are_no_classifiers() -> None:
    with pytest.raises(ShapeError, match="vector of 2 or more"):
        Classifier.of(nn.Linear(3, 1), (3,))
    with pytest.raises(ShapeError, match="vector of 2 or more"):
        Classifier.of(nn.Conv2d(1, 2, 3), (1, 5, 5))
    with pytest.raises(ShapeError, match="3 inputs"):
        Classifier.of(monotone(), (4,))


def test_ill_posed_networks_are_refused() -> None:
    wild = torch.tensor([[0.0, 3.0], [3.0, 0.0]])
    eye = torch.eye(2)
    with pytest.raises(NotCertifiableError, match="well posed"):
        Classifier.of(Network.of(wild, eye, torch.zeros(2), eye, torch.zeros(2)), (2,))


def test_slopes_outside_the_cone_are_refused_or_bounded_soundly() -> None:
    """A witness speaks about slopes in [0, 1]; GELU has others."""
    base = Classifier.of(dense(), (3,)).network
    assert base is not None
    network = Network.of(base.W, base.U, base.b, base.C, base.c, activation=GELU())
    x = torch.rand(2, 3)
    try:
        task = Classifier.of(network, (3,))
        scope = task.scope(Box.around(x, 0.1))
    except NotCertifiableError:
        return
    points = x.double() + 0.1 * (2 * torch.rand(200, 2, 3).double() - 1)
    v = approximate_equilibrium(network, points.reshape(-1, 3)).reshape(200, 2, -1)
    assert ((v >= scope.lower - 1e-9) & (v <= scope.upper + 1e-9)).all()
