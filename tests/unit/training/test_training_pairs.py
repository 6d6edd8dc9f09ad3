"""Adversarial pairs: a lower bound that is driven down, with a state that resumes."""

import copy

import pytest
import torch
from torch import nn

from wellposed.cells.nemon import NemonCell
from wellposed.certify import lipschitz
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.training import Recipe, fit
from wellposed.training.controller import Additive, Constant, TargetController
from wellposed.training.loop import _Epoch
from wellposed.training.pairs import PairQuotient, noisy_pairs
from wellposed.training.regulariser import Regulariser, WeightNorm, absolute_sum

UNIT = Box(torch.zeros(4), torch.ones(4))


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def points(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=dtype)


def pairs(count=6, region=UNIT, **options):
    return PairQuotient(*noisy_pairs(points(count), count), region=region, **options)


def quotient(model, pair):
    u, v = pair
    change = torch.linalg.vector_norm(model(u[None]) - model(v[None]))
    return change / torch.linalg.vector_norm(u - v)


def test_the_ascent_is_tau_times_the_quotient_times_its_gradient():
    model, term = net(), pairs(5, region=None, rate=0.5)
    start = term.points.clone()
    term.ascend(model)
    for before, after in zip(start, term.points, strict=True):
        leaf = before.clone().requires_grad_()
        value = quotient(model, leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        expected = before + 0.5 * value.detach() * slope
        grew = quotient(model, expected) > value
        assert torch.allclose(after, expected if grew else before, atol=1e-12)


def test_quotients_never_fall_for_a_fixed_network_and_rates_follow_success():
    model, term = net(1), pairs(8)
    last = torch.zeros(8, dtype=torch.float64)
    for _ in range(60):
        rates = term.rates.clone()
        term.ascend(model)
        assert bool((term.quotients >= last).all())
        ratio = term.rates / rates
        assert bool(((ratio - 1.3).abs() < 1e-9).logical_or((ratio - 1 / 1.3).abs() < 1e-9).all())
        last = term.quotients.clone()
    start = pairs(8)
    start.ascend(model)
    assert term.largest > 1.05 * start.largest


def test_pairs_stay_in_the_data_box_and_without_one_they_leave_it():
    model = net(2)
    boxed, free = pairs(8, rate=5.0), pairs(8, region=None, rate=5.0)
    for _ in range(30):
        boxed.ascend(model)
        free.ascend(model)
    assert 0 <= float(boxed.points.min()) <= float(boxed.points.max()) <= 1
    assert float(free.points.min()) < 0 or float(free.points.max()) > 1


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3, 1e-3])
def test_the_estimate_stays_below_the_certificate_at_every_step(scale):
    model = net(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    bound = lipschitz(model, norm_in="2", in_shape=(4,)).value
    term = pairs(8, rate=1.0)
    for _ in range(25):
        term.value(model)
        assert term.largest <= bound * (1 + 1e-9)


def test_what_is_logged_in_training_stays_below_the_certificate_of_those_weights():
    model, term = net(13), pairs(9, active=2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    stale = 0
    for _ in range(12):
        for _ in range(3):
            optimiser.zero_grad()
            term.value(model).backward()
            optimiser.step()
        bound = lipschitz(model, norm_in="2", in_shape=(4,)).value
        stale += term.largest > term.figures(model)["pair_quotient"]
        assert term.figures(model)["pair_quotient"] <= bound * (1 + 1e-12)
    assert stale  # quotients of earlier visits would have told of steeper weights


def test_a_linear_map_is_found_exactly():
    torch.manual_seed(4)
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    term = pairs(4, region=None, rate=0.5)
    for _ in range(300):
        term.ascend(model)
    exact = float(torch.linalg.matrix_norm(model.weight.detach(), ord=2))
    assert 0.999 * exact < term.largest <= exact * (1 + 1e-12)


def test_the_value_is_that_of_the_worst_pair_plain_and_squared():
    model = net(5)
    plain, squared = pairs(6, squared=False), pairs(6)
    a, b = plain.value(model), squared.value(model)
    worst = max(float(quotient(model, pair).detach()) for pair in squared.points)
    assert float(b.detach()) == pytest.approx(worst**2, rel=1e-10)
    assert float(a.detach()) == pytest.approx(worst, rel=1e-10)
    a.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model[0].parameters())
    assert squared.figures(model)["pair_quotient"] == pytest.approx(worst)


def test_only_the_active_pairs_move_in_turn():
    model, term = net(6), pairs(5, active=2)
    moved = []
    for _ in range(6):
        before = term.points.clone()
        rates = term.rates.clone()
        term.ascend(model)
        moved.append((term.rates != rates).nonzero()[:, 0].tolist())
        still = [k for k in range(5) if k not in moved[-1]]
        assert torch.equal(term.points[still], before[still])
    assert moved == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]


