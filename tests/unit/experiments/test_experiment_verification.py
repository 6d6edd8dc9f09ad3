import json
import os
import signal
from math import inf, nan

import pytest
import torch
from verified_run import make_work

from wellposed.core.records import Verdict
from wellposed.errors import AuditError, ConfigError, DataError, NotCertifiableError, ShapeError
from wellposed.experiments import deciding
from wellposed.experiments.counting import stacked, up_to, verified_metrics
from wellposed.experiments.ledger import Effort, Ledger, Line
from wellposed.experiments.question import Question, Subject
from wellposed.experiments.shards import Shard, shard_of
from wellposed.experiments.summary import job_metrics
from wellposed.experiments.train import train
from wellposed.experiments.verification import Choice, verify_run
from wellposed.training.interrupt import InterruptedRunError
from wellposed.verify import cascade
from wellposed.verify.verdicts import Tier

torch.set_num_threads(1)
ALL = Choice(samples=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def work(trained):
    """The trained run without verdicts."""
    job = next(trained.jobs())
    for path in job.folder.glob("verification/*/*"):
        path.unlink()
    (job.folder / "verification.json").unlink(missing_ok=True)
    return trained


@pytest.fixture
def asked(monkeypatch):
    """The batches that the cascade was asked about."""
    batches = []
    real = cascade.verify

    def verify(model, x, y, region, **options):
        batches.append((len(x), options["until"]))
        return real(model, x, y, region, **options)

    monkeypatch.setattr(cascade, "verify", verify)
    return batches


def content(work):
    return next(work.jobs()).read("verification")


def statuses(work, place=0):
    return content(work)["entries"][place]["verdicts"]["status"]


def test_verdicts_figures_and_pictures_of_a_run(work):
    verify_run(work, [Question(0.02), Question(0.2), Question(0.3, "2")], ALL)
    entries = content(work)["entries"]
    assert [(e["norm"], e["eps"]) for e in entries] == [("2", 0.3), ("max", 0.02), ("max", 0.2)]
    for e in entries:
        assert sum(e["counts"].values()) == e["samples"] == 12
        assert e["certified"] == pytest.approx(e["counts"]["verified"] / 12, abs=1e-5)
        assert max(e["certified_by"].values(), default=0) == e["certified"]
        assert e["certified"] <= e["not_falsified"] <= e["pgd"] <= e["clean"]
        assert e["verdicts"]["index"] == list(range(12))
        cards = e["gallery"]
        assert len(cards) == min(12, e["counts"]["falsified"])
        for card in cards:
            assert card["prediction"] != card["label"]
            assert card["distance"] <= e["eps"] + 1e-6
            assert card["witness"].startswith("data:image/png;base64,")
    near, far = entries[1:]
    assert near["counts"]["verified"] > 0
    assert far["counts"]["falsified"] > 0
    metrics = job_metrics(next(work.jobs()))
    assert metrics["certified_accuracy@0.02"] == near["certified"]
    assert metrics["certified_accuracy_2norm@0.3"] == entries[0]["certified"]
    assert metrics["certified_accuracy_boxes@0.02"] <= metrics["certified_accuracy@0.02"]
    assert metrics["seconds_per_image@0.2"] > 0
    assert metrics["pgd_accuracy@0.2"] == far["pgd"]


def test_a_second_run_asks_nothing_and_more_images_only_what_is_new(work, asked):
    verify_run(work, [Question(0.1)], Choice(samples=7))
    first = statuses(work)
    asked.clear()
    verify_run(work, [Question(0.1)], Choice(samples=7))
    assert asked == []
    verify_run(work, [Question(0.1)], ALL)
    assert asked[0] == (5, Tier.TIGHTENED)
    assert statuses(work)[:7] == first
    asked.clear()
    verify_run(work, [Question(0.1)], Choice(samples=0, again=True))
    assert asked[0] == (12, Tier.TIGHTENED)


def test_an_unknown_input_is_asked_again_with_more_effort_only(work, asked):
    verify_run(work, [Question(0.15, last=Tier.BOXES, steps=0)], ALL)
    unknown = statuses(work).count("unknown")
    assert unknown > 0
    assert {until for _, until in asked} == {Tier.BOXES}
    asked.clear()
    verify_run(work, [Question(0.15, last=Tier.BOXES, steps=0)], ALL)
    assert asked == []
    verify_run(work, [Question(0.15)], ALL)
    assert asked[0] == (unknown, Tier.TIGHTENED)
    assert set(asked[1:]) <= {(1, Tier.BRANCHING)}
    asked.clear()
    # less effort than was spent already
    verify_run(work, [Question(0.15, last=Tier.LINEAR, steps=5)], ALL)
    assert asked == []


def test_a_budget_of_nothing_is_unknown_and_no_more(work):
    verify_run(work, [Question(0.4, seconds=0, nodes=0, steps=0)], ALL)
    found = content(work)["entries"][0]["verdicts"]
    rest = [m for m, s in zip(found["method"], found["status"], strict=True) if s == "verified"]
    assert "branching" not in rest
    assert "unknown" in found["status"]


def test_ctrl_c_keeps_what_is_decided(work, asked, monkeypatch):
    monkeypatch.setattr(deciding, "CHUNK", 4)
    counted = cascade.verify

    def verify(*args, **options):
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return counted(*args, **options)

    monkeypatch.setattr(cascade, "verify", verify)
    question = Question(0.02, last=Tier.TIGHTENED)
    with pytest.raises(InterruptedRunError, match="what was decided"):
        verify_run(work, [question], ALL)
    assert len(asked) == 2
    assert content(work) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    job = next(work.jobs())
    kept = (job.folder / "verification" / "max-0.02" / "part-0.jsonl").read_text().count("\n")
    assert kept >= 4
    monkeypatch.setattr(cascade, "verify", counted)
    asked.clear()
    verify_run(work, [question], ALL)
    assert sum(size for size, _ in asked) == 12 - kept
    assert sum(content(work)["entries"][0]["counts"].values()) == 12


def test_an_unknown_of_a_search_that_was_cut_short_is_not_kept(work, monkeypatch):
    def verify(model, x, y, region, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return cascade.Verdicts(tuple(Verdict("unknown", -inf, "interrupted") for _ in x))

    monkeypatch.setattr(cascade, "verify", verify)
    with pytest.raises(InterruptedRunError):
        verify_run(work, [Question(0.02)], ALL)
    job = next(work.jobs())
    assert (job.folder / "verification" / "max-0.02" / "part-0.jsonl").read_text() == ""


def test_shares_of_two_processes_are_the_single_run(work, monkeypatch):
    question = Question(0.1, seconds=60)
    verify_run(work, [question], ALL)
    single = content(work)["entries"][0]["verdicts"]
    monkeypatch.setattr(Shard, "wait", lambda self: None)
    job = next(work.jobs())
    for path in job.folder.glob("verification/*/*"):
        path.unlink()
    # the first process merges, so it comes last here; a part on disk counts
    ledger = job.folder / "verification" / "max-0.1"
    verify_run(work, [question], ALL, Shard(0, 1))
    settings = (ledger / "settings.json").read_text()
    for path in ledger.glob("part-*"):
        path.unlink()
    verify_run(work, [question], ALL, Shard(1, 2))
    assert [p.name for p in ledger.glob("part-*")] == ["part-1.jsonl"]
    assert (ledger / "settings.json").read_text() == settings
    verify_run(work, [question], ALL, Shard(0, 2))
    both = content(work)["entries"][0]["verdicts"]
    lines = [json.loads(x) for x in (ledger / "part-1.jsonl").read_text().splitlines()]
    assert {line["index"] % 2 for line in lines} == {1}
    assert both["index"] == single["index"]
    assert both["status"] == single["status"]
    assert both["method"] == single["method"]
    assert both["margin"] == pytest.approx(single["margin"], rel=1e-4)


def test_verdicts_of_other_weights_are_forgotten(work):
    verify_run(work, [Question(0.02)], ALL)
    job = next(work.jobs())
    path = job.folder / "verification" / "max-0.02" / "settings.json"
    path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))
    ledger = path.parent / "part-0.jsonl"
    ledger.write_text("not even a verdict\n")
    verify_run(work, [Question(0.02)], ALL)
    assert len(ledger.read_text().splitlines()) >= 12


