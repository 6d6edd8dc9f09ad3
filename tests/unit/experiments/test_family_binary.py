"""Binary convolutional networks by configuration: builds, teachers, runs, refusals."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from wellposed.errors import CheckpointError, ConfigError
from wellposed.experiments.certificates import certify_model
from wellposed.experiments.config import load, parse
from wellposed.experiments.models import build_model, parameters
from wellposed.experiments.retention import RetentionTerm, retained, teacher_of
from wellposed.experiments.run import run
from wellposed.experiments.train import train
from wellposed.experiments.workspace import Workspace
from wellposed.files.atomic import read_tensors
from wellposed.nn.binary import BinaryConv2d, MeanSize, real_stem
from wellposed.nn.link import Link
from wellposed.nn.signs import EDE, STE, ReSTE
from wellposed.training.annealing import Annealed
from wellposed.training.certified import Ramp
from wellposed.training.retention import FeatureStrength, RetentionLoss, WeightStrength

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL = {"kind": "binary-conv", "channels": [2, 3, 3], "shrink": 4}


def network(**section):
    variant = next(iter(parse({"model": {"kind": "binary-conv", **section}}).resolved().values()))
    return build_model(variant, shape=(1, 8, 8), classes=3, mean=(0.5,), std=(0.5,)).eval()


def test_networks_are_built_and_run():
    net = network(channels=[4, 6, 6], estimator={"kind": "ede", "last": 2.0}, scale="mean")
    layers = [m for m in net.modules() if isinstance(m, BinaryConv2d)]
    assert [(m.weight.shape[:2], m.stride) for m in layers] == [((6, 4), 2), ((6, 6), 1)]
    assert {m.estimator for m in layers} == {EDE(last=2.0)}
    assert {m.scale for m in layers} == {MeanSize()}
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert len([m for m in net if isinstance(m, Link)]) == 2
    for section, expected in (({"kind": "ste"}, STE()), ({"kind": "reste"}, ReSTE())):
        layer = next(m for m in network(estimator=section).modules() if type(m) is BinaryConv2d)
        assert layer.estimator == expected


def test_the_teacher_is_the_same_network_in_full_precision():
    one, two = (network(shrink=2, channels=[2, 3, 3], binary=flag) for flag in (True, False))
    assert parameters(one) == parameters(two)
    assert not any(isinstance(m, BinaryConv2d) for m in two.modules())
    assert two(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    proved = certify_model(two, (1, 8, 8))
    assert not proved.refused
    refused = certify_model(one, (1, 8, 8)).refused
    assert set(refused) == {"max", "1", "2"}
    assert all("sign of its inputs" in why for why in refused.values())
    assert not certify_model(real_stem(one), (1, 8, 8)).refused


@pytest.mark.parametrize(
    "section",
    [
        {"channels": [4]},
        {"channels": [4, 0]},
        {"kernel": 2},
        {"shrink": 3},
        {"estimator": {"kind": "ede", "first": 0.0}},
        {"estimator": {"kind": "reste", "first": 2.0, "last": 1.0}},
        {"estimator": {"kind": "soft"}},
    ],
)
def test_bad_sections_are_refused(section):
    with pytest.raises(ConfigError):
        network(**section)


def test_the_penalty():
    content = {
        "penalty": {"kind": "retention", "teacher": "t", "weight": 0.2},
        "variants": {"a": {}, "t": {"penalty": {"kind": "lipschitz"}}},
    }
    term = parse(content).penalty
    assert isinstance(term, RetentionTerm)
    assert teacher_of(term) == "t"
    assert teacher_of(RetentionTerm(weight=0.0)) is None
    assert term.ramp == Ramp(0.2, 0.2, 0.0, 0.0)
    assert term.strength == FeatureStrength()
    assert isinstance(RetentionTerm(compare="weights").strength, WeightStrength)
    model, teacher = network(), network(binary=False)
    loss = retained(model, None, term, teacher, 0.1)
    assert isinstance(loss, Annealed)
    assert isinstance(loss.base, RetentionLoss)
    assert retained(nn.Linear(2, 2), None, term, None) is None


@pytest.mark.parametrize(
    ("penalty", "variants", "match"),
    [
        ({"teacher": "nobody"}, {"a": {}}, "'nobody'"),
        ({"teacher": "a"}, {"a": {}}, "no teacher itself"),
        ({}, {}, "'teacher'"),
        ({"begin": 0.9, "end": 0.1}, {}, "begin <= end"),
        ({"weight": -1.0}, {}, "weight"),
        ({"beta": 0.0}, {}, "beta"),
    ],
)
def test_bad_penalties_are_refused(penalty, variants, match):
    with pytest.raises(ConfigError, match=match):
        parse({"penalty": {"kind": "retention", **penalty}, "variants": variants})


def workspace(folder, **changes):
    content = {
        "name": "lcr",
        "data": {"name": "mnist", "train_limit": 200, "test_limit": 40},
        "model": SMALL,
        "training": {"epochs": 1, "batch": 50, **changes},
        "attacks": {"eps": [0.0, 0.1], "samples": 10, "steps": 2},
        "variants": {
            "lcr": {"penalty": {"kind": "retention", "weight": 0.1}},
            "teacher": {"model": {"binary": False}},
        },
    }
    return Workspace(parse(content), folder)


def test_a_run_trains_the_teacher_first_and_says_what_is_not_certified(tmp_path, capsys):
    work = workspace(tmp_path)
    page = run(work)
    assert page.is_file()
    told = capsys.readouterr().out
    assert told.index("teacher seed 0: test accuracy") < told.index("lcr seed 0: test accuracy")
    assert "takes the sign of its inputs" in told
    jobs = {job.name: job for job in work.jobs()}
    certificates = json.loads((jobs["lcr"].folder / "certificates.json").read_text())
    assert certificates == []
    assert json.loads((jobs["teacher"].folder / "certificates.json").read_text())
    # everything is there
    before = read_tensors(jobs["lcr"].folder / "weights.safetensors")[1]["stamp"]
    train(work, resume=True)
    assert "lcr seed 0: trained already" in capsys.readouterr().out
    # another teacher makes another student
    assert before == work.stamp(jobs["lcr"])
    other = workspace(tmp_path, lr=2e-3)
    moved = {job.name: job for job in other.jobs()}
    assert other.stamp(moved["lcr"]) != before
    assert work.teacher(jobs["lcr"]) == jobs["teacher"]
    assert work.teacher(jobs["teacher"]) is None


def test_a_student_without_its_teacher_is_an_error_that_says_so(tmp_path):
    work = workspace(tmp_path)
    job = next(job for job in work.jobs() if job.name == "teacher")
    with pytest.raises(CheckpointError, match="teacher seed 0 has not been trained"):
        work.trained(job)


SHIPPED = [("lcr-fashion", (1, 28, 28)), ("lcr-cifar10", (3, 32, 32))]


@pytest.mark.parametrize(("name", "shape"), SHIPPED)
def test_shipped_configurations(name, shape):
    variants = load(CONFIGS / f"{name}.toml").resolved()
    assert next(iter(variants)) == "lcr"
    for variant in variants.values():
        net = build_model(variant, shape=shape, classes=10, mean=(0.5,) * shape[0],
                          std=(0.3,) * shape[0])  # fmt: skip
        assert net(torch.rand(2, *shape)).shape == (2, 10)
        assert (teacher_of(variant.penalty) == "teacher") == (variant is variants["lcr"])
