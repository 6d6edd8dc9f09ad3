"""Activations against brute force: slopes, images, resolvents and their derivatives."""

import pytest
import torch

from wellposed.core.activations import (
    ACTIVATIONS,
    ELU,
    GELU,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
    resolvent,
    resolvent_range,
)  # fmt: skip
from wellposed.errors import ConfigError

ALL = [ReLU(), LeakyReLU(0.1), LeakyReLU(0.7), Tanh(), Sigmoid(), Softplus(), ELU(), GELU(), SiLU()]
SMOOTH = [Tanh(), Sigmoid(), Softplus(), GELU(), SiLU()]
GRID = torch.linspace(-12, 12, 200_001, dtype=torch.float64)


def test_every_activation_is_covered_here():
    assert {type(phi) for phi in ALL} == set(ACTIVATIONS.values())


@pytest.mark.parametrize("phi", ALL, ids=repr)
def test_slopes_are_bounds_and_are_approached(phi):
    quotient = (phi(GRID[1:]) - phi(GRID[:-1])) / (GRID[1:] - GRID[:-1])
    low, high = phi.slopes
    assert low - 1e-9 <= float(quotient.min()) <= low + 1e-3
    assert high - 1e-3 <= float(quotient.max()) <= high + 1e-9
    assert phi.monotone == (low >= 0)
    assert phi.steepest == max(abs(low), abs(high))


@pytest.mark.parametrize("phi", ALL, ids=repr)
def test_slope_is_the_derivative(phi):
    v = GRID[::97].clone().requires_grad_()
    (grad,) = torch.autograd.grad(phi(v).sum(), v)
    assert torch.allclose(grad, phi.slope(v.detach()), atol=1e-12)


@pytest.mark.parametrize("phi", ALL, ids=repr)
def test_image_and_slope_range_of_intervals(phi):
    g = torch.Generator().manual_seed(0)
    ends = torch.randn(300, 2, generator=g, dtype=torch.float64) * 3
    ends = torch.cat(
        [ends, torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [-2.0, -2.0]]).double()]
    )
    lower, upper = ends.min(1).values, ends.max(1).values
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    points = lower[:, None] + (upper - lower)[:, None] * t
    values = phi(points)
    low, high = phi.image(lower, upper)
    assert bool((values.min(1).values >= low - 1e-12).all())
    assert bool((values.max(1).values <= high + 1e-12).all())
    assert torch.allclose(values.min(1).values, low, atol=1e-4)  # and it is tight
    assert torch.allclose(values.max(1).values, high, atol=1e-4)
    wide = upper - lower > 0.1  # quotients of nearer points are mostly rounding
    quotient = ((values[:, 1:] - values[:, :-1]) / (points[:, 1:] - points[:, :-1]))[wide]
    least, most = (s[wide] for s in phi.slope_range(lower, upper))
    assert bool((quotient.min(1).values >= least - 1e-8).all())
    assert bool((quotient.max(1).values <= most + 1e-8).all())


@pytest.mark.parametrize("phi", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resolvent_solves_its_equation(phi, dtype):
    low, high = resolvent_range(phi)
    g = torch.Generator().manual_seed(1)
    a = torch.rand(400, generator=g, dtype=dtype) * 0.97 * (high - max(low, -30)) + 0.97 * max(
        low, -30
    )
    s = torch.randn(400, generator=g, dtype=dtype) * torch.tensor(
        [1e-3, 1, 10, 100], dtype=dtype
    ).repeat(100)
    z = resolvent(phi, a, s)
    unit = torch.finfo(dtype).eps
    error = (z - phi(a * z + s)).abs() / (1 + z.abs() + (a * z).abs() + s.abs())
    assert float(error.max()) <= 16 * unit


@pytest.mark.parametrize("a", [-5.0, -0.3, 0.0, 0.6])
def test_resolvent_of_leaky_relu_is_leaky(a):
    phi, s = LeakyReLU(0.2), GRID[::1000]
    z = resolvent(phi, torch.full_like(s, a), s)
    expected = torch.where(s > 0, s / (1 - a), 0.2 * s / (1 - 0.2 * a))
    assert torch.allclose(z, expected)


@pytest.mark.parametrize("phi", SMOOTH, ids=repr)
def test_resolvent_derivatives_to_third_order(phi):
    a = torch.tensor([-2.0, -0.5, 0.4], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64, requires_grad=True)
    call = lambda a, s: resolvent(phi, a, s)  # noqa: E731
    assert torch.autograd.gradcheck(call, (a, s), atol=1e-6)
    assert torch.autograd.gradgradcheck(call, (a, s), atol=1e-5, fast_mode=True)
    second = lambda s: torch.autograd.grad(  # noqa: E731
        torch.autograd.grad(call(a, s).sum(), s, create_graph=True)[0].sum(), s, create_graph=True
    )[0]
    assert torch.autograd.gradcheck(second, (s,), atol=1e-4, fast_mode=True)


def test_resolvent_converges_where_neighbours_are_slow():
    # elements that are done must not be thrown back while others still search
    a = torch.tensor([-1000.0, -3.0, 0.99], dtype=torch.float64)
    s = torch.tensor([1e3, 1.0, 1e-3], dtype=torch.float64)
    z = resolvent(Tanh(), a, s)
    alone = torch.cat([resolvent(Tanh(), a[i : i + 1], s[i : i + 1]) for i in range(3)])
    assert torch.allclose(z, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("phi", ALL, ids=repr)
def test_resolvent_refuses_what_has_no_unique_solution(phi):
    high = resolvent_range(phi)[1]
    with pytest.raises(ConfigError, match="scalar equation"):
        resolvent(phi, torch.tensor([high]), torch.ones(1))


def test_leaky_slope_is_checked():
    with pytest.raises(ConfigError, match="negative_slope"):
        LeakyReLU(1.0)
