"""Projections against their optimality conditions; corruptions against their definitions."""

import pytest
import torch

from wellposed.attacks.corruptions import Inversion, UniformNoise
from wellposed.attacks.projections import project_max, project_two
from wellposed.errors import ConfigError


def points(scale, seed=0, rows=200, n=7):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, n, generator=g, dtype=torch.float64)
    x[:, 0] = (x[:, 0] > 0.5).double()  # some pixels on the sides of the box
    return x, x + scale * torch.randn(rows, n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5, 10.0])
def test_projection_onto_the_two_ball_and_the_box_is_the_nearest_point(scale, eps):
    x, point = points(scale)
    found = project_two(point, x, eps)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float((found - x).norm(dim=1).max()) <= eps + 1e-12
    # the variational inequality <point - p, q - p> <= 0 for feasible q characterises p
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        q = torch.rand(x.shape, generator=g, dtype=torch.float64)
        away = q - x
        q = x + away * (eps / away.norm(dim=1, keepdim=True)).clamp(max=1)
        assert float(((point - found) * (q - found)).sum(1).max()) <= 1e-10


def test_projection_leaves_feasible_points_alone():
    x, _ = points(0.1)
    inside = (x + 0.01).clamp(0, 1)
    torch.testing.assert_close(project_two(inside, x, 1.0), inside, atol=1e-15, rtol=0)
    assert torch.equal(project_max(inside, x, 0.5), inside)


def test_projection_onto_the_max_ball():
    x, point = points(0.5)
    found = project_max(point, x, 0.1)
    expected = torch.maximum(torch.minimum(point, (x + 0.1).clamp(max=1)), (x - 0.1).clamp(min=0))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", [UniformNoise, Inversion])
def test_corruptions_move_no_pixel_by_more_than_eps_and_stay_in_the_box(kind, eps):
    x, _ = points(0.1)
    moved = kind(eps).apply(x, torch.Generator().manual_seed(0))
    assert float((moved - x).abs().max()) <= eps + 1e-15
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


def test_inversion_goes_from_the_image_over_grey_to_the_negative():
    x, _ = points(0.1)
    assert torch.equal(Inversion(0.0).apply(x), x)
    torch.testing.assert_close(Inversion(0.5).apply(x), torch.full_like(x, 0.5))
    torch.testing.assert_close(Inversion(1.0).apply(x), 1 - x)
    assert float((Inversion(0.25).apply(x) - x).abs().max()) == pytest.approx(0.25)


def test_noise_fills_its_interval_and_follows_its_generator():
    x = torch.full((1, 20_000), 0.5, dtype=torch.float64)
    one = UniformNoise(0.2).apply(x, torch.Generator().manual_seed(5))
    two = UniformNoise(0.2).apply(x, torch.Generator().manual_seed(5))
    assert torch.equal(one, two)
    away = one - x
    assert float(away.mean()) == pytest.approx(0, abs=5e-3)
    assert float(away.square().mean()) == pytest.approx(0.04 / 3, rel=0.05)
    assert float(away.abs().max()) > 0.199


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan")])
def test_bad_amplitudes_are_refused(eps):
    with pytest.raises(ConfigError, match="`eps`"):
        UniformNoise(eps)
