import pytest
import torch
from made_up_table import SIGNS, register
from torch import nn
from torch.nn.functional import mse_loss

from wellposed.data.tabular import load_table
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.experiments.tables.protocol import (
    Protocol,
    cross_validated,
    folds,
    fronts,
    honest,
    refit,
)
from wellposed.experiments.tables.task import Task, area
from wellposed.nn.vector_norm import vector_norm_of
from wellposed.training.fronts import member
from wellposed.training.side_by_side import fit_side_by_side
from wellposed.training.table_recipe import TableRecipe

RECIPES = (
    TableRecipe(hidden=(4,), epochs=10, lr=2e-2, batch=32, average=0.9),
    TableRecipe(hidden=(4, 4), epochs=20, lr=5e-2, cosine=True, lipschitz=2.0),
)


@pytest.fixture
def tasks(tmp_path, monkeypatch, request):
    register(monkeypatch, tmp_path, binary=getattr(request, "param", False))
    return [Task(load_table("made_up", seed=seed)) for seed in range(2)]


# score, held score, recipe and epochs of each task, as the program said from which this one comes
@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (False, [(21.514326, 74.760864, 0, 10), (17.809343, 36.606674, 0, 10)]),
        (True, [(0.875, 0.866667, 1, 20), (1.0, 0.816667, 1, 20)]),
    ],
    indirect=["tasks"],
)
def test_recorded_outcomes(tasks, expected):
    for outcome, (score, held, recipe, epochs) in zip(
        honest(RECIPES, tasks), expected, strict=True
    ):
        assert (outcome.recipe, outcome.epochs) == (recipe, epochs)
        assert outcome.score == pytest.approx(score, rel=1e-3)
        assert outcome.held == pytest.approx(held, rel=1e-3)


def test_folds_hold_out_every_row_once():
    found = folds(11, 3)
    assert found[4][1].tolist() == [8, 1]
    assert found[0][0].tolist() == [6, 3, 4, 7, 0, 2, 8, 1, 9]
    held = torch.cat([rows for _, rows in found])
    assert len(held) == len(held.unique()) == 10
    assert all(set(a.tolist()) | set(b.tolist()) == set(range(11)) for a, b in found)
    with pytest.raises(ConfigError, match="at most the 2 rows"):
        folds(2, 0, 3)


def one_by_one(recipe, signs, x, y, seed):
    """What the batched training does, for one network and in a plain loop."""
    torch.manual_seed(seed)
    net = member(recipe, signs)
    optimiser = torch.optim.Adam(net.parameters(), recipe.lr)
    for _ in range(recipe.epochs):
        for rows in torch.rand(1, len(x)).argsort(1)[0].split(recipe.batch or len(x)):
            optimiser.zero_grad()
            mse_loss(net(x[rows]).squeeze(-1), y[rows]).backward()
            optimiser.step()
            with torch.no_grad():
                for layer in net.modules():
                    norm = vector_norm_of(layer)
                    if norm is not None:
                        raw = layer.parametrizations.weight.original
                        raw.copy_(norm(raw))
    return net


def test_side_by_side_is_one_by_one(tasks):
    recipe = TableRecipe(hidden=(4,), epochs=5, lr=2e-2, batch=16)
    (ready,), signs = fronts(recipe, tasks[:1])
    x, y = ready(tasks[0].x.float()), tasks[0].y
    fitted = fit_side_by_side(recipe, signs, x[None], y[None], [x], loss=mse_loss, seed=7)
    plain = one_by_one(recipe, signs, x, y, 7)
    with torch.no_grad():
        torch.testing.assert_close(fitted.said[0][-1, 0], plain(x).squeeze(-1))
        torch.testing.assert_close(fitted.networks[0](x), plain(x))


def test_the_folds_are_scored_as_written(tasks):
    """Squared error over all held-out rows of five networks, in units of the target."""
    recipe, task, protocol = RECIPES[0], tasks[0], Protocol(look=5)
    (found,) = cross_validated(recipe, [task], protocol, first=3, seed=9)
    (ready,), signs = fronts(recipe, [task])
    x, parts = ready(task.x.float()), folds(len(task.x), 3)
    fitted = fit_side_by_side(
        recipe,
        signs,
        torch.stack([x[kept] for kept, _ in parts]),
        torch.stack([task.y[kept] for kept, _ in parts]),
        [],
        loss=task.loss,
        seed=9,
        stops=[found.epochs] * 5,
    )
    with torch.no_grad():
        errors = [
            (task.std * (net(x[held]).squeeze(-1) - task.y[held])).square()
            for net, (_, held) in zip(fitted.networks, parts, strict=True)
        ]
    assert found.loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    assert found.score == found.loss
    assert found.epochs in (5, 10)


def test_refitting_means_the_starts(tasks):
    recipe = TableRecipe(hidden=(4,), epochs=4, knots=3)
    (net,) = refit(recipe, tasks[:1], [2], 3, seed=5)
    (ready,), signs = fronts(recipe, tasks[:1])
    x = ready(tasks[0].x.float())
    fitted = fit_side_by_side(
        recipe, signs, x.expand(3, -1, -1), tasks[0].y.expand(3, -1), [], loss=mse_loss, seed=5,
        stops=[2] * 3,
    )  # fmt: skip
    with torch.no_grad():
        mean = torch.stack([one(x) for one in fitted.networks]).mean(0)
        torch.testing.assert_close(net(tasks[0].x.float()), mean)


def test_a_seed_alone_does_not_depend_on_the_others(tasks):
    short = [TableRecipe(hidden=(4,), epochs=2)]
    protocol = Protocol(folds=2, starts=2, look=1)
    one, again, other = (
        honest(short, tasks[1:], protocol, first=seed)[0].said for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_order_that_is_not_proved_is_refused_before_the_test_part(tasks, monkeypatch):
    task = tasks[0]
    monkeypatch.setattr(task, "x_test", None)  # looking at it would fail otherwise
    wild = TableRecipe(hidden=(4,), epochs=2, lr=1e37)
    with pytest.raises(NotCertifiableError):
        honest([wild], [task], Protocol(folds=2, starts=1, look=1))


def test_tasks_with_other_pieces_are_refused(tasks):
    few = Task.__new__(Task)
    few.__dict__ = {**tasks[0].__dict__, "x": tasks[0].x.round()}
    with pytest.raises(ConfigError, match="knots = 0"):
        fronts(TableRecipe(hidden=(4,), knots=4), [tasks[0], few])


def test_outputs_are_put_into_the_units_of_the_target(tasks):
    task = tasks[0]
    recipe = TableRecipe(hidden=(4,), epochs=2)
    (net,) = refit(recipe, [task], [2], 2, seed=0)
    with torch.no_grad():
        said = net(task.x_test.float()).squeeze(-1)
        whole = task.in_units(net)(task.x_test.float()).squeeze(-1)
    torch.testing.assert_close(whole, task.std * said + task.mean)
    mse = task.scores(said)["test_mse"]
    assert mse == pytest.approx(float((whole - task.y_test).square().mean()), rel=1e-5)
    assert task.signs == SIGNS
    assert isinstance(net, nn.Sequential)


def test_area_counts_ties_half():
    said, y = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert area(said, y) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
