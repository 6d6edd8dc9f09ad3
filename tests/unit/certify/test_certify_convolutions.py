"""Convolutions of one and three dimensions and transposed ones have rules; so have 2-norms."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify.enclose import enclose
from wellposed.core.layers import from_module
from wellposed.core.opnorm import operator_norm
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError

LAYERS = {
    "one axis": (lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2), (4, 9)),
    "one axis, replicated": (lambda: nn.Conv1d(2, 3, 5, 1, 2, padding_mode="replicate"), (2, 6)),
    "three axes": (lambda: nn.Conv3d(2, 2, 2, 1, 1, 2), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), (3, 3, 4)),
    "transposed, one axis": (lambda: nn.ConvTranspose1d(4, 2, 3, 2, groups=2), (4, 5)),
    "transposed, three axes": (lambda: nn.ConvTranspose3d(2, 1, 2, 2), (2, 2, 2, 3)),
}
UGLY = {
    "plain": lambda w: w,
    "x1e3": lambda w: 1e3 * w,
    "x1e-3": lambda w: 1e-3 * w,
    "signs": lambda w: w * (1 - 2 * (torch.rand(w.shape) < 0.5).to(w)),
    "bfloat16": lambda w: w.bfloat16().float(),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ugly", UGLY)
def test_constants_hold(name, ugly):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    with torch.no_grad():
        layer.weight.copy_(UGLY[ugly](torch.randn_like(layer.weight)))
    net = nn.Sequential(layer, nn.LeakyReLU(0.2), nn.Flatten()).eval().double()
    net.requires_grad_(False)
    M = from_module(layer, shape).detach().materialise()
    steepest = torch.linalg.svd(M)[2][0].reshape(1, *shape)
    true = {
        "2": torch.linalg.matrix_norm(M, 2),
        "1": M.abs().sum(0).max(),
        "max": M.abs().sum(1).max(),
    }
    for norm, value in true.items():
        linear = wp.lipschitz(nn.Sequential(layer), norm_in=norm, in_shape=shape).value
        assert linear >= float(value) * (1 - 1e-12)
        # reflected pixels join in a sum whose signs the majorant does not see
        assert linear <= float(value) * (1.0001 if "replicated" not in name else 1.6)
        found = wp.lipschitz(net, norm_in=norm, in_shape=shape).value
        p = {"2": 2, "1": 1, "max": torch.inf}[norm]
        for scale in (1e-3, 10.0):
            x, d = torch.randn(2, 64, *shape).double()
            d[:32] = steepest + 0.1 * d[:32]
            y = net(x + scale * d) - net(x)
            sizes = [torch.linalg.vector_norm(t.flatten(1), p, 1) for t in (y, scale * d)]
            assert float((sizes[0] / sizes[1]).max()) <= found * (1 + 1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_boxes_hold(name):
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    net = nn.Sequential(make(), nn.ReLU()).eval()
    centre = torch.randn(1, *shape).double()
    box = enclose(net, Box(centre - 0.1, centre + 0.1))
    corners = centre + 0.1 * (1 - 2 * torch.randint(0, 2, (500, *shape))).double()
    y = net.double()(corners)
    assert bool((y >= box.lower - 1e-12).all() & (y <= box.upper + 1e-12).all())


def test_two_norms_of_convolutions_are_those_of_the_engine():
    torch.manual_seed(2)
    layer = nn.Conv2d(3, 4, 3, 2, 2, 2)
    found = wp.lipschitz(nn.Sequential(layer), norm_in="2", in_shape=(3, 9, 9)).value
    assert found == pytest.approx(operator_norm(from_module(layer, (3, 9, 9))).upper, rel=1e-9)


def test_refusals():
    with pytest.raises(ShapeError, match="channels"):
        wp.lipschitz(nn.Sequential(nn.Conv1d(2, 2, 3)), norm_in="2", in_shape=(3, 9))
    bad = nn.Conv1d(2, 2, 3)
    with torch.no_grad():
        bad.weight[0] = float("nan")
    with pytest.raises(NotCertifiableError, match="NaN"):
        wp.lipschitz(nn.Sequential(bad), norm_in="2", in_shape=(2, 9))
