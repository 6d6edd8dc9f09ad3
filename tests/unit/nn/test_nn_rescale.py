"""Rescaled and orthogonal layers: norms measured on the explicit weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from wellposed.core.layers import from_module
from wellposed.core.opnorm import operator_norm
from wellposed.errors import ConfigError
from wellposed.nn.orthogonal import orthogonal
from wellposed.nn.rescale import SpectralRescale, spectral_rescale

UGLY = {
    "x1e3": lambda w: 1e3 * w,
    "x1e-30": lambda w: 1e-30 * w,
    "x1e30": lambda w: 1e30 * w,
    "bfloat16": lambda w: w.bfloat16().float(),
    "positive": lambda w: w.abs(),
    "one row": lambda w: torch.cat([1e6 * w[:1], w[1:]]),
    "zero row": lambda w: torch.cat([0 * w[:1], w[1:]]),
    "rank one": lambda w: w[:1].expand_as(w).clone(),
    "zero": lambda w: 0 * w,
}


def test_the_norm_is_at_most_one_and_nearly_one():
    torch.manual_seed(0)
    rescale = SpectralRescale(3)
    for k in range(1000):
        weight = rescale(torch.randn(30, 20) * 10 ** (k % 9 - 4))
        sigma = float(torch.linalg.matrix_norm(weight.double(), 2))
        assert 0.95 < sigma <= 1


def test_steps_waste_less_and_less():
    torch.manual_seed(1)
    W = torch.randn(30, 20)
    norms = [operator_norm(SpectralRescale(steps)(W)).upper for steps in (1, 2, 3, 4, 6)]
    assert norms == sorted(norms)
    assert norms[0] < 0.85
    assert norms[-1] > 0.99
    Q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    assert operator_norm(SpectralRescale(1)(Q)).lower == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("steps", [1, 3])
def test_layers_at_ugly_weights(ugly, steps):
    torch.manual_seed(2)
    layers = [
        (nn.Linear(6, 9), (6,)),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 7, 7)),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 6)),
        (nn.Conv1d(3, 2, 4, padding="same", dilation=2), (3, 9)),
        (nn.ConvTranspose2d(4, 3, 3, 2, 1), (4, 3, 4)),
    ]
    for layer, shape in layers:
        with torch.no_grad():
            layer.weight.copy_(UGLY[ugly](torch.randn_like(layer.weight)))
        spectral_rescale(layer, steps)
        assert operator_norm(from_module(layer, shape)).upper <= 1 + 1e-12
        layer(torch.randn(2, *shape)).square().sum().backward()
        grad = layer.parametrizations.weight.original.grad
        if ugly != "x1e-30":  # a gradient of order 1e30 squared has no place in float32
            assert bool(torch.isfinite(grad).all())


def test_zero_rows_stay_zero_with_finite_gradients():
    W = torch.randn(4, 3, requires_grad=True)
    W.data[1] = 0
    rescaled = SpectralRescale(2)(W)
    assert not bool(rescaled[1].any())
    rescaled.sum().backward()
    assert bool(torch.isfinite(W.grad).all())


def test_gradients():
    torch.manual_seed(3)
    W = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SpectralRescale(3), W)
    K = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SpectralRescale(2), K, fast_mode=True)
    assert torch.autograd.gradcheck(SpectralRescale(1, groups=2), K, fast_mode=True)


def test_training_keeps_the_constraint_and_it_can_be_removed():
    torch.manual_seed(4)
    net = nn.Sequential(spectral_rescale(nn.Linear(5, 8), 2), nn.ReLU(), nn.Linear(8, 3))
    optimiser = torch.optim.SGD(net.parameters(), 1.0)
    for _ in range(20):
        optimiser.zero_grad()
        (-net(torch.randn(16, 5)).square().sum()).clamp(min=-1e3).backward()
        optimiser.step()
        assert operator_norm(net[0].weight).upper <= 1
    x = torch.randn(3, 5)
    before = net(x)
    parametrize.remove_parametrizations(net[0], "weight")
    assert type(net[0]) is nn.Linear
    assert torch.equal(net(x), before)


def test_orthogonal_layers():
    torch.manual_seed(5)
    for shape in ((6, 6), (9, 4), (4, 9)):
        for method in ("cayley", "matrix_exp", "householder"):
            layer = orthogonal(nn.Linear(*shape), method=method)
            s = torch.linalg.svdvals(layer.weight.detach().double())
            assert torch.allclose(s, torch.ones_like(s), atol=1e-5)
            assert operator_norm(layer.weight).upper <= 1 + 1e-5


def test_refusals():
    with pytest.raises(ConfigError, match="copies"):
        spectral_rescale(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ConfigError, match="copies"):
        spectral_rescale(nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"))
    with pytest.raises(ConfigError, match="ReLU"):
        spectral_rescale(nn.ReLU())
    with pytest.raises(ConfigError, match="steps"):
        SpectralRescale(0)
    with pytest.raises(ConfigError, match="Conv2d"):
        orthogonal(nn.Conv2d(2, 2, 3))
    with pytest.raises(ConfigError, match="bfloat16"):
        orthogonal(nn.Linear(2, 2, dtype=torch.bfloat16))
