"""FGSM and PGD: sound by construction, exact gradients, honest about failed solves."""

import warnings
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import nn

from wellposed.attacks.exact import exact_layers, margins
from wellposed.attacks.gradient import FGSM, PGD
from wellposed.cells.nemon import NemonCell
from wellposed.errors import ConfigError, ShapeError
from wellposed.gradients.base import Gradient
from wellposed.gradients.implicit import Implicit
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping
from wellposed.solvers.picard import Picard

N, SIDE, CLASSES = 40, 4, 3
BIAS = torch.tensor([0.058, 0.045, 0.039], dtype=torch.float64)


def network(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    layer = Equilibrium(NemonCell(SIDE * SIDE, 12, margin=0.5, dtype=dtype), **options)
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(12, CLASSES, dtype=dtype)).eval()
    with torch.no_grad():
        model[2].bias.copy_(BIAS)  # balances the classes, so that images lie near a border
    return model


def images(model, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(N, 1, SIDE, SIDE, generator=g, dtype=dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:4] = (y[:4] + 1) % CLASSES  # some are wrong before any attack
    return x, y


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


ATTACKS = [
    FGSM(0.1),
    FGSM(0.1, loss="margin"),
    PGD("max", 0.1, 8),
    PGD("max", 0.1, 8, loss="ce", restarts=2),
    PGD("2", 0.4, 8),
    PGD("2", 0.4, 8, random_start=False, restarts=2),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_points_stay_in_the_ball_and_the_unit_box_and_the_margin_is_theirs(attack):
    model = network()
    x, y = images(model)
    result = attack.attack(model, x, y, generator())
    away = (result.inputs - x).flatten(1)
    size = away.abs().amax() if getattr(attack, "norm", "max") == "max" else away.norm(dim=1).max()
    assert float(size) <= attack.eps * (1 + 1e-12)
    assert 0 <= float(result.inputs.min()) <= float(result.inputs.max()) <= 1
    with torch.no_grad():
        again = margins(model(result.inputs), y)
    torch.testing.assert_close(again, result.margin, atol=1e-8, rtol=0)
    assert torch.equal(result.success, result.margin <= 0)
    assert not result.unsolved.any()


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_attacked_accuracy_never_exceeds_the_clean_one_and_the_attack_works(attack):
    model = network()
    x, y = images(model)
    with torch.no_grad():
        clean = margins(model(x), y)
    result = attack.attack(model, x, y, generator())
    assert bool((result.margin <= clean + 1e-9).all())
    assert result.accuracy < float((clean > 0).double().mean())
    assert torch.equal(result.inputs[:4], x[:4])  # broken before: the image itself is the witness


def test_zero_radius_returns_the_image():
    model = network()
    x, y = images(model)
    for attack in (FGSM(0.0), PGD("max", 0.0, 3), PGD("2", 0.0, 3)):
        result = attack.attack(model, x, y, generator())
        torch.testing.assert_close(result.inputs, x, atol=1e-15, rtol=0)
        assert result.accuracy == 0.9


def test_same_generator_same_result_and_random_starts_do_not_depend_on_batch_mates():
    model = network()
    x, y = images(model)
    attack = PGD("max", 0.05, 5, restarts=2)
    one = attack.attack(model, x, y, generator())
    two = attack.attack(model, x, y, generator())
    assert torch.equal(one.inputs, two.inputs)
    other_labels = y.clone()
    other_labels[20:] = (other_labels[20:] + 1) % CLASSES
    three = attack.attack(model, x, other_labels, generator())
    torch.testing.assert_close(three.margin[:20], one.margin[:20], atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["max", "2"])
def test_warm_starts_make_the_accuracy_monotone_in_eps(norm):
    model = network()
    x, y = images(model)
    start, before = None, None
    for eps in (0.01, 0.02, 0.05, 0.1, 0.2):
        result = PGD(norm, eps, 4).attack(model, x, y, generator(), start)
        if before is not None:
            assert bool((result.margin <= before + 1e-9).all())
        start, before = result.inputs, result.margin
    assert result.accuracy < 0.9


def test_more_restarts_never_help_the_defender():
    model = network()
    x, y = images(model)
    one = PGD("max", 0.08, 3, restarts=1).attack(model, x, y, generator())
    many = PGD("max", 0.08, 3, restarts=4).attack(model, x, y, generator())
    assert bool((many.margin <= one.margin + 1e-9).all())


def test_on_an_affine_classifier_every_attack_finds_the_exact_worst_margin():
    # a linear network on images far from the sides of the box: the worst case is known
    torch.manual_seed(0)
    head = nn.Linear(16, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), head)
    x = 0.4 + 0.2 * torch.rand(10, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        clean = model(x)
    y = clean.argmax(1)
    slope = (head.weight[0] - head.weight[1]).detach()
    margin = margins(clean, y)
    eps = 0.01
    expected = margin - eps * slope.abs().sum()
    assert bool((expected > 0).all())  # nobody is broken, so the search does not end early
    for attack in (FGSM(eps), PGD("max", eps, 10)):
        found = attack.attack(model, x, y, generator()).margin
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found = PGD("2", eps, 10, random_start=False).attack(model, x, y, generator()).margin
    torch.testing.assert_close(found, margin - eps * slope.norm(), atol=1e-9, rtol=0)


@final
@dataclass(frozen=True)
class Nothing(Gradient):
    """A truncated gradient at its worst: none at all."""

    def attach(self, problem):
        return problem.run()


def test_attacks_see_through_layers_trained_with_a_truncated_gradient():
    masked = network(gradient=Nothing(), eval_stopping=Stopping(rtol=1e-1))
    model = network()
    x, y = images(model)
    attack = PGD("max", 0.1, 8)
    honest = attack.attack(model, x, y, generator())
    through = attack.attack(masked, x, y, generator())
    assert torch.equal(honest.inputs, through.inputs)


def test_the_model_is_left_as_it_was_even_after_an_error():
    gradient, stopping = Implicit(max_evaluations=77), Stopping(rtol=1e-3)
    model = network(gradient=gradient, eval_stopping=stopping, on_failure="warn").train()
    layer = model[1]
    modes = []

    def stop():
        with exact_layers(model):
            modes.append(layer.training)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert modes == [False]
    assert model.training
    assert layer.training
    assert (layer.gradient, layer.eval_stopping, layer.on_failure) == (gradient, stopping, "warn")
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def expansive(dtype=torch.float64):
    """Plain iteration of ``z = relu(A z + ...)`` that diverges where the input is bright."""
    model = network(dtype=dtype, solver=Picard())
    with torch.no_grad():
        model[1].cell.T.fill_(0.0)
        model[1].cell.damping.fill_(30.0)  # a_ii = -29.5: the raw map is no contraction
    return model


def test_failed_solves_are_flagged_and_never_count_as_success():
    model = expansive()
    x = torch.rand(6, 1, SIDE, SIDE, generator=generator(), dtype=torch.float64)
    y = torch.zeros(6, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = PGD("max", 0.1, 2).attack(model, x, y, generator())
    assert result.unsolved.all()
    assert not result.success.any()
    assert bool(result.margin.isnan().all())
    assert result.accuracy == 0.0  # no answer is not a right answer either


class Hole(nn.Module):
    """NaN as soon as a pixel leaves the image it was made for."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x):
        bad = (x != self.x[: len(x)]).flatten(1).any(1)
        logits = torch.stack([x.flatten(1).sum(1) + 1, 0 * x.flatten(1).sum(1)], 1)
        return torch.where(bad[:, None], torch.nan, logits)


def test_points_that_give_nan_do_not_break_a_sample():
    x = torch.rand(5, 1, SIDE, SIDE, generator=generator(), dtype=torch.float64)
    result = PGD("max", 0.1, 3).attack(Hole(x), x, torch.zeros(5, dtype=torch.long), generator())
    assert result.accuracy == 1.0
    assert result.unsolved.all()
    assert torch.equal(result.inputs, x)


def test_an_empty_batch_and_a_batch_of_one():
    model = network()
    x, y = images(model)
    attack = PGD("max", 0.1, 2)
    assert attack.attack(model, x[:0], y[:0]).margin.shape == (0,)
    assert attack.attack(model, x[:1], y[:1], generator()).margin.shape == (1,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PGD("max", -0.1), "`eps`"),
        (lambda: PGD("max", float("nan")), "`eps`"),
        (lambda: PGD("max", 0.1, 0), "`steps`"),
        (lambda: PGD("max", 0.1, restarts=0), "`restarts`"),
        (lambda: PGD("max", 0.1, step_size=-1.0), "`step_size`"),
        (lambda: PGD("1", 0.1), "`norm`"),
        (lambda: FGSM(0.1, loss="mse"), "`loss`"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_bad_images_are_refused():
    model = network()
    x, y = images(model)
    with pytest.raises(ShapeError, match=r"\[0, 1\].*"):
        FGSM(0.1).attack(model, 2 * x, y)
    with pytest.raises(ShapeError, match="`y`"):
        FGSM(0.1).attack(model, x, y[:-1])
    with pytest.raises(ShapeError, match="nan"):
        FGSM(0.1).attack(model, x * torch.nan, y)
    with pytest.raises(ShapeError, match="uint8"):
        FGSM(0.1).attack(model, (255 * x).to(torch.uint8), y)


@pytest.mark.parametrize("norm", ["max", "2"])
def test_every_sample_may_have_its_own_radius(norm):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.rand(5, 6), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        model[2].bias[0] += 3  # nothing breaks: every sample goes all the way
    radius = torch.tensor([0.0, 0.01, 0.1, 0.3, 0.7])
    attack = PGD(norm, 0.5, 10, random_start=False)
    together = attack.attack(model, x, y, radius=radius)
    for k, r in enumerate(radius.tolist()):
        alone = PGD(norm, r, 10, random_start=False).attack(model, x[k : k + 1], y[k : k + 1])
        torch.testing.assert_close(together.inputs[k], alone.inputs[0], atol=1e-3, rtol=0)
        moved = together.inputs[k] - x[k]
        size = moved.abs().max() if norm == "max" else moved.norm()
        assert float(size) <= r + 1e-6
        assert r == 0 or float(size) > 0.5 * r
    with pytest.raises(ShapeError, match="one radius an image"):
        attack.attack(model, x, y, radius=radius[:2])
    with pytest.raises(ShapeError, match="one radius an image"):
        attack.attack(model, x, y, radius=-radius)
