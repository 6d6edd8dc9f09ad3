import json
import os
import signal

import pytest
import torch

from wellposed.errors import (
    CheckpointError,
    ConfigError,
    NonConvergenceError,
    NonConvergenceWarning,
    ShapeError,
)
from wellposed.files.atomic import read_tensors
from wellposed.training import Examples, InterruptedRunError, Penalty, Recipe, accuracy, fit
from wellposed.training import objective as objective_module
from wellposed.training.loop import _Epoch


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_writes_one_line_an_epoch(make_model, examples, tmp_path):
    model = make_model(states=24, dropout=0.0)
    recipe = Recipe(epochs=8, batch=16, lr=1e-2)
    rows = fit(model, examples, recipe, tmp_path, validation=examples)
    assert accuracy(model, examples) > 0.95
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    counts = {"evaluations_mean", "evaluations_max", "adjoint_evaluations_mean"}
    assert {"train_accuracy", "lr", "cpu_seconds", "seconds"} | counts <= rows[0].keys()
    assert rows[0]["evaluations_mean"] >= 1


def test_two_runs_are_bit_identical_and_seeds_differ(make_model, examples, recipe, tmp_path):
    found = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = make_model()
        fit(model, examples, recipe, tmp_path / place, seed=seed)
        found.append(bits(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 4, 9, 20])
def test_a_run_that_dies_between_checkpoints_ends_with_the_same_bits(
    make_model, examples, recipe, tmp_path, monkeypatch, step
):
    recipe = recipe.model_copy(update={"checkpoint_steps": 3})
    whole = make_model()
    rows = fit(whole, examples, recipe, tmp_path / "whole", validation=examples)

    taken = iter(range(1000))
    original = _Epoch.step

    def dying(self, number):
        if next(taken) == step:
            raise _Killed
        return original(self, number)

    monkeypatch.setattr(_Epoch, "step", dying)
    with pytest.raises(_Killed):
        fit(make_model(), examples, recipe, tmp_path / "part", validation=examples)
    monkeypatch.setattr(_Epoch, "step", original)

    again = make_model()
    torch.manual_seed(99)
    resumed = fit(again, examples, recipe, tmp_path / "part", validation=examples, resume=True)
    assert same(bits(whole), bits(again))
    for before, after in zip(rows, resumed, strict=True):
        for key in ("train_loss", "train_accuracy", "validation_accuracy", "evaluations_mean"):
            assert after[key] == pytest.approx(before[key], rel=1e-12)


def test_resuming_a_finished_run_changes_nothing(make_model, examples, recipe, tmp_path):
    model = make_model()
    rows = fit(model, examples, recipe, tmp_path)
    again = make_model()
    assert fit(again, examples, recipe, tmp_path, resume=True) == rows
    assert same(bits(model), bits(again))


def test_interrupt_keeps_a_resumable_checkpoint(
    make_model, examples, recipe, tmp_path, monkeypatch
):
    whole = make_model()
    fit(whole, examples, recipe, tmp_path / "whole")
    original = _Epoch.step

    def interrupting(self, number):
        if (self.epoch, number) == (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number)

    monkeypatch.setattr(_Epoch, "step", interrupting)
    with pytest.raises(InterruptedRunError, match="step 3 of 7 in epoch 2") as caught:
        fit(make_model(), examples, recipe, tmp_path / "part")
    assert "--resume" in caught.value.hint
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(_Epoch, "step", original)
    again = make_model()
    fit(again, examples, recipe, tmp_path / "part", resume=True)
    assert same(bits(whole), bits(again))


def test_averages_are_validated_and_kept(make_model, examples, tmp_path):
    plain, averaged = make_model(dropout=0.0), make_model(dropout=0.0)
    recipe = Recipe(epochs=2, batch=16, lr=1e-2)
    fit(plain, examples, recipe, tmp_path / "a")
    fit(averaged, examples, recipe.model_copy(update={"averaging": 0.9}), tmp_path / "b")
    assert not same(bits(plain), bits(averaged))


