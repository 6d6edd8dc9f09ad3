"""The section `robust`, the deep model, and certified accuracy of a tiny run."""

import json
import tomllib

import pytest
import torch
from torch import nn

from wellposed.data.records import Split
from wellposed.errors import AuditError, ConfigError
from wellposed.experiments import boxes, steps
from wellposed.experiments.boxes import certified_by_boxes
from wellposed.experiments.config import parse
from wellposed.experiments.models import build_model
from wellposed.experiments.robust import make_objective
from wellposed.experiments.sections import Attacks, Certified
from wellposed.experiments.summary import record, summarise
from wellposed.experiments.train import train
from wellposed.experiments.workspace import Workspace
from wellposed.training.certified import (
    ConvexMixLoss,
    CrownIntervalLoss,
    IntervalLoss,
    Ramp,
    SmallBoxLoss,
)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, None),
        ({"kind": "none"}, None),
        ({"eps": 0.2, "begin": 0.1, "end": 0.6},
         IntervalLoss(Ramp(0, 0.2, 0.1, 0.6), Ramp(0, 0.75, 0.1, 0.6))),
        ({"kind": "crown-interval", "beta": [0.9, 0.1], "begin": 0.0, "end": 1.0},
         CrownIntervalLoss(Ramp(0, 0.1), Ramp(0, 0.75), Ramp(0.9, 0.1))),
        ({"kind": "small-box", "part": 0.2, "steps": 3, "begin": 0.0, "end": 1.0},
         SmallBoxLoss(Ramp(0, 0.1), Ramp(0, 1.0), 0.2, 3)),
        ({"kind": "convex-mix", "alpha": 0.3, "begin": 0.0, "end": 1.0},
         ConvexMixLoss(Ramp(0, 0.1), Ramp(0, 0.3), 4)),
    ],
)  # fmt: skip
def test_sections_name_losses(section, expected):
    config = parse({"robust": section})
    assert make_objective(config.robust) == expected
    assert parse(tomllib.loads(config.to_toml())) == config


def test_a_variant_may_have_another_loss():
    config = parse(
        {"robust": {"eps": 0.1}, "variants": {"a": {}, "b": {"robust": {"kind": "none"}}}}
    )
    found = {name: v.robust.kind for name, v in config.resolved().items()}
    assert found == {"a": "interval", "b": "none"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"robust": {"begin": 0.6, "end": 0.5}}, "`robust.begin` is 0.6"),
        ({"robust": {"kind": "ibp"}}, "`robust.kind` is 'ibp'"),
        ({"robust": {"kapa": 0.5}}, "`robust.kapa` is not a known key"),
        ({"robust": {"kappa": 1.5}}, "`robust.kappa` is 1.5"),
        ({"certified": {"eps": [0.1, 0.1]}}, "different radii"),
        ({"certified": {"eps": [-0.1]}}, "none negative"),
    ],
)
def test_what_is_wrong(content, part):
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert part in str(caught.value)


def built(model, **robust):
    (variant,) = parse({"model": model, "robust": robust}).resolved().values()
    return build_model(variant, shape=(1, 28, 28), classes=10, mean=(0.1,), std=(0.3,), seed=1)


def test_the_deep_model():
    model = built({"kind": "nemon-deep", "channels": [4, 6], "states": 12})
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == [4, 6]
    assert model[-2].cell.n_in == 6 * 7 * 7
    with pytest.raises(ConfigError, match="leave nothing"):
        built({"kind": "nemon-deep", "channels": [2] * 6})


def test_robust_runs_start_with_interval_weights():
    plain, robust = built({"states": 20}), built({"states": 20}, eps=0.1)
    assert float(robust[-2].cell.inject.bias.detach().abs().max()) == 0
    assert float(plain[-2].cell.inject.bias.detach().abs().max()) > 0
    same = built({"states": 20}, eps=0.1, initialise=False)
    for p, q in zip(plain.parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q)


def test_older_networks_keep_their_digest(tmp_path):
    def stamp(content):
        work = Workspace(parse({"data": {"name": "mnist_mini"}, **content}), tmp_path)
        return work.stamp(next(work.jobs()))

    assert stamp({}) == stamp({"robust": {"kind": "none"}})
    assert stamp({}) != stamp({"robust": {"eps": 0.1}})
    assert stamp({"robust": {"eps": 0.1}}) != stamp({"robust": {"eps": 0.2}})


def test_a_tiny_run_records_what_is_certified(tmp_path):
    config = parse(
        {
            "name": "tiny",
            "data": {"name": "mnist_mini", "train_limit": 300, "test_limit": 60},
            "model": {"states": 10},
            "robust": {"eps": 0.05, "begin": 0.1, "end": 0.3},
            "training": {"epochs": 4, "batch": 30, "lr": 1e-2, "clip": 10.0},
            "certified": {"eps": [0.05, 0.0]},
            "attacks": {"eps": [0.0, 0.05], "samples": 20, "steps": 3},
        }
    )
    work = Workspace(config, tmp_path / "tiny")
    train(work)
    steps.boxes(work)
    record(work, tmp_path, summarise(work))
    found = json.loads((tmp_path / "tiny.json").read_text())["metrics"]
    assert found["certified_accuracy"] == found["certified_accuracy_boxes@0.05"]
    assert 0.1 < found["certified_accuracy"] <= found["certified_accuracy_boxes@0"]
    assert found["certified_accuracy_boxes@0"] == pytest.approx(found["test_accuracy"], abs=0.02)
    written = json.loads((tmp_path / "tiny/nemon/seed-0/boxes.json").read_text())
    assert written["samples"] == 60
    assert written["attacked"] > 0


def test_a_certificate_that_an_attack_refutes_is_an_error(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    split = Split(torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8), torch.arange(30) % 2)

    def forged(model, region, labels):
        return torch.ones(len(labels), 2, dtype=torch.float64)

    section, attacks = Certified(eps=(0.3,), samples=25), Attacks(steps=3)
    honest = certified_by_boxes(model, split, section, attacks)
    assert honest["samples"] == 25
    monkeypatch.setattr(boxes, "box_margins", forged)
    with pytest.raises(AuditError, match=r"certified at eps = 0\.3"):
        certified_by_boxes(model, split, section, attacks)
