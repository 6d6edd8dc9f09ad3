"""Sandwich, SLL, CPL: one-Lipschitz for any parameters, and the equilibrium networks they are."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.cells.monotone import MonotoneCell
from wellposed.certify.enclose import enclose
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.explicit import layer_network
from wellposed.certify.lmi import joint_gain
from wellposed.certify.lower import lower
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.wellposed import monotone_witness
from wellposed.core.activations import GELU, LeakyReLU, Tanh
from wellposed.core.norms import TwoNorm
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.embedding import as_equilibrium, as_lben
from wellposed.nn.lben import LBEN
from wellposed.nn.sandwich import Sandwich, cayley
from wellposed.nn.sll import CPL, SLL
from wellposed.solvers.base import Stopping
from wellposed.testing import check_rule

MAKERS = {
    "sandwich": lambda dtype=None, phi=None: Sandwich(6, 4, activation=phi, dtype=dtype),
    "wide sandwich": lambda dtype=None, phi=None: Sandwich(4, 7, activation=phi, dtype=dtype),
    "sll": lambda dtype=None, phi=None: SLL(6, activation=phi, dtype=dtype),
    "wide sll": lambda dtype=None, phi=None: SLL(5, 9, activation=phi, dtype=dtype),
    "cpl": lambda dtype=None, phi=None: CPL(6, 4, activation=phi, dtype=dtype),
}


def seeded(make, *args):
    torch.manual_seed(0)
    return make(*args).eval()


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def width(layer):
    return layer.explicit().L.shape[1]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 1e3])
def test_the_gain_is_proved_to_be_one(name, dtype, scale):
    layer = seeded(MAKERS[name], dtype)
    generator = torch.Generator().manual_seed(1)
    for rounded in (False, True):
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=dtype))
                if rounded:
                    p.copy_(p.bfloat16())
        bound = wp.lipschitz(layer, norm_in="2").value
        # the Cayley transform and the products of weights are rounded, and the bound is of these
        assert bound <= 1 + (2e-6 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("name", MAKERS)
def test_the_rule_is_sound(name):
    sample = rand(3, width(MAKERS[name]()))
    report = check_rule(lambda: MAKERS[name](torch.float64), sample, norms=(TwoNorm(),), rounds=1)
    assert report.refused == 0


def test_the_bound_is_attained():
    # one direction is kept as it is: SLL moves along its rows only
    layer = seeded(SLL, 3, 1).double()
    found = lipschitz_lower(layer, rand(4, 3), norm_in=TwoNorm(), rounds=2).value
    assert found == pytest.approx(1, abs=1e-9)
    wide = seeded(MAKERS["sandwich"], torch.float64)
    with torch.no_grad():
        wide.bias.fill_(10.0)  # all neurons active: the map is sqrt2 A^T sqrt2 B
    # of all sandwich layers only those with A A^T = B B^T are tight there
    assert wp.lipschitz(wide, norm_in="2").value >= 0.5


def test_a_scale_that_is_too_large_loses_the_bound():
    layer = seeded(MAKERS["sll"], torch.float64)
    weights = layer.explicit()
    net = layer_network(weights)
    broken = wp.Network.of(net.W, net.U, net.b, 3 * net.C, net.c, D=net.D, metric=net.metric)
    assert joint_gain(PairwiseL2.of(broken, broken.metric)).gain > 1.5


def test_zero_weights_are_the_identity_and_have_gradients():
    for make in (SLL, CPL):
        layer = make(4, 3)
        with torch.no_grad():
            layer.weight[0] = 0
        x = torch.randn(2, 4, requires_grad=True)
        layer(x).square().sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer(x), x)


def test_cayley_makes_orthonormal_rows():
    At, Bt = cayley(rand(5, 5), rand(8, 5, seed=1))
    assert torch.allclose(At.mT @ At + Bt.mT @ Bt, torch.eye(5).double(), atol=1e-12)


def stacks(phi=None):
    torch.manual_seed(2)
    kw = {"activation": phi}
    tight = Stopping(rtol=1e-13, max_evaluations=9000)
    return {
        "sll": nn.Sequential(SLL(6, 8, **kw), SLL(6, 5, **kw), CPL(6, 4, **kw)),
        "sandwich": nn.Sequential(Sandwich(6, 8, **kw), Sandwich(8, 5, **kw), Sandwich(5, 6, **kw)),
        "mixed": nn.Sequential(
            nn.Flatten(),
            nn.Linear(6, 8),
            SLL(8, 12, **kw),
            Sandwich(8, 5, **kw),
            LBEN(5, 7, 4, gamma=0.8, skip=True, eval_stopping=tight, **kw),
            nn.Linear(4, 3),
        ),
        "equilibrium": nn.Sequential(
            wp.Equilibrium(MonotoneCell(6, 5, **kw), eval_stopping=tight), nn.Linear(5, 3)
        ),
    }


@pytest.mark.parametrize("name", stacks())
@pytest.mark.parametrize("phi", [None, LeakyReLU(0.1)])
def test_a_stack_is_one_equilibrium_network(name, phi):
    layers = stacks(phi)[name].double().eval()
    net = as_equilibrium(layers)
    x = rand(20, 6)
    z = equilibrium(net, x, monotone_witness(net)).z
    with torch.no_grad():
        assert torch.allclose(net.output(z, x), layers(x), rtol=0, atol=1e-10)
    if name in ("sll", "sandwich"):
        assert not bool(torch.triu(net.W).any())
    # the joined multiplier proves what the layers prove one after the other, or better
    gain = joint_gain(PairwiseL2.of(net, net.metric)).gain
    if name != "equilibrium":
        assert gain <= wp.lipschitz(layers, norm_in="2").value * (1 + 1e-5)
    attacked = lipschitz_lower(layers, x[:3], norm_in=TwoNorm(), rounds=1).value
    assert attacked <= gain


@pytest.mark.parametrize("name", ["sll", "sandwich", "mixed"])
def test_the_network_is_a_point_of_the_lben_parametrisation(name):
    layers = stacks()[name].double().eval()
    net = as_equilibrium(layers)
    gain = joint_gain(PairwiseL2.of(net, net.metric)).gain
    layer = as_lben(net, 1.01 * gain).eval()
    layer.layer.eval_stopping = Stopping(rtol=1e-13, max_evaluations=9000)
    x = rand(20, 6)
    with torch.no_grad():
        assert torch.allclose(layer(x), layers(x), rtol=0, atol=1e-8)
    assert wp.lipschitz(layer, norm_in="2").value <= 1.01 * gain
    with pytest.raises(NotCertifiableError, match="strictly"):
        as_lben(net, 0.9 * gain)


def test_they_are_lowered_and_enclosed():
    layers = nn.Sequential(SLL(6, 8), Sandwich(6, 5), nn.Linear(5, 3)).eval()
    x = rand(8, 6)
    net = lower(layers, (6,)).network()
    with torch.no_grad():
        y = layers(x.float())
        wide = net.output(equilibrium(net, x, wp.wellposedness(net)).z, x)
        assert torch.allclose(wide.float(), y, atol=1e-5)
        box = enclose(layers, Box(x - 0.01, x + 0.01))
        assert bool(((box.lower <= wide) & (wide <= box.upper)).all())
    found = wp.l2_certified(layers, x.float(), y.argmax(1), steps=5)
    bound = wp.lipschitz(nn.Sequential(*layers[:2]), norm_in="2").value
    C = layers[2].weight.detach().double()
    apart = (C[:, None] - C).norm(dim=2)
    assert bool((found.gains <= apart * bound * (1 + 1e-9)).all())


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="slopes"):
        SLL(3, activation=GELU())
    with pytest.raises(ConfigError, match="slopes"):
        Sandwich(3, 4, activation=GELU())
    with pytest.raises(ShapeError, match="`n_out`"):
        Sandwich(3, 0)
    with pytest.raises(ShapeError, match="takes inputs of shape"):
        SLL(3)(torch.randn(2, 4))
    with pytest.raises(ShapeError, match="takes inputs of shape"):
        wp.lipschitz(SLL(3), norm_in="2", in_shape=(4,))
    with pytest.raises(NotCertifiableError, match="activations"):
        as_equilibrium(nn.Sequential(SLL(3), SLL(3, activation=Tanh())))
    with pytest.raises(NotCertifiableError, match="no form"):
        as_equilibrium(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ConfigError, match="no layer"):
        as_equilibrium(nn.Sequential(nn.Flatten()))
    broken = SLL(3)
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(NotCertifiableError, match="NaN"):
        wp.lipschitz(broken, norm_in="2")
