"""The families of fixed point networks: sections, builds, and configurations that are shipped."""

from pathlib import Path

import pytest
import torch

import wellposed as wp
from wellposed.cells.contractive import ContractiveCell
from wellposed.cells.contractive_conv import ContractiveConv2d
from wellposed.certify import contraction
from wellposed.errors import ConfigError
from wellposed.experiments.certificates import certify_model
from wellposed.experiments.config import load, parse
from wellposed.experiments.models import build_model, parameters
from wellposed.experiments.summary import job_metrics
from wellposed.experiments.workspace import Job
from wellposed.gradients.random_depth import RandomDepth

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def network(**sections):
    variant = next(iter(parse(sections).resolved().values()))
    return build_model(variant, shape=(1, 8, 8), classes=3, mean=(0.5,), std=(0.5,)).eval()


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({"kind": "fpn", "states": 5, "dropout": 0.1}, ContractiveCell),
        ({"kind": "fpn-conv", "channels": 3, "dropout": 0.1}, ContractiveConv2d),
        ({"kind": "free-conv", "channels": 4, "groups": 2}, wp.FreeCell),
    ],
)
def test_networks_are_built_and_run(section, kind):
    net = network(model=section, solve={"gradient": "random-depth", "solver": "picard"})
    (layer,) = (part for part in net if isinstance(part, wp.Equilibrium))
    assert isinstance(layer.cell, kind)
    assert isinstance(layer.gradient, RandomDepth)
    layer.on_failure = "ignore"  # nothing makes an untrained free layer converge
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_the_factor_is_among_the_certificates():
    net = network(model={"kind": "fpn", "states": 5, "bound": 0.8})
    proved = certify_model(net, (1, 8, 8))
    factors = [record for record in proved.records if record.claim == "contraction"]
    assert [factor.value for factor in factors] == [contraction(net[2]).value]
    assert 0 < factors[0].value <= 0.8 * (1 + 1e-10)
    assert any(r.claim == "lipschitz" and r.norm_in == "2" for r in proved.records)


def test_the_factor_does_not_pass_for_a_lipschitz_constant(tmp_path):
    config = parse({"model": {"kind": "fpn", "states": 5, "bound": 0.8}})
    (variant,) = config.resolved().values()
    proved = certify_model(network(model={"kind": "fpn", "states": 5, "bound": 0.8}), (1, 8, 8))
    job = Job("fpn", variant, 0, tmp_path)
    job.write("certificates", [record.to_dict() for record in proved.records], "0")
    found = job_metrics(job)
    by_claim = {(r.claim, r.norm_in): r.value for r in proved.records}
    assert found["contraction_factor"] == by_claim["contraction", "2"]
    assert found["lipschitz_2"] == by_claim["lipschitz", "2"] != found["contraction_factor"]


def test_the_adjoint_of_a_free_layer_has_a_budget():
    net = network(model={"kind": "free-conv", "channels": 4}, solve={"max_evaluations": 17})
    (layer,) = (part for part in net if isinstance(part, wp.Equilibrium))
    assert layer.gradient == wp.Implicit(max_evaluations=17)
    assert layer.on_failure == "warn"


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "fpn", "bound": 1.0},
        {"kind": "fpn-conv", "pool": 3},
        {"kind": "free-conv", "channels": 6, "groups": 4},
        {"kind": "free-conv", "kernel": 2},
    ],
)
def test_bad_sections_are_refused(section):
    with pytest.raises(ConfigError):
        network(model=section)


def test_shipped_configurations_keep_to_their_size():
    for name, limit in (("fpn-conv-mnist", 60_000), ("fpn-mnist", 80_000), ("free-mnist", 20_000)):
        for variant in load(CONFIGS / f"{name}.toml").resolved().values():
            net = build_model(variant, shape=(1, 28, 28), classes=10, mean=(0.1,), std=(0.3,))
            assert parameters(net) <= limit
