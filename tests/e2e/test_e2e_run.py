"""One whole run: every file that the report and the results need, and what is done twice."""

import json

import pytest

from wellposed.core.records import Certificate, Estimate

STEPS = ("certificates", "attacks", "solvers", "examples")


@pytest.mark.slow
def test_a_whole_run(wellposed, smoke, tmp_path):
    done = wellposed("run", smoke, "--out", "runs", "--record", "--epochs", "2", "--seeds", "0,1")
    assert done.returncode == 0, done.stderr + done.stdout
    folder = tmp_path / "runs" / "smoke"
    for name in ("config.toml", "environment.json", "data.json", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    for variant in ("nemon", "mlp"):
        place = folder / variant / "seed-0"
        for name in (*STEPS, "metrics"):
            assert (place / f"{name}.json").is_file(), name
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [1, 2]

    records = json.loads((folder / "nemon/seed-0/certificates.json").read_text())
    proved = {r["norm_in"]: r["value"] for r in records if r["record"] == "Certificate"}
    measured = {r["norm_in"]: r["value"] for r in records if r["record"] == "Estimate"}
    assert set(proved) == set(measured) == {"max", "1", "2"}
    assert all(measured[norm] <= proved[norm] for norm in proved)
    rules = [Certificate.from_dict(r).rule[:2] for r in records if r["record"] == "Certificate"]
    assert rules[:4] == ["L0", "L1", "L2", "L3"]
    assert all(Estimate.from_dict(r) for r in records if r["record"] == "Estimate")

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert set(summary["variants"]) == {"nemon", "mlp"}
    result = json.loads((tmp_path / "results" / "smoke.json").read_text())
    assert set(result) == {"name", "command", "environment", "seeds", "metrics"}
    assert "--record" in result["command"]
    assert result["metrics"]["test_accuracy"]["n"] == 2
    assert result["metrics"]["mlp/parameters"]["std"] == 0
    assert result["metrics"]["epoch_cpu_ratio_to_mlp"]["mean"] > 0

    again = wellposed("run", smoke, "--out", "runs", "--resume", "--epochs", "2", "--seeds", "0,1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("trained already") == 4
    assert again.stdout.count("done already") == 2 * len(STEPS) + 4

    other = wellposed("run", smoke, "--out", "runs", "--resume", "--epochs", "3", "--seeds", "0,1")
    assert other.returncode == 2
    assert "trained with another configuration" in other.stderr
    assert "Traceback" not in other.stderr
