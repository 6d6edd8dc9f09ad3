import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from wellposed.cells.nemon import NemonCell
from wellposed.certify import lipschitz_penalty
from wellposed.errors import ConfigError
from wellposed.experiments.config import flags, keys, load, parse
from wellposed.experiments.datasets import load_parts
from wellposed.experiments.models import build_model, parameters
from wellposed.experiments.parsing import merge
from wellposed.experiments.penalties import make_penalty
from wellposed.experiments.sections import Data
from wellposed.experiments.summary import over_seeds
from wellposed.experiments.tables.config import is_table_file
from wellposed.experiments.toml import to_toml
from wellposed.nn.equilibrium import Equilibrium

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.toml"))
CONFIGS = [path for path in SHIPPED if not is_table_file(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_survive_a_round_trip(path):
    config = load(path)
    assert config.name == path.stem
    assert parse(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"training": {"epoch": 3}}, ["`training.epoch` is not a known key (value 3)", "`epochs`"]),
        ({"model": {"kernl": 3}}, ["`model.kernl`", "`margin`"]),
        ({"model": {"kind": "cnn"}}, ["`model.kind` is 'cnn'", "'nemon-conv'"]),
        ({"model": {"margin": 1.0}}, ["`model.margin` is 1.0", "less than 1"]),
        ({"model": {"activation": "rely"}}, ["no activation `rely`", "`relu`"]),
        ({"data": {"validation": "many"}}, ["`data.validation` is 'many'", "integer"]),
        ({"variants": {"a": {"model": {"kind": "mlp", "bound": 3}}}},
         ["`variants.a.model.bound`", "`states`"]),
        ({"variants": {"a/b": {}}}, ["variants.a/b", "names a folder"]),
        ({"attacks": {"eps": [0.2, 0.1]}}, ["must be increasing", "(0.2, 0.1)"]),
        ({"seeds": [1, 1]}, ["`seeds` must differ"]),
        ({"seeds": []}, ["`seeds`"]),
        ({"name": "../x"}, ["`name` is '../x'"]),
        ({"training": {"lr": float("nan")}}, ["`training.lr` is nan", "finite"]),
        ({"fo": 1}, ["`fo` is not a known key"]),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_was_expected(content, parts):
    with pytest.raises(ConfigError) as caught:
        parse(content, "x.toml")
    text = str(caught.value)
    assert text.startswith("x.toml: ")
    for part in parts:
        assert part in text


def test_several_errors_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse({"training": {"epoch": 3, "batch": 0}})
    assert "`training.epoch`" in str(caught.value)
    assert "`training.batch` is 0" in str(caught.value)


def test_variants_inherit_and_another_kind_starts_anew():
    config = parse(
        {
            "model": {"states": 7, "margin": 0.5},
            "training": {"lr": 0.5},
            "variants": {
                "a": {"model": {"margin": 0.25}},
                "b": {"model": {"kind": "mlp"}, "training": {"epochs": 2}},
            },
        }
    )
    found = config.resolved()
    assert found["a"].model.states == 7
    assert found["a"].model.margin == 0.25
    assert found["b"].model.kind == "mlp"
    assert found["b"].model.states == 100
    assert (found["b"].training.lr, found["b"].training.epochs) == (0.5, 2)
    assert list(parse({}).resolved()) == ["nemon"]


def test_values_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        parse({}).seeds = (1,)


def test_flags():
    assert flags(["--epochs", "3", "--seeds=0,1", "--model.kind", "mlp", "--lr", "1e-2"]) == {
        "training": {"epochs": 3, "lr": 0.01},
        "seeds": [0, 1],
        "model": {"kind": "mlp"},
    }
    assert flags(["--attacks.eps", "[0.1, 0.2]"]) == {"attacks": {"eps": [0.1, 0.2]}}
    for tokens, message in [
        (["--kind", "mlp"], "could be `--model.kind` or "),
        (["epochs"], "not a flag"),
        (["--epochs"], "has no value"),
        (["--epoks", "1"], "no key `epoks`"),
    ]:
        with pytest.raises(ConfigError, match=message):
            flags(tokens)


def test_every_key_can_be_a_flag():
    for key in keys():
        if key != "variants":
            assert flags([f"--{key}", "1"])


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_toml_writer():
    content = {"a": True, "b": 1.5, "c": "x \"y\" é", "d": [1, 2], "e": None,
               "f": {"g h": {"i": 1e-9}}}  # fmt: skip
    back = tomllib.loads(to_toml(content))
    assert back == {k: v for k, v in content.items() if k != "e"}
    with pytest.raises(ConfigError, match="no form"):
        to_toml({"a": object()})


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ({"kind": "nemon", "states": 5}, 16 * 5 + 5 + 25 + 10 + 5 * 3 + 3),
        ({"kind": "infnorm", "states": 5}, 16 * 5 + 5 + 25 + 5 * 3 + 3),
        ({"kind": "mlp", "states": 5}, 16 * 5 + 5 + 5 * 3 + 3),
        ({"kind": "nemon-conv", "channels": 2, "pool": 2}, 18 + 36 + 2 * 3 + 2 * 3 + 3),
    ],
)
def test_networks_take_pixels(section, count):
    variant = parse({"model": section}).resolved()[section["kind"]]

    def make(seed):
        return build_model(variant, shape=(1, 4, 4), classes=3, mean=(0.5,), std=(0.25,), seed=seed)

    before = torch.get_rng_state()
    model = make(0).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert parameters(model) == count
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert model(images).shape == (2, 3)
    assert torch.equal(model(images), make(0).eval()(images))
    assert not torch.equal(model(images), make(1).eval()(images))


@pytest.mark.parametrize(("weight", "sparsity"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_the_penalty_of_the_weights(weight, sparsity):
    section = parse({"penalty": {"weight": weight, "sparsity": sparsity}}).penalty
    penalty = make_penalty(section, (1, 2, 2))
    if penalty is None:
        assert weight == sparsity == 0
        return
    cell = NemonCell(4, 3)
    model = nn.Sequential(nn.Flatten(), Equilibrium(cell), nn.Linear(3, 2))
    bound = float(lipschitz_penalty(model, in_shape=(1, 2, 2)).detach())
    total = sum(
        float(p.detach().abs().sum()) for p in (cell.inject.weight, cell.T, model[2].weight)
    )
    found = penalty.weight * penalty.function(model)
    assert float(found.detach()) == pytest.approx(weight * bound + sparsity * total, rel=1e-5)
    found.backward()
    assert cell.inject.weight.grad is not None


def test_pooling_that_would_drop_pixels_is_refused():
    variant = parse({"model": {"kind": "nemon-conv", "pool": 3}}).resolved()["nemon-conv"]
    with pytest.raises(ConfigError, match="does not divide"):
        build_model(variant, shape=(1, 28, 28), classes=3, mean=(0.0,), std=(1.0,))


def test_parts_are_limited_and_disjoint():
    parts = load_parts(Data(train_limit=300, validation=50, test_limit=20))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (250, 50, 20)
    kept = set(parts.train.index.tolist()) | set(parts.validation.index.tolist())
    assert kept == set(range(300))
    with pytest.raises(ConfigError, match="expected fewer than the 300"):
        load_parts(Data(train_limit=300, validation=300))


def test_over_seeds():
    assert over_seeds({"0": {"a": 1.0}}) == {"a": 1.0}
    found = over_seeds({"0": {"a": 1.0}, "1": {"a": 3.0, "b": 5.0}})
    assert found["a"] == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert found["b"] == {"mean": 5.0, "std": 0.0, "n": 1}
