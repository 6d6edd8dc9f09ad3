"""Sorting in groups."""

import copy
import io

import pytest
import torch
from torch import nn

from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.groupsort import GroupSort, MaxMin


def by_hand(x, axis, size):
    moved = x.movedim(axis, -1)
    parts = [part.sort(-1).values for part in moved.split(size, -1)]
    return torch.cat(parts, -1).movedim(-1, axis)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_axis_is_sorted_in_groups(axis, size):
    torch.manual_seed(0)
    x = torch.randn(6, 12, 18, 6)
    expected = by_hand(x, axis, size)
    assert torch.equal(GroupSort(group_size=size, dim=axis)(x), expected)
    assert torch.equal(GroupSort(n_groups=x.shape[axis] // size, dim=axis)(x), expected)
    if size == 2:
        assert torch.equal(MaxMin(dim=axis)(x), expected)


def test_non_contiguous_and_empty_inputs():
    x = torch.randn(5, 3, 8).transpose(1, 2)
    assert not x.is_contiguous()
    assert torch.equal(GroupSort(group_size=4)(x), by_hand(x, 1, 4))
    strided = torch.randn(4, 16)[:, ::2]
    assert torch.equal(MaxMin()(strided), by_hand(strided, 1, 2))
    assert GroupSort(group_size=4)(torch.zeros(0, 8)).shape == (0, 8)
    assert MaxMin()(torch.zeros(0, 8, 2)).shape == (0, 8, 2)
    assert GroupSort(n_groups=3)(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize("module", [MaxMin(), GroupSort(group_size=4), GroupSort(n_groups=1)])
@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf])
def test_it_is_one_lipschitz_in_every_norm_and_attains_it(module, p):
    torch.manual_seed(1)
    x = 3 * torch.randn(2000, 8, dtype=torch.float64)
    y = x + torch.randn(2000, 1, dtype=torch.float64).exp() * torch.randn_like(x)
    change = torch.linalg.vector_norm(module(x) - module(y), ord=p, dim=1)
    distance = torch.linalg.vector_norm(x - y, ord=p, dim=1)
    assert bool((change <= distance * (1 + 1e-14)).all())
    near = module(x) - module(x + 1e-9)
    assert torch.allclose(torch.linalg.vector_norm(near, ord=p, dim=1),
                          torch.linalg.vector_norm(torch.full_like(x, 1e-9), ord=p, dim=1),
                          rtol=1e-6)  # fmt: skip


def test_gradients_keep_their_norm_and_rise_in_every_channel():
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    for module in (MaxMin(), GroupSort(group_size=4)):
        weight = torch.randn(7, 8, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((module(x) * weight).sum(), x)
        assert torch.allclose(gradient.sort(1).values, weight.sort(1).values)
        step = 1e-7 * weight
        change = ((module(x + step) - module(x)) * weight).sum() / 1e-7
        assert torch.allclose(change, (gradient * weight).sum(), rtol=1e-6)


def test_pairs_with_ties_stay_one_lipschitz():
    x = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    rows = [torch.autograd.grad(MaxMin()(x)[0, k], x)[0][0] for k in range(4)]
    assert float(torch.linalg.matrix_norm(torch.stack(rows), ord=2)) <= 1 + 1e-12


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match="exactly one"):
        GroupSort()
    with pytest.raises(ConfigError, match="exactly one"):
        GroupSort(group_size=2, n_groups=2)
    for number in (0, -2, 2.0, True):
        with pytest.raises(ConfigError, match="positive integer"):
            GroupSort(group_size=number)
    with pytest.raises(ShapeError, match=r"has 7 channels.*multiple of 2"):
        MaxMin()(torch.zeros(3, 7))
    with pytest.raises(ShapeError, match=r"multiple of 3.*n_groups"):
        GroupSort(n_groups=3)(torch.zeros(3, 8))
    with pytest.raises(ShapeError, match="axis 2"):
        MaxMin(dim=2)(torch.zeros(3, 8))
    with pytest.raises(TypeError):
        GroupSort(2)  # size or number of groups must be said


def test_copies_and_pickles():
    x = torch.randn(4, 8)
    for module in (MaxMin(), GroupSort(group_size=4, dim=-1)):
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
            assert torch.equal(other(x), module(x))
            assert other.extra_repr() == module.extra_repr()


@pytest.mark.slow
def test_it_compiles_and_exports():
    x = torch.randn(4, 8)
    for module in (MaxMin(), GroupSort(group_size=4, dim=-1)):
        exported = torch.export.export(nn.Sequential(module), (x,)).module()
        assert torch.equal(exported(x), module(x))
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), module(x))