def test_points_that_coincide_count_as_zero_and_keep_gradients_finite():
    u = points(3)
    v = u.clone()
    v[2] += 0.1
    v[1] += 1e-9  # closer than rounding can tell
    for squared in (True, False):
        model, term = net(7), PairQuotient(u, v, squared=squared)
        value = term.value(model)
        value.backward()
        assert term.quotients[:2].tolist() == [0.0, 0.0]
        assert float(value.detach()) > 0
        assert all(bool(p.grad.isfinite().all()) for p in model[0].parameters())
    alone = PairQuotient(u[:1], u[:1], squared=False)
    value = alone.value(net(7))
    value.backward()
    assert float(value.detach()) == 0.0


def test_one_pair_and_none():
    model = net(8)
    one = pairs(1)
    assert float(one.value(model).detach()) > 0
    none = PairQuotient(torch.zeros(0, 4), torch.zeros(0, 4))
    assert float(none.value(model)) == 0
    assert none.figures(model) == {}
    assert none.largest == 0


def test_a_constant_function_moves_nothing():
    term = pairs(3)
    before = term.points.clone()
    value = term.value(nn.Linear(4, 2).double().apply(lambda m: nn.init.zeros_(m.weight)))
    assert float(value.detach()) == 0
    assert torch.equal(term.points, before)


def test_layers_that_are_random_in_training_are_still_here():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.double().train()
    running = model[1].running_mean.clone()
    first, second = pairs(4), pairs(4)
    a, b = first.value(model), second.value(model)
    assert torch.equal(a, b)
    assert torch.equal(model[1].running_mean, running)
    assert model[1].training
    assert model[2].training


def test_it_works_through_an_equilibrium_layer():
    torch.manual_seed(10)
    cell = NemonCell(4, 6, dtype=torch.float64)
    model = nn.Sequential(Equilibrium(cell), nn.Linear(6, 2, dtype=torch.float64))
    term = pairs(6, squared=False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    bound = lipschitz(model, norm_in="2", in_shape=(4,)).value
    for _ in range(10):
        term.ascend(model)
    first = term.largest
    assert first <= bound * (1 + 1e-3)  # solves stop at a tolerance
    for _ in range(40):
        optimiser.zero_grad()
        term.value(model).backward()
        optimiser.step()
    assert cell.inject.weight.grad is not None
    assert term.largest < 0.7 * first


def test_the_penalty_flattens_a_regression_and_a_large_one_makes_it_constant():
    """Acceptance check 11: weights 0, 1e-10, 1 and 10, started one from the next larger one."""
    # f(x) = max(|x| - 3, 0) / 2 from samples on three intervals
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.empty(34).uniform_(low, high, generator=generator)
                   for low, high in ((-4, -3), (-0.3, 0.3), (3, 4))])[:, None]  # fmt: skip
    y = (x.abs() - 3).clamp(min=0) / 2
    grid = torch.linspace(-4, 4, 201)[:, None]

    def start():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(),
                             nn.Linear(16, 1))  # fmt: skip

    def learn(model, weight, steps, rate=0.01):
        term = PairQuotient(x, x + 0.1 * torch.randn(x.shape, generator=generator), squared=True)
        optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (model(x) - y).square().mean()
            (loss if weight == 0 else loss + weight * term.value(model)).backward()
            optimiser.step()
        values = model(grid).detach()[:, 0]
        return float(values.diff().abs().sum()), float(values.max() - values.min())

    # a cold start at 1e-10 ends where one without the term does; what a small weight keeps is the
    # flattest of all fits, which the way down from a large one finds
    model = start()
    variation = [
        learn(model, weight, steps)[0]
        for weight, steps in ((0.0, 200), (10.0, 100), (1.0, 100), (1e-10, 200))
    ]
    none, most, much, trace = variation
    assert none > 1.05 * trace > 1.5 * much > 2 * most
    model = start()
    learn(model, 1e3, 150)
    assert learn(model, 1e3, 100, rate=1e-3)[1] < 1e-2


