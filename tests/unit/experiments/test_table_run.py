import json
import signal
import tomllib

import pytest
import torch
from made_up_table import FEATURES, SIGNS, register

from wellposed.certify.order import order
from wellposed.cli import app
from wellposed.data.tabular import has_table
from wellposed.errors import AuditError
from wellposed.experiments.tables import TableWorkspace, load_table_config
from wellposed.experiments.tables import train as training
from wellposed.experiments.tables.response import audit
from wellposed.files.atomic import read_tensors
from wellposed.report.tables import write_table_report

TINY = """
seeds = [0, 1]

[table]
name = "made_up"

[protocol]
folds = 2
starts = 2
look = 1

[[recipes]]
hidden = [4]
epochs = 2
batch = 16

[[recipes]]
hidden = [4, 4]
epochs = 3
knots = 3
average = 0.5
"""
PARTS = {"weights.safetensors", "metrics.json", "choice.json", "proof.json", "response.json"}


def told(capsys, *words):
    code = app.status([str(word) for word in words])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    register(monkeypatch, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture
def binary(tiny, monkeypatch):
    register(monkeypatch, tiny / "data", binary=True)
    return tiny


def test_a_run_from_end_to_end(tiny, capsys):
    code, text = told(capsys, "run", "tiny.toml", "--record")
    assert code == 0, text
    assert "order: 4 signs proved in 2 networks" in text
    folder = tiny / "runs" / "tiny"
    for seed in (0, 1):
        assert {path.name for path in (folder / f"seed-{seed}").iterdir()} == PARTS
    assert list(json.loads((folder / "data.json").read_text())) == ["table.csv"]
    assert json.loads((folder / "environment.json").read_text())["record"] == "Environment"
    again = load_table_config(folder / "config.toml")
    assert again == load_table_config("tiny.toml")
    assert tomllib.loads(again.to_toml())["recipes"][1]["knots"] == 3

    proof = json.loads((folder / "seed-0" / "proof.json").read_text())
    assert [row["name"] for row in proof["features"]] == list(FEATURES)
    assert [row["asked"] for row in proof["features"]] == list(SIGNS)
    assert [proof["features"][k]["proved"] for k in (0, 2)] == [1, -1]
    slopes = [row["slope"] for row in proof["features"]]
    assert 0 < proof["lipschitz"][0]["value"] <= max(slopes) * (1 + 1e-6)

    result = json.loads((tiny / "results" / "tiny.json").read_text())
    assert list(result) == ["name", "command", "environment", "seeds", "metrics"]
    assert result["seeds"] == [0, 1]
    for value in result["metrics"].values():
        assert set(value) == {"mean", "std", "n"}
        assert value["n"] == 2
    assert result["metrics"]["signs_proved"]["mean"] == 2
    assert {"test_mse", "folds_mse", "lipschitz_1_to_max"} <= set(result["metrics"])


def test_the_weights_on_the_disk_are_the_network_that_was_scored(tiny, capsys):
    assert told(capsys, "run", "tiny.toml", "--seeds", "1")[0] == 0
    work = TableWorkspace.open(tiny / "runs" / "tiny")
    (trial,) = work.trials()
    network, digest = work.trained(trial)
    assert trial.read("proof")["weights"] == digest == trial.read("choice")["weights"]
    order(network, in_shape=(3,)).require(SIGNS)
    test = work.table(1).test
    with torch.no_grad():
        said = network(test.x.float()).squeeze(-1)
    mse = float((said - test.y).square().mean())
    assert trial.read("metrics")["test_mse"] == pytest.approx(mse, rel=1e-4)
    meta = read_tensors(trial.weights)[1]
    assert (meta["features"], meta["signs"]) == (list(FEATURES), list(SIGNS))


def test_finished_seeds_are_not_trained_again(tiny, capsys):
    assert told(capsys, "run", "tiny.toml", "--seeds", "0")[0] == 0
    path = tiny / "runs" / "tiny" / "seed-0" / "weights.safetensors"
    before, stamp = read_tensors(path)[0], path.stat().st_mtime_ns
    content = path.read_bytes()
    code, text = told(capsys, "run", "tiny.toml", "--resume")
    assert code == 0
    assert "tiny seed 0: trained already" in text
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, stamp)
    assert (tiny / "runs" / "tiny" / "seed-1" / "metrics.json").is_file()
    # from the start, a seed has the same bits whichever seeds are trained with it
    assert told(capsys, "run", "tiny.toml", "--out", "other")[0] == 0
    other = read_tensors(tiny / "other" / "tiny" / "seed-0" / "weights.safetensors")[0]
    assert other.keys() == before.keys()
    assert all(torch.equal(other[name], before[name]) for name in before)


