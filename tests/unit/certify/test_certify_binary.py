"""No certificate past the first sign; what lies in front of it, links, and binary weights."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify.enclose import enclose
from wellposed.certify.lower import lower
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.experiments.certificates import estimate_model
from wellposed.nn.binary import BinaryConv2d, BinaryLinear, real_stem
from wellposed.nn.link import Link
from wellposed.nn.residual import Residual
from wellposed.testing.rules import check_rule


def binary_net():
    torch.manual_seed(0)
    block = nn.Sequential(BinaryConv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.Hardtanh(),
        Link(nn.Sequential(Residual(block), nn.Hardtanh()), 2),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).eval()


@pytest.mark.parametrize("norm", ["max", "1", "2"])
def test_the_first_sign_is_refused_by_name_and_with_the_reason(norm):
    net = binary_net()
    with pytest.raises(NotCertifiableError, match=r"BinaryConv2d.*sign of its inputs, which jumps"):
        wp.lipschitz(net, norm_in=norm, in_shape=(1, 4, 4))
    with pytest.raises(NotCertifiableError, match=r"`2\.body\.0\.body\.0`"):
        wp.lipschitz(net, norm_in=norm, in_shape=(1, 4, 4))
    # a box does not help
    region = Box(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1e-6))
    with pytest.raises(NotCertifiableError, match="jumps"):
        wp.lipschitz(net, norm_in=norm, region=region)


def test_boxes_and_linear_bounds_are_refused_too():
    net = binary_net()
    box = Box(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1))
    with pytest.raises(NotCertifiableError, match="jumps") as caught:
        enclose(net, box)
    assert "real_stem" in caught.value.hint
    with pytest.raises(NotCertifiableError, match="jumps"):
        lower(nn.Sequential(net[0], nn.ReLU(), *net[2:]), (1, 4, 4))
    for module in (BinaryLinear(4, 2), Link(BinaryLinear(4, 2), 2)):
        with pytest.raises(NotCertifiableError, match="jumps"):
            wp.lipschitz(module, in_shape=(4,))


def test_the_stem_is_certified_on_its_own():
    net = binary_net()
    stem = real_stem(net)
    assert len(stem) == 2
    for norm in ("max", "1", "2"):
        bound = wp.lipschitz(stem, norm_in=norm, in_shape=(1, 4, 4)).value
        assert bound == wp.lipschitz(net[:2], norm_in=norm, in_shape=(1, 4, 4)).value
        assert 0 < bound < float("inf")


def test_stand_ins_do_not_pass_for_measured_bounds():
    net = binary_net()
    with pytest.raises(ConfigError, match="stand-in"):
        lipschitz_lower(net, torch.rand(2, 1, 4, 4))
    assert estimate_model(net, torch.rand(2, 1, 4, 4)) == []
    # the jump itself: as steep as one likes
    layer = BinaryLinear(2, 1)
    low, high = torch.tensor([[-1e-12, 1.0]]), torch.tensor([[1e-12, 1.0]])
    assert float((layer(high) - layer(low)).abs().detach()) >= 0.5


def with_binary_weights():
    return nn.Sequential(BinaryLinear(3, 4, binary_inputs=False), nn.ReLU(), nn.Linear(4, 2))


def aligned():
    layer = BinaryLinear(4, 1, binary_inputs=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    return layer


def test_binary_weights_on_real_inputs_are_certified_as_they_run():
    torch.manual_seed(1)
    check_rule(with_binary_weights, torch.randn(3, 3), rounds=1)
    report = check_rule(
        lambda: Link(BinaryLinear(4, 3, binary_inputs=False), 3),
        torch.randn(3, 4),
        rounds=1,
        witness=aligned,
        outside=[lambda: BinaryLinear(4, 2)],
    )
    assert report.witness[0] <= 1 + 1e-6


def test_boxes_through_binary_kernels():
    torch.manual_seed(3)
    conv = BinaryConv2d(2, 4, 3, stride=2, padding=1, groups=2, binary_inputs=False).eval()
    box = Box(torch.zeros(1, 2, 5, 5), torch.ones(1, 2, 5, 5))
    found = enclose(conv, box)
    values = conv(torch.rand(200, 2, 5, 5)).double()
    assert bool(((values >= found.lower - 1e-6) & (values <= found.upper + 1e-6)).all())
    point = Box(torch.full((1, 2, 5, 5), 0.3), torch.full((1, 2, 5, 5), 0.3))
    width = enclose(conv, point)
    assert float((width.upper - width.lower).max()) < 1e-12


def test_a_link_is_what_it_holds():
    torch.manual_seed(2)
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    net, linked = nn.Sequential(inner), nn.Sequential(Link(inner, 4))
    for norm in ("max", "1", "2"):
        assert wp.lipschitz(net, norm_in=norm).value == wp.lipschitz(linked, norm_in=norm).value
    box = Box(torch.zeros(1, 4), torch.ones(1, 4))
    one, two = enclose(net, box), enclose(linked, box)
    assert torch.equal(one.lower, two.lower)
    assert torch.equal(one.upper, two.upper)
    assert lower(linked, (4,)).system.n == lower(net, (4,)).system.n
