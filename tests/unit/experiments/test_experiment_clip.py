"""The sections of CLIP, its families, a tiny run, and the margin test in the 2-norm."""

import json
import tomllib

import pytest
import torch
from torch import nn

from wellposed.attacks import PGD
from wellposed.cells.nemon import NemonCell
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.experiments.certified import certified_radii_2
from wellposed.experiments.config import load, parse
from wellposed.experiments.models import build_model
from wellposed.experiments.regularisers import make_regulariser
from wellposed.experiments.robust import make_objective
from wellposed.experiments.sections import Variant
from wellposed.experiments.train import train
from wellposed.experiments.workspace import Workspace
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.groupsort import GroupSort
from wellposed.nn.stiefel import stiefel
from wellposed.training.certified import Ramp
from wellposed.training.controller import Additive, Constant, Multiplicative, TargetController
from wellposed.training.gains import GainMarginLoss, LogitGain
from wellposed.training.pairs import PairQuotient
from wellposed.training.regulariser import WeightNorm

INPUTS = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def term(**section):
    config = parse({"penalty": section})
    assert parse(tomllib.loads(config.to_toml())) == config
    return make_regulariser(config.penalty, INPUTS, 3)


def test_pairs_with_a_target():
    found = term(kind="pairs", target=0.95, pairs=8, active=3, growth=1.5, warm_up=2, weight=0.1)
    assert isinstance(found.term, PairQuotient)
    assert (len(found.term), found.term.active, found.term.squared) == (8, 3, True)
    assert 0 <= float(found.term.points.min()) <= float(found.term.points.max()) <= 1
    control = found.control
    assert isinstance(control, TargetController)
    assert control.move == Multiplicative(1.5)
    assert (control.target, control.first, control.warm_up) == (0.95, 0.1, 2)
    assert term(kind="pairs", target=0.95, step=0.3).control.move == Additive(0.3)


def test_constant_weights_and_the_other_terms():
    found = term(kind="weights", weight=0.2)
    assert isinstance(found.term, WeightNorm)
    assert isinstance(found.control, Constant)
    assert found.control.weight == 0.2
    assert isinstance(term(kind="gain").term, LogitGain)
    assert term(kind="pairs", weight=0.0) is None
    assert term() is None
    assert term(kind="jacobian") is None


def test_the_certified_loss():
    section = parse({"robust": {"kind": "gain-margin", "radius": 0.4, "end": 0.3}}).robust
    assert make_objective(section) == GainMarginLoss(Ramp(0.0, 0.4, 0.0, 0.3))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"penalty": {"kind": "pears"}}, "`penalty.kind` is 'pears'"),
        ({"penalty": {"kind": "pairs", "growth": 0.5}}, "`penalty.growth`"),
        ({"penalty": {"kind": "pairs", "growth": 2, "target": 0.9, "weight": 0}}, "stays at 0"),
        ({"penalty": {"kind": "pairs", "step": 0}}, "`penalty.step` is 0"),
        ({"robust": {"kind": "gain-margin", "begin": 0.6, "end": 0.5}}, "`robust.begin`"),
        ({"model": {"kind": "perceptron", "widths": []}}, "`model.widths`"),
        ({"model": {"kind": "perceptron", "activation": "step"}}, "activation `step`"),
        ({"model": {"kind": "orthogonal", "widths": [5]}}, "multiples"),
    ],
)
def test_what_is_wrong(content, part):
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert part in caught.value.message


def build(section):
    return build_model(
        Variant.model_validate({"model": section}),
        shape=(1, 4, 4), classes=3, mean=(0.3,), std=(0.4,), seed=1,
    )  # fmt: skip