def test_other_settings_do_not_pass_for_these(tiny, capsys):
    assert told(capsys, "run", "tiny.toml", "--seeds", "0")[0] == 0
    code, text = told(capsys, "run", "tiny.toml", "--resume", "--protocol.starts", "1")
    assert code == 2
    assert "another configuration" in text
    assert load_table_config("runs/tiny/config.toml").protocol.starts == 2


def test_ctrl_c_loses_the_seed_being_trained_only(tiny, capsys, monkeypatch):
    real = training.honest

    def interrupted(*words, first, tick, **more):
        if first == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*words, first=first, tick=tick, **more)

    monkeypatch.setattr(training, "honest", interrupted)
    code, text = told(capsys, "run", "tiny.toml")
    assert code == 130
    assert "tiny seed 1 was stopped" in text
    assert "--resume" in text
    assert "Traceback" not in text
    folder = tiny / "runs" / "tiny"
    kept = (folder / "seed-0" / "weights.safetensors").stat().st_mtime_ns
    assert not (folder / "seed-1" / "weights.safetensors").exists()
    monkeypatch.setattr(training, "honest", real)
    assert told(capsys, "run", "tiny.toml", "--resume")[0] == 0
    assert (folder / "seed-0" / "weights.safetensors").stat().st_mtime_ns == kept
    assert (folder / "seed-1" / "metrics.json").is_file()


def test_an_order_that_is_not_proved_fails_the_run(tiny, capsys):
    (tiny / "tiny.toml").write_text(TINY.replace("batch = 16", "lr = 1e37"))
    recipe = "--recipes=[{hidden=[4],epochs=2,lr=1e37}]"
    code, text = told(capsys, "run", "tiny.toml", recipe)
    assert code == 1
    assert "tiny seed 0: the signs of `dose` (rising), `weight` (falling) are not proved" in text
    assert "lower `lr`" in text
    assert not (tiny / "runs" / "tiny" / "seed-0" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("hidden = [4]", "hiden = [4]"), ["`recipes[0].hiden` is not a known key", "`hidden`"]),
        (("hidden = [4]", "hidden = [5]"), ["multiples of `group` = 2", "(5,)"]),
        (("knots = 3", "knots = 1"), ["`knots` must be 0 for none or at least 2"]),
        (("average = 0.5", "average = 1"), ["`recipes[1].average` is 1", "less than 1"]),
        (("folds = 2", "folds = 1"), ["`protocol.folds` is 1", "greater than or equal to 2"]),
        (("look = 1", "look = 3"), ["`recipes[0].epochs` is 2", "`protocol.look` = 3"]),
        (('name = "made_up"', 'name = "mad_up"'), ["no table `mad_up`", "did you mean `made_up`"]),
        (('name = "made_up"', "test = 1"), ["`table.name`", "required", "`table.test`"]),
        (("seeds = [0, 1]", "seeds = [1, 1]"), ["`seeds` must differ"]),
    ],
)
def test_what_is_wrong_with_a_configuration(tiny, capsys, change, parts):
    assert change[0] in TINY
    (tiny / "tiny.toml").write_text(TINY.replace(*change))
    code, text = told(capsys, "run", "tiny.toml")
    assert code == 2
    for part in parts:
        assert part in text
    assert not (tiny / "runs").exists()


