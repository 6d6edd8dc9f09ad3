import json
import re

import pytest
from made_up_run import make_run, picture, write
from test_report_page import read

from wellposed.report import read_run, write_report
from wellposed.report.verification import sections

METHODS = ("boxes", "linear bounds", "tightening", "branching")


def entry(eps, norm="max", *, samples=20, witnesses=2):
    verified = samples - witnesses - 1
    states = ["verified"] * verified + ["falsified"] * witnesses + ["unknown"]
    share = {m: verified * (k + 1) / 4 / samples for k, m in enumerate(METHODS)}
    return {
        "norm": norm, "eps": eps, "samples": samples, "clean": 1.0,
        "counts": {"verified": verified, "falsified": witnesses, "unknown": 1},
        "certified": verified / samples, "not_falsified": 1 - witnesses / samples,
        "pgd": 1 - 1 / samples, "certified_by": share,
        "falsified_by": {"attack": 1 / samples, "branching": witnesses / samples},
        "seconds": {"mean": 0.0123, "median": 0.004, "max": 1.5, "total": 0.5},
        "settings": {"last": "branching"},
        "verdicts": {
            "index": list(range(samples)), "label": [3] * samples, "status": states,
            "method": ["boxes"] * samples, "margin": [0.5] * samples,
            "seconds": [0.001 * (k + 1) for k in range(samples)],
            "unstable": [None, *range(10, 9 + samples)], "nodes": [0] * samples,
        },
        "gallery": [
            {
                "index": 7 + k, "label": 3, "clean": 3, "prediction": 8, "probability": 0.6,
                "margin": -0.01, "method": "branching", "distance": eps, "nodes": 42,
                "image": picture(100), "witness": picture(120), "change": picture(90),
            }
            for k in range(witnesses)
        ],
    }  # fmt: skip


@pytest.fixture
def verified_folder(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    content = {"weights": "w", "entries": [entry(0.1, "2"), entry(0.01), entry(0.05)]}
    write(folder / "nemon/seed-0/verification.json", content)
    return folder


def test_areas_times_neurons_and_witnesses_are_on_the_page(verified_folder):
    reader = read(write_report(verified_folder))
    words = " ".join("".join(reader.words).split())
    assert reader.errors == []
    assert len(reader.ids) == len(set(reader.ids))
    assert "verification" in reader.ids
    assert "missing" not in reader.ids
    titles = ("Verified, by method", "Decided within a time", "Counter-examples")
    figures = ("85.0 %", "10.0 %", "5.0 %", "0.0123", "should be 3", "branching, 42 cases")
    for text in (*METHODS, *titles, *figures):
        assert text in words, text
    shown = [image["alt"] for image in reader.images if "counter-example" in image["alt"]]
    # images 7 and 8 fall at every radius and are shown once
    assert shown == ["The counter-example; the network says 8"] * 2
    text = (verified_folder / "report.html").read_text()
    assert text.count('role="img"') == text.count("<svg height") + text.count("<svg viewBox")
    panels = [p for part in sections(read_run(verified_folder)) for p in part["panels"]]
    assert len(panels) == 6  # three for each norm
    assert "at 0.05 85.0 % verified and 10.0 % falsified" in panels[3]


def test_shares_of_methods_add_up(verified_folder):
    (part,) = sections(read_run(verified_folder))
    assert [name for _, name in part["methods"]] == list(METHODS)
    for row in part["shares"]:
        values = [float(cell.removesuffix(" %")) for cell in row[1:]]
        assert values == sorted(values)
        assert values[-1] == 85.0


def test_without_verdicts_the_page_says_how_to_get_them(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,))
    reader = read(write_report(folder))
    assert "verification" in reader.ids
    assert "missing" not in reader.ids
    assert "wellposed verify RUN" in "".join(reader.words)


def test_damaged_and_strange_verdicts(verified_folder):
    path = verified_folder / "nemon/seed-0/verification.json"
    whole = json.loads(path.read_text())
    path.write_text("{")
    words = "".join(read(write_report(verified_folder)).words)
    assert "nemon/seed-0/verification.json: damaged" in words
    write(path, {"entries": [{"norm": "max"}, "x", None]})
    assert "wellposed verify RUN" in "".join(read(write_report(verified_folder)).words)
    # one radius, nothing decided, no counts of neurons, no attack, and names that are not ours
    one = whole["entries"][1]
    one["verdicts"] |= {"status": ["unknown"] * 20, "unstable": [None] * 20}
    one |= {"pgd": None, "seconds": None, "certified_by": {}, "gallery": None, "norm": "<b>"}
    write(path, {"entries": [one]})
    text = write_report(verified_folder).read_text()
    assert "<b>" not in text
    assert not re.search(r"https?://", text)
    assert read(verified_folder / "report.html").errors == []
