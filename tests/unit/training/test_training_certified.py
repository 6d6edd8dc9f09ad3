"""Losses of certified training, and the ramp."""

import pytest
import torch
from torch.nn import functional as F

from wellposed.errors import ConfigError
from wellposed.training import Examples, Recipe, fit
from wellposed.training.certified import (
    ConvexMixLoss,
    CrownIntervalLoss,
    IntervalLoss,
    Ramp,
    SmallBoxLoss,
    attacked,
    box_accuracy,
)
from wellposed.training.objective import CrossEntropy

ZERO, ONE = Ramp(0, 0), Ramp(1, 1)
LOSSES = {
    "interval": IntervalLoss,
    "crown": lambda eps, kappa: CrownIntervalLoss(eps, kappa, Ramp(0.5, 0.5)),
    "small-box": lambda eps, kappa: SmallBoxLoss(eps, kappa, 0.4, 2),
    "convex-mix": lambda eps, kappa: ConvexMixLoss(eps, kappa, 2),
}


@pytest.fixture
def batch(examples):
    # pixels in [0, 1]
    return (examples.inputs[:20] / 8 + 0.5).clamp(0, 1), examples.labels[:20]


def test_a_ramp_has_ends():
    ramp = Ramp(0.0, 0.4, 0.25, 0.75)
    values = [ramp(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4])
    assert Ramp(0.1, 0.3, 0.5, 0.5)(0.4) == 0.1
    assert Ramp(0.1, 0.3, 0.5, 0.5)(0.5) == 0.3
    assert Ramp(0.1, 0.3, 0.0, 0.0)(0.0) == 0.3
    for begin, end in ((0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ConfigError, match="begin <= end"):
            Ramp(0, 1, begin, end)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_radius_zero_is_cross_entropy(kind, kappa, make_model, batch):
    model = make_model(dropout=0.0).double()
    x, y = batch[0].double(), batch[1]
    loss, logits = LOSSES[kind](ZERO, Ramp(kappa, kappa)).loss(model, x, y, 0.5)
    clean = F.cross_entropy(model(x), y)
    # solves of training are coarse
    assert float(loss.detach()) == pytest.approx(float(clean.detach()), rel=2e-3)
    assert torch.allclose(logits, model(x), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_trains_every_weight(kind, make_model, batch):
    torch.manual_seed(0)
    model = make_model(dropout=0.0)
    loss, _ = LOSSES[kind](Ramp(0.1, 0.1), Ramp(0.7, 0.7)).loss(model, *batch, 0.5)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        assert float(p.grad.abs().max()) > 0, name


def test_losses_are_ordered(make_model, batch):
    torch.manual_seed(0)
    model = make_model(dropout=0.0).eval().double()
    x, y = batch[0].double(), batch[1]
    eps = Ramp(0.1, 0.1)
    whole = float(IntervalLoss(eps, ONE).loss(model, x, y, 0.5)[0].detach())
    small = float(SmallBoxLoss(eps, ONE, 0.3, 4).loss(model, x, y, 0.5)[0].detach())
    hit = float(ConvexMixLoss(eps, ZERO, 4).loss(model, x, y, 0.5)[0].detach())
    linear = float(CrownIntervalLoss(eps, ONE, ONE).loss(model, x, y, 0.5)[0].detach())
    clean = float(F.cross_entropy(model(x), y).detach())
    assert clean < hit < small < whole
    assert hit < linear < whole
    same = float(SmallBoxLoss(eps, ONE, 1.0, 4).loss(model, x, y, 0.5)[0].detach())
    assert same == pytest.approx(whole)


def test_attacked_points_stay_in_the_box(make_model, batch):
    torch.manual_seed(0)
    model = make_model(dropout=0.0)
    x, y = batch
    moved = attacked(model, x, y, 0.1, 3)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert not moved.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert attacked(model, x, y, 0.0, 3) is x


def test_small_boxes_have_a_part():
    with pytest.raises(ConfigError, match=r"\(0, 1\], got 0"):
        SmallBoxLoss(ZERO, ZERO, 0.0)


def test_box_accuracy_falls_with_the_radius(make_model, batch):
    model = make_model(dropout=0.5)
    data = Examples(*batch)
    found = [box_accuracy(model, data, eps) for eps in (0.0, 0.1, 1.0)]
    assert found[0] >= found[1] >= found[2]
    assert model.training


def test_label_smoothing_is_that_of_the_recipe(make_model, batch):
    model = make_model(dropout=0.0).eval()
    loss, logits = CrossEntropy(0.2).loss(model, *batch, 0.0)
    assert torch.equal(loss, F.cross_entropy(logits, batch[1], label_smoothing=0.2))
    assert CrossEntropy().watched(model, Examples(*batch)) == {}


def test_interval_training_certifies(make_model, batch, tmp_path, examples):
    torch.manual_seed(0)
    inputs = (examples.inputs / 8 + 0.5).clamp(0, 1)
    data = Examples(inputs, examples.labels)
    recipe = Recipe(epochs=20, batch=25, lr=3e-2, clip=10.0)
    figures = {}
    for name, objective in (
        ("plain", None),
        ("robust", IntervalLoss(Ramp(0, 0.05, 0.2, 0.6), Ramp(0, 0.8, 0.2, 0.6))),
    ):
        model = make_model(dropout=0.0)
        rows = fit(
            model, data, recipe, tmp_path / name, validation=data, objective=objective, seed=1
        )
        assert ("validation_boxes" in rows[-1]) == (objective is not None)
        figures[name] = box_accuracy(model, data, 0.04)
    assert figures["robust"] > figures["plain"] + 0.05
    assert figures["robust"] > 0.5
