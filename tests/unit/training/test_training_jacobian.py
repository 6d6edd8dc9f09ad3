"""Jacobian regularisation as a loss: schedules, frequencies, and what it does to a network."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.errors import ConfigError
from wellposed.experiments.config import parse
from wellposed.experiments.penalties import JacobianTerm, PenaltyTerm, make_penalty, penalised
from wellposed.nn.jacobian import jacobian_penalty, visited
from wellposed.training import CrossEntropy, Examples, Recipe, fit
from wellposed.training.certified import Ramp
from wellposed.training.jacobian import Every, JacobianLoss, Sometimes


class Squash(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def network(seed=0):
    torch.manual_seed(seed)
    layer = wp.Equilibrium(wp.FreeCell(Squash(8)), on_failure="ignore")
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3))


def task():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return Examples(
        x, (x @ torch.randn(4, 3, generator=torch.Generator().manual_seed(1))).argmax(1)
    )


def size(model):
    with torch.no_grad(), visited(model) as visits:
        model(task().inputs)
        return float(jacobian_penalty(visits, probes=50))


def test_training_with_it_shrinks_the_jacobian(tmp_path):
    recipe = Recipe(epochs=10, batch=20, lr=2e-2)
    sizes = {}
    for weight in (0.0, 3.0):
        model = network()
        loss = JacobianLoss(CrossEntropy(), Ramp(weight, weight))
        fit(model, task(), recipe, tmp_path / str(weight), objective=loss)
        sizes[weight] = size(model.eval())
    assert sizes[3.0] < 0.5 * sizes[0.0]


def test_a_weight_of_zero_is_the_base_loss_bit_by_bit():
    model, data = network(), task()
    base = CrossEntropy().loss(model, data.inputs, data.labels, 0.0)[0]
    state = torch.get_rng_state()
    loss = JacobianLoss(CrossEntropy(), Ramp(0.0, 2.0, 0.5, 1.0))
    assert torch.equal(loss.loss(model, data.inputs, data.labels, 0.25)[0], base)
    assert torch.equal(torch.get_rng_state(), state)
    assert loss.loss(model, data.inputs, data.labels, 0.9)[0] > base


def test_frequencies():
    assert [Every(3, 9).now(step / 9) for step in range(9)] == [True, False, False] * 3
    torch.manual_seed(0)
    assert 250 < sum(Sometimes(0.3).now(0.0) for _ in range(1000)) < 350
    assert all(Sometimes().now(0.5) for _ in range(10))
    for make in (lambda: Every(0, 9), lambda: Every(3, 0), lambda: Sometimes(0.0),
                 lambda: Sometimes(1.5), lambda: JacobianLoss(CrossEntropy(), Ramp(-1.0, 0.0)),
                 lambda: JacobianLoss(CrossEntropy(), Ramp(1.0, 1.0), probes=0)):  # fmt: skip
        with pytest.raises(ConfigError):
            make()


def test_the_section():
    variant = parse({"penalty": {"kind": "jacobian", "weight": 2.0, "every": 4}}).resolved()
    term = next(iter(variant.values())).penalty
    assert isinstance(term, JacobianTerm)
    assert make_penalty(term, (3,)) is None
    loss = penalised(None, term, Recipe(epochs=2, batch=10), 95)
    assert loss == JacobianLoss(CrossEntropy(), Ramp(0.0, 2.0, 0.0, 0.0), Every(4, 20))
    assert loss.weight(0.0) == 2.0
    plain = parse({"penalty": {"weight": 0.5}}).penalty
    assert plain == PenaltyTerm(weight=0.5)
    assert penalised(None, plain, Recipe(), 10) is None
    assert penalised(None, JacobianTerm(weight=0.0), Recipe(), 10) is None


@pytest.mark.parametrize(
    ("term", "match"),
    [
        ({"begin": 0.5, "end": 0.2}, "begin <= end"),
        ({"every": 2, "probability": 0.5}, "only one of them"),
        ({"weight": -1.0}, "weight"),
        ({"probability": 0.0}, "probability"),
    ],
)
def test_bad_sections_are_refused(term, match):
    with pytest.raises(ConfigError, match=match):
        parse({"penalty": {"kind": "jacobian", **term}})
