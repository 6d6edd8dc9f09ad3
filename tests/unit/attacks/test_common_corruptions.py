"""Common corruptions against their definitions."""

import pytest
import torch

from wellposed.attacks.common import BoxBlur, Brightness, Contrast, ShotNoise
from wellposed.errors import ConfigError, ShapeError

ALL = [BoxBlur(3), Brightness(0.25), Brightness(-0.4), Contrast(0.4), ShotNoise(8.0)]


@pytest.mark.parametrize("corruption", ALL)
def test_images_stay_in_the_box_and_follow_the_generator(corruption):
    x = torch.rand(5, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    one = corruption.apply(x, torch.Generator().manual_seed(1))
    two = corruption.apply(x, torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert 0 <= float(one.min()) <= float(one.max()) <= 1
    assert not torch.equal(one, x)


def test_by_the_definition():
    x = torch.rand(3, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Brightness(0.25).apply(x), (x + 0.25).clamp(max=1))
    torch.testing.assert_close(Contrast(0.4).apply(x), 0.3 + 0.4 * x)
    torch.testing.assert_close(Contrast(0.0).apply(x), torch.full_like(x, 0.5))
    torch.testing.assert_close(Contrast(1.0).apply(x), x)
    blurred = BoxBlur(3).apply(x)
    torch.testing.assert_close(blurred[:, :, 2, 2], x[:, :, 1:4, 1:4].mean((2, 3)))
    corner = (4 * x[:, :, 0, 0] + 2 * x[:, :, 0, 1] + 2 * x[:, :, 1, 0] + x[:, :, 1, 1]) / 9
    torch.testing.assert_close(blurred[:, :, 0, 0], corner)
    assert torch.equal(BoxBlur(1).apply(x), x)


def test_shot_noise_has_the_variance_of_its_photons():
    x = torch.full((1, 1, 200, 200), 0.3, dtype=torch.float64)
    away = ShotNoise(100.0).apply(x, torch.Generator().manual_seed(0)) - x
    assert float(away.mean()) == pytest.approx(0, abs=2e-3)
    assert float(away.square().mean()) == pytest.approx(0.3 / 100, rel=0.05)
    dark = ShotNoise(8.0).apply(torch.zeros(1, 1, 4, 4))
    assert not bool(dark.any())


@pytest.mark.parametrize(
    "make",
    [
        lambda: BoxBlur(2),
        lambda: BoxBlur(0),
        lambda: Brightness(1.5),
        lambda: Brightness(float("nan")),
        lambda: Contrast(-0.1),
        lambda: ShotNoise(0.0),
        lambda: ShotNoise(float("inf")),
    ],
)
def test_bad_strengths_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_a_blur_of_vectors_is_refused():
    with pytest.raises(ShapeError, match="images"):
        BoxBlur(3).apply(torch.rand(3, 4))