def test_flags_of_a_table(tiny, capsys):
    code, text = told(capsys, "run", "tiny.toml", "--protocol.fold", "3")
    assert code == 2
    assert "no key `protocol.fold`" in text
    assert "`protocol.folds`" in text
    told(capsys, "run", "tiny.toml", "--folds", "3", "--seeds", "4", "--name", "thrice")
    found = load_table_config(tiny / "runs" / "thrice" / "config.toml")
    assert (found.protocol.folds, found.seeds) == (3, (4,))
    assert "--protocol.starts" in told(capsys, "fields")[1]


def test_data_that_cannot_be_used(tiny, capsys, monkeypatch):
    register(monkeypatch, tiny / "data", header=("age", "dose", "weight", "y"))
    code, text = told(capsys, "run", "tiny.toml")
    assert code == 2
    assert "order" in text
    assert "dose" in text
    register(monkeypatch, tiny / "data", known=False)
    code, text = told(capsys, "run", "tiny.toml")
    assert code == 2
    assert "is not the file it should be" in text
    monkeypatch.setattr("wellposed.data.tabular.search_folders", lambda folder: [tiny / "none"])
    code, text = told(capsys, "run", "tiny.toml")
    assert code == 2
    assert "needs the file" in text
    assert "nothing is downloaded" in text
    assert "Traceback" not in text
    assert not (tiny / "runs").exists()


def test_commands_that_are_for_images_say_so(tiny, capsys):
    assert told(capsys, "run", "tiny.toml", "--seeds", "0")[0] == 0
    folder = "runs/tiny"
    for words in (
        ("train", "tiny.toml"),
        ("certify", folder),
        ("attack", folder),
        ("verify", folder, "--eps", "0.1"),
        ("compare", folder, folder),
    ):
        code, text = told(capsys, *words)
        assert code == 2, words
        assert "is an experiment on a table" in text
        assert "`wellposed run CONFIG`" in text
    page = tiny / folder / "report.html"
    page.unlink()
    assert told(capsys, "report", folder)[0] == 0
    assert page.is_file()


def test_the_page(binary, capsys):
    assert told(capsys, "run", "tiny.toml")[0] == 0
    folder = binary / "runs" / "tiny"
    page = (folder / "report.html").read_text()
    assert "The accuracy on 16 test rows is" in page
    assert "The output rises in dose and falls in weight: proved" in page
    assert "Probability that the target is 1" in page
    assert page.count("<svg") >= 2
    assert "dose: rising" in page
    assert "weight: falling" in page
    assert "mean ± std" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    (folder / "seed-1" / "metrics.json").write_text("{")
    page = write_table_report(folder).read_text()
    assert "seed-1/metrics.json is damaged" in page
    assert "over one seed" in page


def test_a_curve_that_contradicts_its_proof_is_told():
    x, row = torch.linspace(0, 1, 5), {"name": "dose", "asked": 1, "slope": 1.0}
    audit("here", row, x, 0.5 * x)
    with pytest.raises(AuditError, match="against its proved sign"):
        audit("here", row, x, -0.5 * x)
    with pytest.raises(AuditError, match="steeper"):
        audit("here", row, x, 2 * x)


def test_the_synthetic_trigger(tmp_path, monkeypatch, capsys, request):
    if not has_table("toy_trigger"):
        pytest.skip("the table `toy_trigger` is absent: put it into a folder of $WELLPOSED_DATA")
    config = request.config.rootpath / "configs" / "monotone-toy.toml"
    flags = ["--seeds", "0", "--folds", "2", "--starts", "1", "--look", "1"]
    recipe = "--recipes=[{hidden=[4],epochs=1,batch=1024}]"
    code, text = told(capsys, "run", config, "--out", tmp_path, *flags, recipe)
    assert code == 0, text
    proof = json.loads((tmp_path / "monotone-toy" / "seed-0" / "proof.json").read_text())
    assert [row["proved"] for row in proof["features"]][:3] == [1, 1, 1]


def test_shipped_configurations_survive_a_round_trip(request):
    paths = sorted((request.config.rootpath / "configs").glob("monotone-*.toml"))
    assert len(paths) == 6
    for path in paths:
        config = load_table_config(path)
        assert config.name == path.stem
