"""The Jacobian penalty: unbiased, and its gradient is that of a dense computation."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.nn import functional as F

import wellposed as wp
from wellposed.core.maps import FunctionMap
from wellposed.errors import ConfigError
from wellposed.nn.blocks import ConvBlock
from wellposed.nn.jacobian import jacobian_penalty, squared_jacobian, visited

EXACT = wp.Stopping(1e-13, 1e-15)


class Attention(nn.Module):
    """A causal equilibrium transformer block, attention written out."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z, x):
        q, k, v = self.qkv(z).chunk(3, -1)
        score = q @ k.mT + torch.full((z.shape[1],) * 2, float("-inf")).triu(1).to(z)
        return self.norm(x + 0.3 * self.out(score.softmax(-1) @ v))


class Squash(nn.Module):
    """``tanh(W z + x)``."""

    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, z, x):
        return torch.tanh(0.7 * self.linear(z) + x)


def cases():
    torch.manual_seed(0)
    return {
        "dense": (wp.FreeCell(Squash(3)), torch.randn(2, 3)),
        "convolution": (wp.FreeCell(ConvBlock(1, 2, groups=1), start=(2, 2, 1)),
                        torch.randn(2, 1, 2, 1)),
        "transformer": (wp.FreeCell(Attention(2)), torch.randn(2, 2, 2)),
        "affine": (wp.NemonCell(3, 4, activation=wp.Tanh()), torch.randn(2, 3)),
    }  # fmt: skip


def layer(name, solver=None):
    cell, x = cases()[name]
    solver = solver or (wp.Jacobi() if name == "affine" else wp.Picard())
    return wp.Equilibrium(
        cell.double(), solver=solver, stopping=EXACT, on_failure="raise"
    ), x.double()


def dense_penalty(found, x):
    """``mean ||J||_F^2 / n`` with the whole Jacobian, each sample its own."""
    z = found(x)
    total = 0
    for i in range(len(x)):
        f = found.solver.prepare(found.cell.bind(x[i : i + 1]))
        J = jacrev(lambda s, f=f: f(s[None])[0].flatten())(z[i])
        total = total + J.square().sum() / z[i].numel()
    return total / len(x)


@pytest.mark.parametrize("name", cases())
def test_the_estimate_is_unbiased(name):
    found, x = layer(name)
    with visited(found) as visits:
        found(x)
    exact = float(dense_penalty(found, x).detach())
    map_, z = visits[0].map().detach(), visits[0].state.detach()
    n = z[0].numel()
    # all sign vectors: the mean of the estimate is exact, no sampling
    total, count = 0.0, 0
    for signs in itertools.islice(itertools.product([-1.0, 1.0], repeat=n), 1 << 8):
        e = torch.tensor(signs, dtype=torch.float64).reshape(1, *z.shape[1:]).expand_as(z)
        leaf = z.clone().requires_grad_()
        (row,) = torch.autograd.grad(map_(leaf), leaf, e)
        total, count = total + float(row.flatten(1).square().sum(1).mean()) / n, count + 1
    assert total / count == pytest.approx(exact, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    drawn = squared_jacobian(map_, z, probes=400, generator=generator).mean().detach()
    assert float(drawn) == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize("name", cases())
def test_the_gradient_is_exact_through_the_equilibrium(name):
    found, x = layer(name)
    x = x.requires_grad_()
    with visited(found) as visits:
        z = found(x)
    n = z[0].numel()
    # the estimate with every basis vector scaled by sqrt(n) is exact: replace the probes
    total = 0
    fz = visits[0].map()(z)
    for k in range(n):
        e = F.one_hot(torch.tensor(k), n).double().reshape(1, *z.shape[1:]).expand_as(z)
        (row,) = torch.autograd.grad(fz, z, e, create_graph=True)
        total = total + row.flatten(1).square().sum(1).mean() / n
    wanted = [x, *found.parameters()]
    ours = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
    dense = torch.autograd.grad(dense_penalty(found, x), wanted, allow_unused=True)
    for a, b in zip(ours, dense, strict=True):
        mine, theirs = (torch.zeros(()) if g is None else g for g in (a, b))
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["dense", "transformer"])
def test_the_penalty_agrees_with_finite_differences(name):
    found, x = layer(name)
    weight = next(p for p in found.parameters() if p.ndim == 2)
    direction = torch.randn_like(weight)

    def penalty(step=0.0):
        with torch.no_grad():
            weight.add_(step * direction)
        with visited(found) as visits:
            found(x)
        value = jacobian_penalty(visits, probes=2, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            weight.sub_(step * direction)
        return value

    with visited(found) as visits:
        found(x)
    now = jacobian_penalty(visits, probes=2, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(now, weight)
    h = 1e-5
    slope = float((penalty(h) - penalty(-h)).detach()) / (2 * h)
    assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_the_equilibrium_matters():
    # holding it fixed, as published code does, gives another gradient
    found, x = layer("dense")
    with visited(found) as visits:
        found(x)
    map_, z = visits[0].map(), visits[0].state
    weight = next(found.parameters())
    draw = [torch.Generator().manual_seed(2) for _ in range(2)]
    full = squared_jacobian(map_, z, generator=draw[0]).mean()
    held = squared_jacobian(map_, z.detach(), generator=draw[1]).mean()
    assert float(full.detach()) == pytest.approx(float(held.detach()), rel=1e-12)
    a, b = (torch.autograd.grad(v, weight, retain_graph=True)[0] for v in (full, held))
    assert float((a - b).norm() / a.norm()) > 1e-2


def test_the_map_is_the_one_that_is_iterated():
    found, x = layer("affine", wp.Jacobi())
    with visited(found) as visits:
        found(x)
    given = squared_jacobian(found.cell.bind(x), visits[0].state, probes=200).mean()
    iterated = jacobian_penalty(visits, probes=200)
    assert float(iterated.detach()) < 0.9 * float(given.detach())


def test_without_grad_mode_there_is_a_number_and_no_tape():
    found, x = layer("dense")
    with torch.no_grad(), visited(found) as visits:
        found(x)
        value = jacobian_penalty(visits)
    assert float(value) > 0
    assert not value.requires_grad


def test_constant_maps_have_no_jacobian():
    flat = FunctionMap(lambda z, c: c.expand_as(z), (torch.ones(1, 3),), (False,))
    assert squared_jacobian(flat, torch.zeros(2, 3)).tolist() == [0.0, 0.0]


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="No equilibrium layer"):
        jacobian_penalty([])
    found, x = layer("dense")
    with pytest.raises(ConfigError, match="probes"):
        squared_jacobian(found.cell.bind(x), torch.zeros(2, 3).double(), probes=0)


def test_no_hook_is_left_behind():
    found, x = layer("dense")
    with pytest.raises(RuntimeError, match="stop"), visited(found):
        raise RuntimeError("stop")
    with visited(found) as visits:
        found(x)
        found(x)
    found(x)
    assert len(visits) == 2