def test_the_pairs_are_drawn_from_a_seed():
    u, v = noisy_pairs(points(20), 7, noise=0.2, seed=3)
    again = noisy_pairs(points(20), 7, noise=0.2, seed=3)
    assert torch.equal(u, again[0])
    assert torch.equal(v, again[1])
    assert u.shape == (7, 4)
    assert 0 <= float((v - u).min()) <= float((v - u).max()) <= 0.2
    assert len(noisy_pairs(points(3), 7)[0]) == 3
    assert len(noisy_pairs(points(3), 0)[0]) == 0


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: PairQuotient(points(2), points(3)), ShapeError, "shapes"),
        (lambda: PairQuotient(torch.zeros(3), torch.zeros(3)), ShapeError, r"\(pairs, ...\)"),
        (lambda: PairQuotient(points(2).long(), points(2).long()), ShapeError, "floating"),
        (lambda: PairQuotient(points(2) / 0, points(2)), ConfigError, "infinite"),
        (lambda: pairs(rate=0.0), ConfigError, "`rate`"),
        (lambda: pairs(active=-1), ConfigError, "`active`"),
        (lambda: pairs(region=Box(torch.zeros(5), torch.ones(5))), ShapeError, "region"),
        (lambda: noisy_pairs(points(2), -1), ConfigError, "`count`"),
        (lambda: noisy_pairs(points(2), 1, noise=0.0), ConfigError, "`noise`"),
    ],
)
def test_what_is_wrong_is_said(make, error, text):
    with pytest.raises(error, match=text):
        make()


# --- in the loop ------------------------------------------------------------------------------


def regulariser(examples, **options):
    first, second = noisy_pairs(examples.inputs, 12)
    control = TargetController(0.5, first=0.01, move=Additive(0.02), warm_up=1)
    return Regulariser(PairQuotient(first, second, active=5, **options), control)


def test_a_killed_run_resumes_to_the_same_bits(make_model, examples, tmp_path, monkeypatch):
    recipe = Recipe(epochs=4, batch=16, lr=1e-2, checkpoint_steps=2)
    whole, kept = make_model(), regulariser(examples)
    rows = fit(whole, examples, recipe, tmp_path / "whole", regulariser=kept)
    original, taken = _Epoch.step, iter(range(1000))

    def dying(self, number):
        if next(taken) == 17:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(_Epoch, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), examples, recipe, tmp_path / "part", regulariser=regulariser(examples))
    monkeypatch.setattr(_Epoch, "step", original)
    again, fresh = make_model(), regulariser(examples)
    resumed = fit(again, examples, recipe, tmp_path / "part", regulariser=fresh, resume=True)
    for mine, theirs in ((whole, again), (kept, fresh)):
        a, b = mine.state_dict(), theirs.state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    for before, after in zip(rows, resumed, strict=True):
        for key in ("train_loss", "pair_quotient", "term_weight", "penalty"):
            assert after.get(key) == before.get(key)


def test_the_figures_of_an_epoch_tell_of_the_term(make_model, examples, tmp_path):
    recipe = Recipe(epochs=3, batch=16, lr=1e-2)
    rows = fit(make_model(), examples, recipe, tmp_path, regulariser=regulariser(examples))
    assert [row["term_weight"] for row in rows[:2]] == [0.0, 0.01]
    assert "penalty" not in rows[0]
    assert rows[1]["penalty"] > 0
    assert rows[2]["pair_quotient"] > 0


def test_weight_norm_and_its_gradient_is_weight_decay():
    model = net(11)
    term = WeightNorm()
    term.value(model).backward()
    assert torch.allclose(model[0].weight.grad, model[0].weight)
    assert model[0].bias.grad is None
    assert float(Regulariser(term, Constant(2.0)).extra(model).detach()) == pytest.approx(
        float(sum(m.weight.detach().square().sum() for m in (model[0], model[2])))
    )
    assert Regulariser(term, Constant(1.0, warm_up=1)).extra(model) is None
    assert float(term.value(nn.ReLU())) == 0


def test_the_sum_of_absolute_weights_pulls_at_every_weight():
    model = net(13)
    absolute_sum(model).backward()
    for layer in (model[0], model[2]):
        assert torch.equal(layer.weight.grad, layer.weight.detach().sign())
        assert layer.bias.grad is None
    found = float(absolute_sum(model).detach())
    assert found == pytest.approx(
        float(sum(m.weight.detach().abs().sum() for m in (model[0], model[2])))
    )
    model[0].weight.requires_grad_(False)  # what is not trained does not count
    assert float(absolute_sum(model).detach()) == pytest.approx(
        float(model[2].weight.detach().abs().sum())
    )
    assert float(absolute_sum(nn.ReLU())) == 0


def test_copies_carry_the_state():
    model, term = net(12), pairs(4)
    for _ in range(3):
        term.value(model)
    other = copy.deepcopy(term)
    for _ in range(3):
        assert torch.equal(term.value(model), other.value(model))
    assert torch.equal(term.points, other.points)
