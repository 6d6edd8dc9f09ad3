"""Orthogonal weights by Cayley at the price of the shorter side."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from wellposed.certify import lipschitz
from wellposed.errors import ConfigError
from wellposed.nn.groupsort import MaxMin
from wellposed.nn.stiefel import Stiefel, stiefel


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e-3, 1e3])
def test_all_singular_values_are_one(shape, scale):
    torch.manual_seed(0)
    layer = stiefel(nn.Linear(shape[1], shape[0], dtype=torch.float64))
    free = layer.parametrizations.weight.original
    with torch.no_grad():
        free.mul_(scale)
    values = torch.linalg.svdvals(layer.weight.detach())
    # a large Y^T Y beside I costs its condition
    assert float((values - 1).abs().max()) < 1e-13 * max(scale, 1.0) ** 2


def test_it_is_torchs_transform_without_the_large_inverse():
    torch.manual_seed(1)
    free = 0.3 * torch.randn(9, 4, dtype=torch.float64)
    theirs = parametrizations.orthogonal(
        nn.Linear(4, 9, dtype=torch.float64), orthogonal_map="cayley", use_trivialization=False
    )
    skew = torch.cat([(free[:4] - free[:4].mT).tril(), free[4:]])
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(2 * skew)
    ours = Stiefel()(free)
    # their skew matrix has the other sign in its first block, and so has the result's lower part
    with torch.no_grad():
        theirs.parametrizations.weight.original[:4].mul_(-1)
        expected = theirs.weight
    assert torch.allclose(ours[:4], expected[:4], atol=1e-12)
    assert torch.allclose(ours[4:].abs(), expected[4:].abs(), atol=1e-12)


def test_a_network_of_them_is_certified_at_one():
    torch.manual_seed(2)
    net = nn.Sequential(stiefel(nn.Linear(12, 8)), MaxMin(), stiefel(nn.Linear(8, 3))).eval()
    found = lipschitz(net, norm_in="2", in_shape=(12,))
    assert 0.999 < found.value < 1 + 1e-5


def test_training_keeps_it_and_copies_carry_it():
    torch.manual_seed(3)
    layer = stiefel(nn.Linear(6, 4))
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        (layer(torch.randn(8, 6)) - 3).square().mean().backward()
        optimiser.step()
    values = torch.linalg.svdvals(layer.weight.detach())
    assert float((values - 1).abs().max()) < 1e-5
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, weight)


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match="no linear layer"):
        stiefel(nn.Conv2d(3, 3, 3))
    with pytest.raises(ConfigError, match="bfloat16"):
        stiefel(nn.Linear(3, 3, dtype=torch.bfloat16))