def test_families_of_any_depth():
    plain = build({"kind": "perceptron", "widths": [8, 6], "activation": "sigmoid"})
    kinds = [type(layer) for layer in plain[1:]]
    assert kinds == [nn.Flatten, nn.Linear, nn.Sigmoid, nn.Linear, nn.Sigmoid, nn.Linear]
    straight = build({"kind": "orthogonal", "widths": [8, 6], "group_size": 2})
    assert [type(straight[k]) for k in (3, 5)] == [GroupSort, GroupSort]
    for layer in (straight[2], straight[4], straight[6]):
        values = torch.linalg.svdvals(layer.weight.detach())
        assert torch.allclose(values, torch.ones_like(values), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e-3])
@pytest.mark.parametrize("kind", ["perceptron", "orthogonal"])
def test_no_attack_succeeds_within_a_certified_radius(kind, scale):
    model = build({"kind": kind, "widths": [8, 6]}).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    y[:10] = (y[:10] + 1) % 3
    radii = certified_radii_2(model, x, y, batch=17)
    assert radii[:10].tolist() == [0.0] * 10
    assert int((radii[10:] > 0).sum()) > 40
    sure = radii > 0
    found = PGD("2", 1.0, 30).attack(
        model, x[sure], y[sure], torch.Generator().manual_seed(0), radius=radii[sure]
    )
    assert found.accuracy == 1.0


def test_the_radius_is_tight_for_a_linear_network():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(5, 1, 2, 2)
    logits = model(x).detach().double()
    row = (model[1].weight[0] - model[1].weight[1]).detach().double()
    expected = (logits[:, 0] - logits[:, 1]).abs() / torch.linalg.vector_norm(row)
    radii = certified_radii_2(model, x, logits.argmax(1))
    assert torch.allclose(radii, expected, rtol=1e-5)
    assert bool((radii <= expected * (1 + 1e-6)).all())


def test_the_weights_of_a_parametrised_layer_are_measured_as_they_stand():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), stiefel(nn.Linear(4, 4)))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    plain[1].weight.data = model[1].weight.detach().clone()
    plain[1].bias.data = model[1].bias.detach().clone()
    x = torch.rand(9, 1, 2, 2)
    y = model(x).argmax(1)
    assert torch.equal(certified_radii_2(model, x, y), certified_radii_2(plain, x, y))
    assert model[1].weight.dtype == torch.float32


def test_equilibria_are_left_to_the_rule_that_knows_their_errors():
    model = nn.Sequential(nn.Flatten(), Equilibrium(NemonCell(4, 3)), nn.Linear(3, 2))
    with pytest.raises(NotCertifiableError, match="equilibrium"):
        certified_radii_2(model, torch.rand(2, 1, 2, 2), torch.zeros(2).long())


def test_a_tiny_run_and_its_resumption(tmp_path):
    content = {
        "name": "tiny",
        "data": {"name": "mnist_mini", "train_limit": 200, "test_limit": 30, "validation": 50},
        "training": {"epochs": 3, "batch": 50, "lr": 1e-2},
        "variants": {
            "clip": {
                "model": {"kind": "perceptron", "widths": [8], "activation": "sigmoid"},
                "penalty": {"kind": "pairs", "target": 0.3, "pairs": 10, "warm_up": 1,
                            "metric": "validation_accuracy"},
            },
            "orthogonal": {"model": {"kind": "orthogonal", "widths": [8]},
                           "robust": {"kind": "margin", "offset": 1.0}},
        },
    }  # fmt: skip
    work = Workspace(parse(content), tmp_path / "tiny")
    train(work)
    rows = [
        json.loads(line)
        for line in (tmp_path / "tiny/clip/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["term_weight"] for row in rows[:2]] == [0.0, 0.01]
    assert rows[2]["pair_quotient"] > 0
    before = (tmp_path / "tiny/clip/seed-0/weights.safetensors").read_bytes()
    train(work, resume=True)
    assert (tmp_path / "tiny/clip/seed-0/weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["clip-mnist", "clip-fashion", "orthogonal-mnist", "orthogonal-fashion"]
)
def test_the_configurations_are_valid(name, request):
    config = load(request.config.rootpath / "configs" / f"{name}.toml")
    assert config.resolved()
