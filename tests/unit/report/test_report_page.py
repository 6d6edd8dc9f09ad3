"""The page: complete, self-contained, escaped, and honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from made_up_run import VARIANTS, certificates, make_run, write

from wellposed.errors import DataError
from wellposed.report import read_run, write_report
from wellposed.report.numbers import short
from wellposed.report.verdict import checks, headline

SECTIONS = {
    "summary", "checks", "learning", "evaluations", "convergence", "lipschitz", "robustness",
    "examples", "assumptions", "provenance",
}  # fmt: skip
VOID = {"meta", "img", "br", "hr", "input", "link"}
LOADS = {"src", "href", "data", "poster", "srcset", "action", "xlink:href"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects ids, addresses and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.stack, self.ids, self.loads, self.images, self.words = [], [], [], [], []
        self.errors, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.note(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(tag, attrs)

    def handle_endtag(self, tag):
        if tag == "p" and "p" not in self.stack:
            self.errors.append("stray </p>")
        elif not self.stack or self.stack.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    def note(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.loads += [v for k, v in attrs.items() if k in LOADS]
        if tag == "img":
            self.images.append(attrs)


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


@pytest.fixture
def run_folder(tmp_path):
    return make_run(tmp_path / "runs" / "nemon-mnist")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "nemon-mnist"))


def test_every_section_is_there_and_nothing_is_reported_missing(page):
    reader = read(page)
    assert set(reader.ids) >= SECTIONS | {"verdict"}
    assert "missing" not in reader.ids
    assert "Missing:" not in "".join(reader.words)


def test_tags_nest_and_ids_are_unique(page):
    reader = read(page)
    assert reader.errors == []
    assert reader.stack == []
    assert len(reader.ids) == len(set(reader.ids))


def test_nothing_is_loaded_from_anywhere(page):
    text, reader = page.read_text(encoding="utf-8"), read(page)
    assert not re.search(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}/", text)
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in reader.loads)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)


def test_images_and_figures_have_words(page):
    text, reader = page.read_text(encoding="utf-8"), read(page)
    assert reader.images
    assert all(image.get("alt") for image in reader.images)
    assert text.count('role="img"') == text.count("<svg height") + text.count("<svg viewBox")
    assert reader.tags.count("figure") == reader.tags.count("figcaption")
    assert reader.tags.count("th") == len(re.findall(r'<th scope="', text))
    assert "<html lang=" in text


def test_numbers_of_the_run_are_on_the_page(page):
    words = " ".join("".join(read(page).words).split())
    for name in VARIANTS:
        assert name in words
    assert "98.37 ± 0.07 %" in words  # mean and deviation of three made-up seeds
    assert "89,710" in words
    assert "wellposed run configs/nemon-mnist.toml" in words
    assert "f" * 64 in words
    assert "the map from inputs to equilibria, in exact arithmetic" in words


def test_two_reports_of_one_run_are_the_same(run_folder):
    one = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == one
    assert not list(run_folder.glob("*.part"))


def test_everything_from_files_is_escaped(run_folder):
    nasty = '<script>alert("x")</script>&<b>'
    summary = json.loads((run_folder / "summary.json").read_text())
    summary |= {"name": nasty, "command": nasty}
    write(run_folder / "summary.json", summary)
    write(run_folder / "config.toml", f"x = '{nasty}'")
    write(run_folder / "data.json", {nasty: nasty})
    write(run_folder / "environment.json", {"python": nasty})
    records = certificates(50.0)
    records[1]["rule"] = records[1]["assumes"][0] = nasty
    write(run_folder / "nemon/seed-0/certificates.json", records)
    found = json.loads((run_folder / "nemon/seed-0/examples.json").read_text())
    found["classes"] = [nasty] * 10
    found["examples"][0]["image"] = "https://example.org/x.png"
    write(run_folder / "nemon/seed-0/examples.json", found)
    solvers = json.loads((run_folder / "nemon/seed-0/solvers.json").read_text())
    solvers["solvers"] = {nasty: solvers["solvers"]["jacobi"]}
    write(run_folder / "nemon/seed-0/solvers.json", solvers)
    shutil.move(run_folder / "mlp", run_folder / "ml<p>")
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "ml<p>" not in text
    assert "example.org" not in text
    reader = read(run_folder / "report.html")
    assert reader.errors == []
    assert nasty in "".join(reader.words)


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("attacks", "no attacks.json"),
        ("solvers", "no solvers.json"),
        ("examples", "no examples.json"),
        ("certificates", "no certificates.json"),
    ],
)
def test_a_missing_part_is_said_to_be_missing(run_folder, name, section):
    for path in run_folder.glob(f"*/*/{name}.json"):
        path.unlink()
    reader = read(write_report(run_folder))
    words = "".join(reader.words)
    assert "missing" in reader.ids
    assert re.search(rf"nemon/seed-[0*]/{name}\.json: not there", words)
    assert section in words
    assert set(reader.ids) >= SECTIONS


def test_missing_top_files_and_damaged_ones_are_named(run_folder):
    (run_folder / "environment.json").unlink()
    (run_folder / "data.json").write_text("{")
    (run_folder / "config.toml").write_text("")
    (run_folder / "nemon/seed-1/attacks.json").write_text('{"curves": {')
    with (run_folder / "nemon/seed-0/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 13, "train_lo')  # a run that was killed while writing
    shutil.rmtree(run_folder / "mlp")
    words = "".join(read(write_report(run_folder)).words)
    for said in (
        "environment.json: not there",
        "data.json: damaged",
        "config.toml: empty",
        "nemon/seed-1/attacks.json: damaged",
        "nemon/seed-0/metrics.jsonl: 1 damaged line(s)",
        "mlp/: the summary names this variant",
    ):
        assert said in words


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    reader = read(write_report(tmp_path))
    words = "".join(reader.words)
    assert "Nothing was trained yet" in words
    assert "summary.json: not there" in words
    assert reader.errors == []
    assert set(reader.ids) >= SECTIONS


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "absent")


def test_a_certificate_below_an_attack_is_shown_as_wrong(run_folder):
    records = certificates(50.0)
    records[-1]["value"] = 60.0
    write(run_folder / "nemon/seed-2/certificates.json", records)
    row = dict(checks(read_run(run_folder)))["nemon"]
    assert row[0].holds is False
    assert [check.holds for check in row[1:]] == [True, True, True]
    assert "✗" in write_report(run_folder).read_text(encoding="utf-8")


def test_a_certified_curve_above_the_attacked_one_and_a_risen_accuracy_are_shown(run_folder):
    path = run_folder / "nemon/seed-0/attacks.json"
    found = json.loads(path.read_text())
    found["certified"]["accuracy"] = [1.0] * 15
    found["clean"] = 0.5
    found["curves"]["pgd"]["unsolved"] = [0, 2, 0, 0, 0, 0, 0]
    write(path, found)
    row = dict(checks(read_run(run_folder)))["nemon"]
    assert [check.holds for check in row] == [True, False, False, False]
    assert row[3].text == "2"


def test_what_is_said_of_a_variant_holds_for_its_worst_seed(run_folder):
    write(run_folder / "nemon/seed-1/certificates.json", certificates(777.0))
    text = headline(read_run(run_folder))
    assert "more than 777 eps" in text
    (run_folder / "nemon/seed-1/attacks.json").unlink()
    assert "half of the test images" in text
    assert "half of the test images" not in headline(read_run(run_folder))


def test_without_certificates_nothing_is_promised(run_folder):
    for path in run_folder.glob("*/*/certificates.json"):
        path.unlink()
    assert "nothing is guaranteed" in headline(read_run(run_folder))


@pytest.mark.parametrize(
    ("value", "near", "up", "down"),
    [
        (0.0, "0", "0", "0"),
        (260.3, "260", "261", "260"),
        (0.0046772, "0.00468", "0.00468", "0.00467"),
        (4.111e-5, "4.11 × 10⁻⁵", "4.12 × 10⁻⁵", "4.11 × 10⁻⁵"),
        (1e-6, "10⁻⁶", "10⁻⁶", "10⁻⁶"),
        (89710.0, "89,710", "89,800", "89,700"),
        (2.0, "2", "2", "2"),
        (999.6, "1,000", "1,000", "999"),
        (float("inf"), "∞", "∞", "∞"),
        (None, "–", "–", "–"),
    ],
)
def test_bounds_are_printed_on_the_safe_side(value, near, up, down):
    assert short(value) == near
    assert short(value, way="up") == up
    assert short(value, way="down") == down