def test_training_anew_forgets_what_was_measured_on_the_old_weights(tmp_path):
    work = make_work(tmp_path, count=3)
    verify_run(work, [Question(0.02)], ALL)
    job = next(work.jobs())
    assert job.read("verification") is not None
    train(work)
    assert job.read("verification") is None
    assert not any(key.startswith("certified_accuracy") for key in job_metrics(job))


def test_a_torn_line_is_dropped_and_a_damaged_one_is_named(work):
    question = Question(0.02, last=Tier.TIGHTENED)
    verify_run(work, [question], ALL)
    path = next(work.jobs()).folder / "verification" / "max-0.02" / "part-0.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) - 30])
    before = statuses(work)
    verify_run(work, [question], ALL)
    assert statuses(work) == before
    assert path.read_text().count("\n") == 12
    path.write_text("{]\n" + whole)
    with pytest.raises(DataError, match="damaged at line 1"):
        verify_run(work, [question], ALL)


def line(index, status, method="boxes", effort=None, **more):
    witness = (0.0,) if status == "falsified" else None
    verdict = Verdict(status, 0.5, method, 0.25, witness, **more)
    return Line(index, 0, verdict, effort or Effort(5, 10.0, 100, 20))


def test_the_ledger_keeps_the_best_line_and_finds_contradictions(tmp_path):
    ledger = Ledger(tmp_path, {"weights": "w"})
    ledger.prepare()
    poor = Effort(2, 0.0, 0, 20)
    ledger.write([line(0, "unknown", effort=poor), line(1, "unknown"), line(2, "verified")])
    ledger.write([line(0, "unknown"), line(1, "verified", bounds={"boxes": -inf}, unstable=3)])
    found = ledger.read()
    assert found[0].effort.tier == 5
    assert found[1] == line(1, "verified", bounds={"boxes": -inf}, unstable=3)
    other = Ledger(tmp_path, {"weights": "w"}, part=1)
    assert not other.fresh
    other.write([line(0, "unknown", effort=poor)])
    assert other.read()[0].effort.tier == 5
    other.write([line(2, "falsified", "attack")])
    with pytest.raises(AuditError, match="Input 2 was verified by boxes and falsified by attack"):
        ledger.read()
    assert Ledger(tmp_path, {"weights": "v"}).fresh


