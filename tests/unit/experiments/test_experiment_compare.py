"""`wellposed compare` on tiny runs, and the steps of a run that it reads."""

import json
import shutil
from pathlib import Path
from runpy import run_path

import pytest
from verified_run import make_work

from wellposed.cli import app
from wellposed.errors import ConfigError, DataError
from wellposed.experiments import steps
from wellposed.experiments.alike import Alike
from wellposed.experiments.compare import Radii, compare
from wellposed.experiments.config import parse
from wellposed.experiments.workspace import Workspace
from wellposed.report.comparison import readable, render

FIGURES = {
    "test_accuracy": 0.75,
    "parameters": 100,
    "epoch_cpu_seconds": 0.1,
    "evaluations": 5.0,
}


def make_run(folder, kinds):
    work = make_work(folder, count=6, variants=kinds)
    config = work.config.model_dump()
    config["attacks"] = {"eps": (0.0, 0.05), "radii": (0.1,), "samples": 6, "steps": 3}
    config["certified"] = {"eps": (0.05,)}
    config["verified"] = {"eps": (0.05,), "radii": (0.1,), "samples": 6, "seconds": 0.2}
    work.config = parse({**config, "name": folder.name})
    work.prepare()
    for job in work.jobs():
        job.write("metrics", FIGURES, "")
        line = {"epoch": 1, "adjoint_evaluations_mean": 4.0}
        (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    steps.certify(work)
    steps.verify(work)
    for job in work.jobs():  # the digest that training would have noted
        made = job.read("steps")
        job.write("metrics", FIGURES, made["certificates"])
    return work


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return make_run(root / "one", ("nemon", "monotone")), make_run(root / "two", ("pcdeq",))


def folders(runs):
    return [work.folder for work in runs]


def test_a_run_verifies_what_its_configuration_asks_for(runs):
    entries = next(iter(runs[0].jobs())).read("verification")["entries"]
    assert [(e["norm"], e["eps"], e["samples"]) for e in entries] == [
        ("2", 0.1, 6),
        ("max", 0.05, 6),
    ]


def test_what_is_refused_is_kept_with_its_reason(runs):
    (job,) = runs[1].jobs()
    refused = job.read("refusals")
    assert refused["lipschitz"] == {}
    assert set(refused["verification"]) == {"max", "2"}
    assert "PositiveConcaveCell" in refused["verification"]["max"]


def test_norms_are_certified_one_by_one(runs):
    for job in runs[0].jobs():
        norms = {r["norm_in"] for r in job.read("certificates") if r["record"] == "Certificate"}
        refused = job.read("refusals")["lipschitz"]
        assert norms | set(refused) == {"max", "1", "2"}
        assert not norms & set(refused)


def test_rows_hold_figures_or_reasons(runs):
    content = compare(folders(runs))
    assert content["name"] == "compare-mnist"
    assert [row["label"] for row in content["rows"]] == ["one: nemon", "one: monotone", "two"]
    assert content["radii"] == {"max": [0.05], "2": [0.1]}
    for row in content["rows"]:
        assert not set(row["values"]) & set(row["missing"])
        keys = {*row["values"], *row["missing"]}
        assert {"test_accuracy", "adjoint_evaluations", "lipschitz_2", "certified_max@0.05",
                "attacked_max@0.05", "certified_2@0.1"} <= keys  # fmt: skip
        assert all(row["missing"].values())
    nemon, _, pcdeq = content["rows"]
    assert nemon["values"]["adjoint_evaluations"] == 4.0
    assert nemon["methods"]["certified_max@0.05"] == "verification of 6 images"
    assert nemon["values"]["certified_max@0.05"] <= nemon["values"]["attacked_max@0.05"]
    assert pcdeq["methods"]["certified_max@0.05"] == "boxes on 6 images"
    assert "PositiveConcaveCell" in pcdeq["missing"]["certified_2@0.1"]
    assert content["metrics"]["two/test_accuracy"] == 0.75


def test_asked_radii(runs):
    content = compare(folders(runs), radii=Radii([0.3], []))
    assert content["radii"] == {"max": [0.3], "2": []}
    assert "nobody asked" in content["rows"][0]["missing"]["certified_max@0.3"]


def test_the_page_says_every_figure_and_every_reason(runs):
    content = compare(folders(runs))
    content["rows"][0]["label"] = "<b>one</b>"
    page = render(content)
    assert "<b>one</b>" not in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "75.00 %" in page
    assert "verification of 6 images" in page
    assert "http" not in page
    for row in content["rows"]:
        for key in row["missing"]:
            assert readable(key) in page


def test_the_command_writes_page_and_results(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.html"
    words = ["compare", *map(str, folders(runs)), "--out", str(page), "--record", "--name", "made"]
    assert app.status(words) == 0
    assert page.stat().st_size > 1000
    content = json.loads((tmp_path / "results" / "made.json").read_text())
    assert content["name"] == "made"
    assert {"command", "environment", "seeds", "metrics", "rows"} <= set(content)
    assert app.status(["compare", str(tmp_path / "nothing")]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert app.status(["compare"]) == 2
    assert app.status(["compare", str(folders(runs)[0]), "--eps", "0"]) == 2


def test_the_table_of_choices_is_built_between_its_markers(runs, tmp_path):
    path = Path(__file__).resolve().parents[3] / "tools" / "results_table.py"
    choose = run_path(str(path))["choose"]
    page = tmp_path / "choosing.md"
    page.write_text("before\n<!-- compare:begin -->\nold\n<!-- compare:end -->\nafter\n")
    content = json.loads(json.dumps(compare(folders(runs))))
    for _ in range(2):  # the second time is as the first
        choose(page, [content])
        text = page.read_text()
        assert text.startswith("before\n<!-- compare:begin -->\n")
        assert text.endswith("<!-- compare:end -->\nafter\n")
        assert "old" not in text
        assert "| one: nemon | 75 % | 100 | 5 / 4 |" in text
        assert "PositiveConcaveCell" in text
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="markers"):
        choose(page, [content])


def changed(runs, tmp_path, name="other"):
    copy = tmp_path / name
    shutil.copytree(runs[1].folder, copy)
    return copy


def test_other_images_are_refused(runs, tmp_path):
    copy = changed(runs, tmp_path)
    (copy / "data.json").write_text(json.dumps({"x": "1" * 64}))
    with pytest.raises(DataError, match="different digests"):
        compare([runs[0].folder, copy])
    (copy / "data.json").unlink()
    with pytest.raises(ConfigError, match="which images it saw"):
        compare([runs[0].folder, copy])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "mnist"', 'name = "fashion-mnist"', "one is about mnist"),
        ("test_limit = 0", "test_limit = 7", "tested on different images"),
    ],
)
def test_other_data_sections_are_refused(runs, tmp_path, old, new, told):
    copy = changed(runs, tmp_path)
    path = copy / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=told):
        compare([runs[0].folder, copy])


