"""The family `lben-conv`, from a configuration."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.errors import ConfigError, ShapeError
from wellposed.experiments.certificates import certify_model
from wellposed.experiments.config import parse
from wellposed.experiments.models import build_model, parameters
from wellposed.nn.lben_conv import LBENConv


def build(side=8, **model):
    config = parse({"model": {"kind": "lben-conv", **model}})
    (variant,) = config.resolved().values()
    return build_model(
        variant, shape=(1, side, side), classes=3, mean=(0.1,), std=(0.25,)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_section_builds_a_bounded_network(pool, padding):
    model = build(channels=4, outputs=3, gamma=0.7, pool=pool, padding=padding)
    (layer,) = [m for m in model.modules() if isinstance(m, LBENConv)]
    assert layer.gamma == pytest.approx(0.7 * pool)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    # float32 rows are orthonormal up to rounding
    assert wp.lipschitz(model, norm_in="2", in_shape=(1, 8, 8)).value <= 0.7 / 0.25 * (1 + 1e-5)
    assert parameters(model) == 4 * 25 + 2 * 4 * 36 + 8 + 4 * 3 + 3 + 3 * 3 * (4 // pool) ** 2 + 3


def test_it_is_certified_in_every_norm():
    proved = certify_model(build(channels=3, outputs=2), (1, 8, 8))
    assert proved.refused == {}


def test_without_gamma_it_is_well_posed_only():
    model = build(channels=3, gamma=0.0)
    assert isinstance(model[1], LBENConv)
    assert model[1].gamma is None
    assert isinstance(model[-1], nn.Linear)


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        ({"gamma": -1.0}, ConfigError, "gamma"),
        ({"margin": 0.0}, ConfigError, "margin"),
        ({"pool": 3}, ConfigError, "pool"),
        ({"stride": 3}, ShapeError, "stride 3"),
        ({"inject": 9}, ShapeError, "input kernel has side 9"),
    ],
)
def test_bad_sections_are_refused(model, error, match):
    with pytest.raises(error, match=match):
        build(**model)