def test_shares_are_stacked_in_the_order_of_the_methods():
    methods = ("branching", "boxes", "boxes", "mine")
    lines = [line(i, "verified", m) for i, m in enumerate(methods)]
    shares = stacked([*lines, line(4, "unknown")], "verified")
    assert list(shares.items()) == [("boxes", 0.4), ("branching", 0.6), ("mine", 0.8)]
    assert up_to(shares, "tightening") == 0.4
    assert up_to(shares, "lipschitz") == 0.0
    assert up_to({}, "branching") == 0.0
    assert verified_metrics(None) == {}


def test_what_torchrun_says():
    assert shard_of({}) == Shard(0, 1)
    assert shard_of({"RANK": "1", "WORLD_SIZE": "3"}).mine(range(8)) == [1, 4, 7]
    with pytest.raises(ConfigError, match="`WORLD_SIZE` is 'two'"):
        shard_of({"WORLD_SIZE": "two"})
    with pytest.raises(ConfigError, match="`RANK` is 2"):
        shard_of({"RANK": "2", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": -0.1}, "`eps` is -0.1"),
        ({"eps": nan}, "`eps` is nan"),
        ({"eps": inf}, "`eps` is inf"),
        ({"norm": "1"}, "`norm` is '1'"),
        ({"seconds": -1.0}, "negative"),
        ({"seconds": nan}, "negative"),
        ({"nodes": -1}, "negative"),
        ({"restarts": 0}, "no start"),
    ],
)
def test_questions_that_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        Question(**{"eps": 0.1, **change})


def test_subjects_that_are_refused():
    model, x = torch.nn.Linear(2, 2), torch.tensor([[0.2, 1.2]])
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"Input 0 .* outside of the domain \[0, 1\]"):
        Subject(model, x, y, (0.0, 1.0))
    with pytest.raises(ConfigError, match="two numbers, rising"):
        Subject(model, x, y, (1.0, 0.0))
    with pytest.raises(ShapeError, match="NaN"):
        Subject(model, x * nan, y)
    with pytest.raises(ConfigError, match="smallest value of -1"):
        Subject(model, x, y - 1)
    with pytest.raises(ShapeError, match="one label each"):
        Subject(model, x, y[:0])


def test_choices_that_are_refused(work):
    with pytest.raises(ConfigError, match="no variant mlp in this run; it has nemon"):
        verify_run(work, [Question(0.1)], Choice(variants=("mlp",)))
    with pytest.raises(ConfigError, match="no seed 7"):
        verify_run(work, [Question(0.1)], Choice(seeds=(7,)))
    with pytest.raises(ConfigError, match="`samples` is -1"):
        verify_run(work, [Question(0.1)], Choice(samples=-1))


def test_a_network_without_rules_is_told_and_the_others_are_verified(tmp_path, capsys, monkeypatch):
    work = make_work(tmp_path, variants=("nemon", "mlp"), count=3)
    build = work.build

    def broken(job):
        model = build(job)
        return model if job.name == "nemon" else torch.nn.Sequential(*model, torch.nn.Softmax(1))

    monkeypatch.setattr(type(work), "build", lambda self, job: broken(job))
    verify_run(work, [Question(0.01)], ALL)
    told = capsys.readouterr().out
    assert "mlp seed 0: not verified" in told
    assert "Softmax" in told
    first, second = work.jobs()
    assert first.read("verification") is not None
    assert second.read("verification") is None
    with pytest.raises(NotCertifiableError, match="Softmax"):
        verify_run(work, [Question(0.01)], Choice(variants=("mlp",)))
