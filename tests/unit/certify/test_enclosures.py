"""The public enclosures: methods, witnesses, layers, and the box rules that were there before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.cells.monotone import MonotoneCell
from wellposed.cells.nemon import NemonCell
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.enclosures import (
    Automatic,
    Interval,
    Krawczyk,
    Method,
    Zonotope,
    enclose,
    network_of,
    states,
)
from wellposed.certify.fallback import lipschitz_box
from wellposed.certify.interval import interval_enclosure, interval_image, post_fixed
from wellposed.certify.wellposed import wellposedness
from wellposed.core.activations import GELU, Activation, LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium

METHODS = [Interval(), Zonotope(), Krawczyk(), Automatic()]


def contraction(
    seed: int, *, activation: Activation | None = None, factor: float = 0.8, ugly: float = 0.0
) -> Network:
    """Rows of absolute sum below `factor` in a skewed max norm, with a negative diagonal."""
    g = torch.Generator().manual_seed(seed)
    n = 10
    draws = torch.randn(n, n, generator=g)
    W = factor * draws / draws.abs().sum(1, keepdim=True) - torch.diag(torch.rand(n, generator=g))
    skew = 2.0 ** torch.round(ugly * torch.randn(n, generator=g))
    return Network.of(
        skew[:, None] * W / skew,
        skew[:, None] * torch.randn(n, 3, generator=g),
        skew * torch.randn(n, generator=g),
        torch.eye(n),
        torch.zeros(n),
        activation=activation,
        linear=torch.arange(n) == 3,
    )


def corners(network: Network, region: Box, count: int) -> Tensor:
    """Equilibria at random corners, along random segments and at the best corner of each neuron."""
    g = torch.Generator().manual_seed(9)
    t = torch.randn(count, len(region.lower), network.d, generator=g).sign().double()
    t[1::2] *= torch.rand(len(t[1::2]), 1, 1, generator=g)
    best = torch.linalg.inv(torch.eye(network.n).double() - 0.5 * network.W) @ network.U
    t = torch.cat([t, best.sign()[:, None].expand(-1, t.shape[1], -1)])
    reach = (region.upper - region.lower) / 2
    x = region.centre + (1 - 1e-12) * reach * t
    v = approximate_equilibrium(network, x.reshape(-1, network.d))
    return v.reshape(len(t), len(region.lower), -1)


def holds(box: Box, v: Tensor) -> bool:
    slack = 1e-9 * (1e-3 + v.abs())
    return bool(((v >= box.lower - slack) & (v <= box.upper + slack)).all())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh()], ids=lambda a: a.name)
@pytest.mark.parametrize("ugly", [0.0, 4.0])
def test_every_method_holds_and_beats_the_lipschitz_box(
    method: Method, activation: Activation, ugly: float
) -> None:
    network = contraction(0, activation=activation, ugly=ugly)
    g = torch.Generator().manual_seed(1)
    region = Box.around(torch.randn(5, 3, generator=g), torch.logspace(-6, 0, 5)[:, None])
    witness = wellposedness(network)
    found = enclose(network, region, method, wellposed=witness)
    assert bool(found.contained[0])
    assert bool(found.unique.all())
    assert holds(found.preactivation, corners(network, region, 2000))
    base = lipschitz_box(network, region, witness)
    assert (found.preactivation.lower >= base.lower).all()
    assert (found.preactivation.upper <= base.upper).all()


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 100])
def test_intervals_are_sound_at_any_step_and_shrink(steps: int) -> None:
    network = contraction(2)
    region = Box.around(torch.zeros(3, 3), torch.tensor([[0.0], [0.1], [1.0]]))
    box = interval_enclosure(network, region, steps=steps)
    more = interval_enclosure(network, region, steps=steps + 1)
    assert holds(box, corners(network, region, 500))
    assert (more.upper - more.lower <= box.upper - box.lower + 1e-12).all()


def test_one_neuron_is_exact() -> None:
    # v = -2 relu(v) + x + 0.5 on [-1, 1]: v = (x + 0.5) / 3 for x > -0.5, else x + 0.5
    one = torch.ones(1, 1)
    network = Network.of(-2 * one, one, 0.5 * one[0], one, torch.zeros(1))
    box = enclose(network, Box(-one, one)).preactivation
    assert float(box.lower) == pytest.approx(-0.5, rel=1e-12)
    assert float(box.upper) == pytest.approx(0.5, rel=1e-12)


def test_an_iterate_from_inside_is_no_post_fixed_point() -> None:
    network = contraction(3, factor=0.95)
    region = Box.around(torch.zeros(1, 3), 0.1)
    v = approximate_equilibrium(network, region.centre)
    box, step = Box(v, v), 1.0
    while step > 1e-3:  # the stopping rule of published code
        image = interval_image(network, region, box)
        step = float((image.upper - box.upper).abs().amax())
        box = image
    outside = interval_enclosure(network, region)
    assert not bool(post_fixed(network, region, box))
    assert (outside.upper - box.upper).amax() > 1e-5
    wide = Box(outside.lower - 1e-6, outside.upper + 1e-6)
    assert bool(post_fixed(network, region, wide))


def test_the_image_holds_the_dip_beside_identity_neurons() -> None:
    # v_1 = gelu(v_0), which is smallest inside [-2, 0]
    W = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    network = Network.of(
        W, torch.zeros(2, 1), torch.zeros(2), torch.eye(2), torch.zeros(2),
        activation=GELU(), linear=torch.tensor([False, True]),
    )  # fmt: skip
    box = Box(torch.tensor([[-2.0, -1.0]]).double(), torch.tensor([[0.0, 1.0]]).double())
    image = interval_image(network, Box(torch.zeros(1, 1), torch.zeros(1, 1)), box)
    assert float(image.lower[0, 1]) == pytest.approx(-0.169971, abs=1e-6)
    assert float(image.lower[0, 1]) < float(GELU()(torch.tensor(-0.7517916).double()))
    assert float(image.upper[0, 1]) == pytest.approx(0, abs=1e-12)


def test_the_witness_chooses_the_method() -> None:
    region = Box.around(torch.zeros(1, 3), 1e-3)
    small = contraction(4)
    assert enclose(small, region).method == "zonotope"
    curved = contraction(4, activation=GELU(), factor=0.2)
    assert enclose(curved, region).method == "krawczyk"
    wild = Network.of(3 * small.W + 2.0, small.U, small.b, small.C, small.c)
    with pytest.raises(NotCertifiableError):
        enclose(wild, region, Zonotope())
    with pytest.raises(NotCertifiableError):
        enclose(wild, region, Interval())
    with pytest.raises(NotCertifiableError):
        enclose(wild, region, Automatic(), wellposed=wellposedness(small))


def test_krawczyk_without_a_witness_says_nothing_where_it_fails() -> None:
    g = torch.Generator().manual_seed(5)
    small = contraction(5)
    wild = Network.of(
        torch.randn(10, 10, generator=g) / 2.5, small.U, small.b, small.C, small.c
    )  # fmt: skip
    with pytest.raises(NotCertifiableError):
        wellposedness(wild)
    found = enclose(wild, Box.around(torch.zeros(2, 3), torch.tensor([[1e-6], [100.0]])))
    assert found.method == "krawczyk"
    assert found.contained.tolist() == [True, False]
    assert found.unique.tolist() == [True, False]
    assert float(found.preactivation.lower[1].max()) < -1e299


@pytest.mark.parametrize("kind", [NemonCell, MonotoneCell])
@pytest.mark.parametrize("method", [Zonotope(), Krawczyk(), Automatic()])
def test_layers_in_float32_keep_their_outputs_inside(
    kind: type[NemonCell] | type[MonotoneCell], method: Method
) -> None:
    torch.manual_seed(0)
    layer = Equilibrium(kind(6, 8)).eval()
    g = torch.Generator().manual_seed(6)
    region = Box.around(torch.rand(4, 6, generator=g), 0.05)
    found = enclose(layer, region, method)
    box = states(network_of(layer), found.preactivation)
    x = region.lower + (region.upper - region.lower) * torch.rand(500, 4, 6, generator=g).double()
    with torch.no_grad():
        z = layer.double()(x.reshape(-1, 6)).reshape(500, 4, 8)
    assert ((z >= box.lower - 1e-7) & (z <= box.upper + 1e-7)).all()
    assert (box.upper - box.lower).max() < 2.0


def test_without_a_method_a_module_gets_its_box_of_outputs() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(Equilibrium(NemonCell(6, 8)), nn.Linear(8, 3)).eval()
    region = Box.around(torch.rand(4, 6), 0.05)
    box = enclose(net, region)
    assert isinstance(box, Box)
    assert box.shape == (4, 3)
    with torch.no_grad():
        assert bool(box.contains(net(region.centre.float())).all())


def test_a_ball_is_tighter_than_its_box() -> None:
    network = contraction(7)
    ball = Ball(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), 0.1, 0.0, 1.0)
    for method in METHODS:
        tight = enclose(network, ball, method).preactivation
        loose = enclose(network, ball.box, method).preactivation
        assert (tight.upper - tight.lower).sum() < (loose.upper - loose.lower).sum()


def test_refusals() -> None:
    network, region = contraction(8), Box.around(torch.zeros(1, 3), 0.1)
    with pytest.raises(NotCertifiableError, match="Linear"):
        enclose(nn.Linear(3, 3), region, Zonotope())
    with pytest.raises(ShapeError, match="expected"):
        enclose(network, Box.around(torch.zeros(1, 4), 0.1))
    with pytest.raises(ShapeError, match="Box or a Ball"):
        enclose(network, torch.zeros(1, 3))  # type: ignore[call-overload]  # pyright: ignore
    layer = Equilibrium(NemonCell(3, 4)).eval()
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(NotCertifiableError, match="hooks"):
        enclose(layer, region, Zonotope())
