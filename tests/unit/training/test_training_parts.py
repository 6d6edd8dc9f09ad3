from io import StringIO

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from wellposed.errors import CheckpointError
from wellposed.training import Recipe, accuracy
from wellposed.training.averaging import Average
from wellposed.training.data import Examples, order, shifted
from wellposed.training.optimisers import load_optimiser, make_optimiser, optimiser_tensors
from wellposed.training.progress import Display
from wellposed.training.schedules import learning_rate


def rates(**options):
    recipe = Recipe(lr=1.0, **options)
    return [learning_rate(recipe, step, 100, 10) for step in range(100)]


def test_schedules():
    assert set(rates(schedule="constant")) == {1.0}
    steps = rates(schedule="step", step_every=3, step_factor=0.5)
    assert steps[29] == 1.0
    assert steps[30] == 0.5
    assert steps[90] == 0.125
    cosine = rates(schedule="cosine", final_lr=0.1)
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.55)
    assert 0.1 < cosine[-1] < 0.101
    assert cosine == sorted(cosine, reverse=True)
    cycle = rates(schedule="one-cycle", warm_up=0.3)
    assert cycle[:30] == sorted(cycle[:30])
    assert cycle[30:] == sorted(cycle[30:], reverse=True)
    assert max(cycle) == 1.0
    assert rates(schedule="cosine", warm_up=0.1)[4] == pytest.approx(5 / 11)


@pytest.mark.parametrize(
    "bad", [{"lr": 0}, {"lr": float("nan")}, {"epochs": 0}, {"averaging": 1}, {"optimiser": "lion"}]
)
def test_recipe_refuses(bad):
    with pytest.raises(ValidationError):
        Recipe(**bad)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    first = order(0, 0, 50)
    assert torch.equal(first.sort().values, torch.arange(50))
    assert torch.equal(first, order(0, 0, 50))
    assert not torch.equal(first, order(0, 1, 50))
    assert not torch.equal(first, order(1, 0, 50))


def test_shift_moves_whole_images():
    image = torch.zeros(20, 2, 5, 5)
    image[:, :, 2, 2] = 1
    moved = shifted(image, 1, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert torch.equal(moved.sum((2, 3)), torch.ones(20, 2))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert float(moved[:, :, 1:4, 1:4].sum()) == 40
    places = {int(m[0].argmax()) for m in moved}
    assert len(places) > 4
    assert shifted(image, 0, torch.Generator()) is image


def test_average_is_the_moving_mean():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = Average(model, 0.5)
    value, mean = 0.0, 0.0
    for step in range(6):
        value += 1.0
        with torch.no_grad():
            model.weight.fill_(value)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
        average.update()
    with average.applied():
        assert model.weight.item() == pytest.approx(mean)
    assert model.weight.item() == 6.0
    average.put()
    assert model.weight.item() == pytest.approx(mean)


def test_decay_spares_vectors():
    optimiser = make_optimiser(nn.Linear(2, 3), Recipe(weight_decay=0.1))
    decays = {len(g["params"][0].shape): g["weight_decay"] for g in optimiser.param_groups}
    assert decays == {2: 0.1, 1: 0.0}


def test_memory_of_other_parameters_is_refused():
    small, large = nn.Linear(2, 3), nn.Linear(4, 3)
    optimiser = make_optimiser(small, Recipe())
    small(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    with pytest.raises(CheckpointError, match="does not fit"):
        load_optimiser(make_optimiser(large, Recipe()), optimiser_tensors(optimiser))


def test_accuracy_counts_nan_as_wrong_and_puts_the_mode_back():
    class Broken(nn.Module):
        def forward(self, x):
            out = x.flatten(1).clone()
            out[0] = torch.nan
            return out

    model = Broken().train()
    inputs = torch.eye(4).reshape(4, 1, 2, 2)
    assert accuracy(model, Examples(inputs, torch.arange(4))) == 0.75
    assert model.training


def test_display_writes_one_line_an_epoch_off_a_terminal():
    text = StringIO()
    console = Console(file=text, force_terminal=False, width=40)
    row = {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.9, "cpu_seconds": 1.0,
           "validation_accuracy": 0.8, "evaluations_mean": 5.0, "evaluations_max": 7.0}  # fmt: skip
    with Display("run", 2, 10, console=console) as display:
        assert not display.due
        display.epoch(row)
    assert text.getvalue().count("\n") == 1
    assert "validation 80.00 %" in text.getvalue()


def test_display_draws_a_bar_on_a_terminal():
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    with Display("run", 2, 10, console=console) as display:
        assert display.due
        display.step(0, 3, 1.25)
        assert not display.due
        display._bar.refresh()
    assert "loss 1.2500" in text.getvalue()
