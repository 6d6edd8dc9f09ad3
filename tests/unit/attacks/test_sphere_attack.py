"""The paper's attack, beside an honest one, and Gaussian noise."""

import pytest
import torch
from torch import nn

from wellposed.attacks import PGD, GaussianNoise, SpherePGD
from wellposed.errors import ConfigError, ShapeError


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()


def images(model, count=40):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, model(x).argmax(1)


def test_points_lie_on_the_sphere_and_the_clean_image_counts():
    model = linear()
    x, y = images(model)
    found = SpherePGD(0.7, 10).attack(model, x, y)
    distance = torch.linalg.vector_norm((found.inputs - x).flatten(1), dim=1)
    moved = distance > 0
    assert bool(moved.any())
    assert torch.allclose(distance[moved], torch.full_like(distance[moved], 0.7))
    wrong = SpherePGD(0.7).attack(model, x, (y + 1) % 3)
    assert wrong.accuracy == 0.0
    assert torch.equal(wrong.inputs, x)


def test_one_step_is_the_formula():
    model = linear(2)
    x, y = images(model)
    found = SpherePGD(0.3, 1, 0.25).attack(model, x, y)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf
    )
    away = (x + 0.25 * slope.sign()).clamp(0, 1) - x
    size = torch.linalg.vector_norm(away.flatten(1), dim=1)[:, None, None, None]
    moved = (found.inputs != x).flatten(1).any(1)
    assert torch.allclose(found.inputs[moved], (x + 0.3 * away / size)[moved])


def test_the_honest_attack_is_stronger():
    model = linear(3)
    x, y = images(model, 200)
    weak = SpherePGD(0.5, 40).attack(model, x, y)
    honest = PGD("2", 0.5, 40, 0.1).attack(model, x, y, torch.Generator().manual_seed(0))
    assert honest.accuracy <= weak.accuracy < 1
    assert float(honest.inputs.min()) >= 0
    assert float(honest.inputs.max()) <= 1


def test_an_empty_batch_and_what_is_wrong():
    model = linear()
    none = SpherePGD().attack(model, torch.zeros(0, 1, 4, 4).double(), torch.zeros(0).long())
    assert none.inputs.shape == (0, 1, 4, 4)
    with pytest.raises(ShapeError, match=r"\[0, 1\]"):
        SpherePGD().attack(model, torch.full((1, 1, 4, 4), 2.0).double(), torch.zeros(1).long())
    for options in ({"eps": 0.0}, {"step_size": -1.0}, {"steps": 0}, {"eps": float("nan")}):
        with pytest.raises(ConfigError, match="must be positive"):
            SpherePGD(**options)


def test_gaussian_noise_is_clipped_and_seeded():
    x = torch.rand(100, 1, 4, 4)
    noise = GaussianNoise(1.0)
    a, b = (noise.apply(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert 0 <= float(a.min()) <= float(a.max()) <= 1
    assert torch.equal(GaussianNoise(0.0).apply(x), x)
    small = GaussianNoise(0.01).apply(torch.full((1000, 1, 4, 4), 0.5)) - 0.5
    assert float(small.std()) == pytest.approx(0.01, rel=0.05)
    with pytest.raises(ConfigError, match="`sigma`"):
        GaussianNoise(-0.1)
