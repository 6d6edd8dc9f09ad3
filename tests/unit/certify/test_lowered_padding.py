"""Paddings that repeat pixels: no weight of the network as matrices is a rounded sum."""

import pytest
import torch
from torch import nn

from wellposed.certify.lower import lower
from wellposed.core.sets import Box


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_taps_are_kept_apart(mode, padding):
    g = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=padding, padding_mode=mode).double()
    with torch.no_grad():
        # any sum of two of them loses the smaller one
        scale = 2.0 ** (-60 * torch.arange(9)).reshape(3, 3).double()
        layer.weight.copy_((1 + torch.rand(3, 2, 1, 1, generator=g).double()) * scale)
    lowered = lower(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 5 * 6, 2)).double()
                    if padding != (2, 1) else
                    nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 7 * 6, 2)).double(),
                    (2, 5, 6))  # fmt: skip
    net = lowered.network()
    known = {1.0, *layer.weight.flatten().tolist()}
    n = len(net.W)
    rows = slice(0, n)
    entries = {*net.U[rows][net.U[rows] != 0].tolist(), *net.W[rows][net.W[rows] != 0].tolist()}
    assert entries <= known
    assert len(entries) > 9


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_the_function_is_that_of_the_module(mode):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1, padding_mode=mode), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * 3 * 3, 3),
    ).double()  # fmt: skip
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    lowered = lower(model, (1, 6, 6))
    net = lowered.network()
    flat = lowered.enter(Box(x, x)).box.lower
    z = torch.zeros(4, net.n).double()
    for _ in range(4):
        z = net.phi(net.preactivation(z, flat))
    torch.testing.assert_close(net.output(z, flat), model(x))
