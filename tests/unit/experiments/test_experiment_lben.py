"""The family `lben` and the loss with a margin, from a configuration."""

import pytest
import torch
from torch.nn import functional as F

from wellposed.errors import ConfigError
from wellposed.experiments.config import parse
from wellposed.experiments.models import build_model
from wellposed.experiments.robust import make_objective
from wellposed.nn.lben import LBEN
from wellposed.training.margin import MarginLoss


def build(**model):
    config = parse({"model": {"kind": "lben", **model}})
    (variant,) = config.resolved().values()
    return build_model(variant, shape=(1, 4, 4), classes=3, mean=(0.1,), std=(0.3,)).eval()


def test_the_section_builds_it():
    (layer,) = [m for m in build(states=5, gamma=0.7).modules() if isinstance(m, LBEN)]
    assert (layer.cell.n_in, layer.cell.n_state, layer.cell.n_out) == (16, 5, 3)
    assert layer.gamma == 0.7
    model = build(states=5, gamma=0.0)
    assert model(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    (layer,) = [m for m in model.modules() if isinstance(m, LBEN)]
    assert layer.gamma is None


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": 0.0, "skip": True}, "skip"),
        ({"margin": 0.0}, "margin"),
    ],
)
def test_bad_sections_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        build(**model)


def test_the_loss_is_cross_entropy_in_other_units():
    config = parse({"robust": {"kind": "margin", "offset": 0.5, "temperature": 2.0}})
    objective = make_objective(config.robust)
    assert objective == MarginLoss(0.5, 2.0)
    model = build(states=5)
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    loss, logits = objective.loss(model, x, y, 0.0)
    moved = logits - 0.5 * F.one_hot(y, 3)
    assert float(loss.detach()) == pytest.approx(
        2 * float(F.cross_entropy(moved / 2, y).detach()), rel=1e-5
    )
    plain, logits = MarginLoss().loss(model, x, y, 0.0)
    assert float(plain.detach()) == pytest.approx(
        float(F.cross_entropy(logits, y).detach()), rel=1e-6
    )
    assert objective.watched(model, None) == {}


def test_units_that_are_none_are_refused():
    for wrong in ({"temperature": 0.0}, {"offset": -0.1}):
        with pytest.raises(ConfigError):
            MarginLoss(**wrong)