def test_other_seeds_and_budgets_are_told(runs, tmp_path):
    copy = changed(runs, tmp_path)
    path = copy / "config.toml"
    path.write_text(path.read_text().replace("steps = 3", "steps = 4"))
    (warning,) = compare([runs[0].folder, copy])["warnings"]
    assert "steps of the attack differ: 3 in one; 4 in other" in warning


def test_unfinished_and_stale_runs_are_refused(runs, tmp_path):
    copy = changed(runs, tmp_path)
    place = copy / "pcdeq" / "seed-0"
    made = json.loads((place / "steps.json").read_text())
    (place / "steps.json").write_text(json.dumps({**made, "certificates": "old"}))
    with pytest.raises(ConfigError, match="about other weights"):
        compare([copy])
    (place / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="was not finished"):
        compare([copy])
    with pytest.raises(ConfigError, match="given twice"):
        compare([copy, copy])


def test_sections():
    with pytest.raises(ConfigError, match=r"verified\.radii"):
        parse({"verified": {"radii": (0.1, 0.1)}})
    with pytest.raises(ConfigError, match=r"attacks\.radii"):
        parse({"attacks": {"radii": (0.2, 0.1)}})


def copied(works, root, monkeypatch):
    """Copies of run folders which, opened, see the made-up images."""
    parts = {work.folder.name: work.parts for work in works}
    whole = Workspace.open

    def opened(folder, *rest):
        work = whole(folder, *rest)
        work.__dict__["parts"] = parts[folder.name]
        return work

    monkeypatch.setattr(Workspace, "open", staticmethod(opened))
    return [Path(shutil.copytree(w.folder, root / w.folder.name)) for w in works]


def test_networks_are_measured_alike(runs, tmp_path, monkeypatch, capsys):
    copies = copied(runs, tmp_path, monkeypatch)
    budget = Alike(samples=6, steps=3, seconds=0.2)
    radii = Radii([0.05], [0.1])
    content = compare(copies, radii=radii, alike=budget)
    rows = {row["label"]: row for row in content["rows"]}
    for row in rows.values():
        for at in ("max@0.05", "2@0.1"):
            attacked = row["values"][f"attacked_{at}"]
            if f"certified_{at}" in row["values"]:
                assert row["values"][f"certified_{at}"] <= attacked
            else:
                assert "PositiveConcaveCell" in row["missing"][f"certified_{at}"]
    methods = {label: row["methods"].get("certified_max@0.05") for label, row in rows.items()}
    assert methods["one: nemon"] == "verification"
    assert methods["two"] == "boxes"  # verification has no rule for it
    assert "6 test images, 3 gradient steps" in render(content)
    assert "withstand" in capsys.readouterr().out
    compare(copies, radii=radii, alike=budget)
    assert "withstand" not in capsys.readouterr().out  # what was measured is read
    compare(copies, radii=Radii([0.05], [0.1, 0.2]), alike=budget)
    assert capsys.readouterr().out.count("withstand") == 3  # and what was not is added
    compare(copies, radii=radii, alike=Alike(samples=6, steps=4, seconds=0.2))
    assert capsys.readouterr().out.count("withstand") == 6


def test_tiny_radii_are_proved_and_huge_ones_are_not(runs, tmp_path, monkeypatch):
    copies = copied(runs[:1], tmp_path, monkeypatch)
    content = compare(copies, radii=Radii([1e-6, 0.99], []), alike=Alike(samples=6, steps=5))
    for row in content["rows"]:
        values = row["values"]
        clean = values["attacked_max@1e-06"]
        assert values["certified_max@1e-06"] == clean
        assert values["certified_max@0.99"] <= values["attacked_max@0.99"] <= clean


@pytest.mark.parametrize("given", [{"samples": 0}, {"steps": 0}, {"seconds": -1.0}])
def test_common_budgets_are_checked(given):
    with pytest.raises(ConfigError, match="not one"):
        Alike(**given)