def test_penalty_enters_the_loss(make_model, examples, tmp_path):
    def size(model):
        return model[2].cell.inject.weight.square().sum()

    free, held = make_model(), make_model()
    recipe = Recipe(epochs=4, batch=16, lr=1e-2)
    fit(free, examples, recipe, tmp_path / "a")
    rows = fit(held, examples, recipe, tmp_path / "b", penalty=Penalty(size, 1.0))
    with torch.no_grad():
        assert float(size(held)) < 0.5 * float(size(free))
    assert rows[0]["penalty"] > 0


def test_another_configuration_is_refused(make_model, examples, recipe, tmp_path):
    fit(make_model(), examples, recipe, tmp_path, stamp="one")
    with pytest.raises(CheckpointError, match=r"another configuration.*expected two"):
        fit(make_model(), examples, recipe, tmp_path, stamp="two", resume=True)


def test_another_architecture_is_refused_by_name(make_model, examples, recipe, tmp_path):
    fit(make_model(), examples, recipe, tmp_path)
    with pytest.raises(CheckpointError, match=r"another architecture.*cell\.T") as caught:
        fit(make_model(states=7), examples, recipe, tmp_path, resume=True)
    assert "(6, 6)" in str(caught.value)
    assert "(7, 7)" in str(caught.value)


def test_nothing_to_train_on(make_model, recipe, tmp_path):
    none = Examples(torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no training examples"):
        fit(make_model(), none, recipe, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    make_model, examples, recipe, tmp_path, monkeypatch
):
    original = objective_module.F.cross_entropy

    def broken(logits, labels, **options):
        return original(logits, labels, **options) * torch.nan

    monkeypatch.setattr(objective_module.F, "cross_entropy", broken)
    with (
        pytest.warns(NonConvergenceWarning, match="Adjoint"),
        pytest.raises(NonConvergenceError, match="Training diverged in epoch 1") as caught,
    ):
        fit(make_model(), examples, recipe, tmp_path)
    assert "training.lr" in caught.value.hint
    tensors, _ = read_tensors(tmp_path / "checkpoint" / "state.safetensors")
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_a_single_bad_step_at_the_end_of_an_epoch_is_seen(
    make_model, examples, recipe, tmp_path, monkeypatch
):
    original = _Epoch.step

    def broken(self, number):
        loss = original(self, number)
        if number == self.steps - 1:
            self.meter.add(loss * torch.inf, None, torch.zeros(1, 3), torch.zeros(1).long())
        return loss

    monkeypatch.setattr(_Epoch, "step", broken)
    with pytest.raises(NonConvergenceError, match="sum of the losses is inf"):
        fit(make_model(), examples, recipe, tmp_path)


def test_examples_are_checked():
    with pytest.raises(ShapeError, match="3 inputs and 2 labels"):
        Examples(torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="uint8"):
        Examples(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


def test_the_last_batch_may_hold_one_example(make_model, examples, tmp_path):
    part = Examples(examples.inputs[:33], examples.labels[:33])
    rows = fit(make_model(), part, Recipe(epochs=1, batch=32), tmp_path)
    assert len(rows) == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimiser_resumes(make_model, examples, recipe, tmp_path, monkeypatch, name):
    recipe = recipe.model_copy(update={"optimiser": name, "checkpoint_steps": 2})
    whole = make_model()
    fit(whole, examples, recipe, tmp_path / "whole")
    original = _Epoch.step
    taken = iter(range(1000))

    def dying(self, number):
        if next(taken) == 9:
            raise _Killed
        return original(self, number)

    monkeypatch.setattr(_Epoch, "step", dying)
    with pytest.raises(_Killed):
        fit(make_model(), examples, recipe, tmp_path / "part")
    monkeypatch.setattr(_Epoch, "step", original)
    again = make_model()
    fit(again, examples, recipe, tmp_path / "part", resume=True)
    assert same(bits(whole), bits(again))
