"""The discrepancy principle."""

import pytest
import torch

from wellposed.errors import ConfigError
from wellposed.training.controller import Additive, Constant, Multiplicative, TargetController


def run(controller, values):
    found = []
    for value in values:
        found.append(controller.weight)
        controller.epoch_over({"train_accuracy": value})
    return [*found, controller.weight]


def test_the_weight_rises_above_the_target_and_falls_below_it():
    control = TargetController(0.9, first=0.1, move=Additive(0.05))
    assert run(control, [0.95, 0.95, 0.85, 0.9]) == pytest.approx([0.1, 0.15, 0.2, 0.15, 0.1])


def test_it_never_becomes_negative_and_stays_below_its_largest():
    control = TargetController(0.9, first=0.1, move=Additive(0.08))
    assert run(control, [0.5, 0.5, 0.5]) == pytest.approx([0.1, 0.02, 0.0, 0.0])
    capped = TargetController(0.5, first=1.0, move=Multiplicative(2.0), largest=3.0)
    assert run(capped, [0.9, 0.9, 0.1]) == pytest.approx([1.0, 2.0, 3.0, 1.5])


def test_the_warm_up_has_weight_zero_and_moves_nothing():
    control = TargetController(0.9, first=0.1, move=Additive(0.1), warm_up=2, every=2)
    # in the second epoch after the warm-up it moves for the first time
    assert run(control, [0.99] * 6) == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3])
    assert run(Constant(0.5, warm_up=1), [0.0, 1.0]) == [0.0, 0.5, 0.5]


def test_a_metric_that_is_no_number_moves_nothing():
    control = TargetController(0.9, first=0.1, move=Additive(0.1))
    assert run(control, [float("nan"), float("inf")]) == [0.1, 0.1, 0.1]


def test_another_metric_and_one_that_is_missing():
    control = TargetController(0.9, first=0.1, move=Additive(0.1), metric="validation_accuracy")
    control.epoch_over({"validation_accuracy": 0.95, "train_accuracy": 0.1})
    assert control.weight == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="no figure `validation_accuracy`") as caught:
        control.epoch_over({"train_accuracy": 0.1})
    assert "data.validation" in caught.value.hint


def test_it_goes_on_bit_by_bit_from_its_state():
    def fresh():
        return TargetController(0.9, first=0.1, move=Multiplicative(1.3), warm_up=1, every=2)

    values = [0.95, 0.99, 0.5, 0.95, 0.95, 0.1, 0.97]
    whole, first, second = fresh(), fresh(), fresh()
    run(whole, values)
    run(first, values[:3])
    second.load_state_dict(first.state_dict())
    run(second, values[3:])
    assert second.weight == whole.weight
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), second.buffers(), strict=True))


def test_a_tighter_target_ends_at_a_smaller_weight():
    # accuracy falls with the weight: the principle finds where it crosses the target
    def settle(target):
        control = TargetController(target, first=0.01, move=Multiplicative(1.2))
        for _ in range(200):
            control.epoch_over({"train_accuracy": 1 / (1 + control.weight)})
        return control.weight

    found = {target: settle(target) for target in (0.85, 0.90, 0.95)}
    assert found[0.95] < found[0.90] < found[0.85]
    for target, weight in found.items():
        assert abs(1 / (1 + weight) - target) < 0.03


@pytest.mark.parametrize(
    "make",
    [
        lambda: Additive(0.0),
        lambda: Multiplicative(1.0),
        lambda: Multiplicative(float("inf")),
        lambda: TargetController(float("nan"), first=0.1, move=Additive(0.1)),
        lambda: TargetController(0.9, first=-0.1, move=Additive(0.1)),
        lambda: TargetController(0.9, first=2.0, move=Additive(0.1), largest=1.0),
        lambda: TargetController(0.9, first=0.0, move=Multiplicative(2.0)),
        lambda: TargetController(0.9, first=0.1, move=Additive(0.1), warm_up=-1),
        lambda: TargetController(0.9, first=0.1, move=Additive(0.1), every=0),
        lambda: Constant(-1.0),
        lambda: Constant(float("nan")),
    ],
)
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(ConfigError, match=r"got|multiplicative"):
        make()
