"""GELU and SiLU on intervals: slopes against dense sampling, and how tight they are."""

import pytest
import torch

from wellposed.core.dipped import GELU, SiLU

DIPPED = [GELU(), SiLU()]


def quotients(phi, lower, upper, points=401):
    """Smallest and largest derivative or difference quotient, good to 1e-10."""
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    x = lower[:, None] + (upper - lower)[:, None] * t
    slope = phi.slope(x)
    far = (phi(x[:, 40:]) - phi(x[:, :-40])) / (x[:, 40:] - x[:, :-40])
    both = torch.cat([slope, far], 1)
    return both.amin(1), both.amax(1)


@pytest.mark.parametrize("phi", DIPPED, ids=repr)
@pytest.mark.parametrize("size", [1e-2, 1.0, 10.0, 1e3])
def test_slopes_of_random_intervals_hold_and_are_tight(phi, size):
    g = torch.Generator().manual_seed(int(size))
    middle = 3 * torch.randn(1000, generator=g).double()
    width = size * torch.rand(1000, generator=g).double() + 1e-3
    lower, upper = middle - width, middle + width
    least, most = quotients(phi, lower, upper)
    low, high = phi.slope_range(lower, upper)
    assert bool((low <= least + 1e-10).all())
    assert bool((high >= most - 1e-10).all())
    # what sampling misses of an extreme value is at most |phi'''| (step / 2)^2 / 2
    missed = (width / 400).square() + 2e-6
    assert bool((least - low <= missed).all())
    assert bool((high - most <= missed).all())


@pytest.mark.parametrize("phi", DIPPED, ids=repr)
def test_the_derivative_turns_where_it_says(phi):
    v = torch.tensor([-phi.turn, phi.turn], dtype=torch.float64, requires_grad=True)
    (bend,) = torch.autograd.grad(phi.slope(v).sum(), v)
    assert float(bend.abs().max()) < 1e-9
    found = phi.slope(v.detach())
    least, most = phi.slopes
    assert least <= float(found[0]) <= least + 2e-6
    assert most - 2e-6 <= float(found[1]) <= most
    # an interval that ends at a turning point, or next to it, has the extreme value
    for shift in (-1e-7, 0.0, 1e-7):
        end = v.detach() + shift
        assert float(phi.slope_range(end - 1, end)[1][1]) == most
        assert float(phi.slope_range(end, end + 1)[0][0]) == least


@pytest.mark.parametrize("phi", DIPPED, ids=repr)
def test_points_far_out_have_one_slope(phi):
    v = torch.tensor([-1e3, -60.0, 60.0, 1e3], dtype=torch.float64)
    low, high = phi.slope_range(v, v)
    assert torch.allclose(high, (v > 0).double(), rtol=0, atol=1e-14)
    assert torch.allclose(low, (v > 0).double(), rtol=0, atol=1e-14)
    assert bool((low < high).all())


@pytest.mark.parametrize("phi", DIPPED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_point_has_its_derivative(phi, dtype):
    v = torch.linspace(-6, 6, 5001, dtype=dtype)
    low, high = phi.slope_range(v, v)
    exact = phi.slope(v.double())
    assert bool((low.double() <= exact).all())
    assert bool((high.double() >= exact).all())
    assert float((high - low).max()) <= max(70 * torch.finfo(dtype).eps, 2e-6)
