import json

import numpy as np
import pytest
import torch

from weights_elsewhere import declarations, outputs, write_files
from wellposed.cli import app
from wellposed.core.records import Verdict

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, *write_files(folder)


def told(capsys, *words):
    code = app.status(["verify", *map(str, words)])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def test_labelled_inputs_of_weights_trained_elsewhere(elsewhere, tmp_path, capsys):
    folder, net, x, y = elsewhere
    words = (folder / "net.npz", "--data", folder / "data.npz", "--out", tmp_path / "out")
    code, text = told(capsys, *words, "--eps", "0.001,0.3", "--domain", "0,1")
    assert code == 0
    assert "max-norm eps 0.001: 100.00 % verified" in text
    content = json.loads((tmp_path / "out" / "verification.json").read_text())
    near, far = content["entries"]
    assert near["counts"] == {"verified": 8, "falsified": 0, "unknown": 0}
    assert far["counts"]["falsified"] > 0
    assert near["pgd"] is None
    assert near["clean"] == 1
    for row in (tmp_path / "out" / "max-0.3" / "part-0.jsonl").read_text().splitlines():
        line = json.loads(row)
        verdict = Verdict.from_dict(line["verdict"])
        if verdict.witness is not None:
            point = torch.tensor([verdict.witness], dtype=torch.float64)
            i = line["index"]
            assert float((point - x[i]).abs().max()) <= 0.3 + 1e-12
            assert 0 <= float(point.min()) <= float(point.max()) <= 1
            assert int(outputs(net, point).argmax()) != int(y[i])
    code, again = told(capsys, *words, "--eps", "0.001,0.3", "--domain", "0,1")
    assert code == 0
    assert "max-norm eps 0.001: 100.00 % verified" in again


def test_certificates_are_accepted_by_the_checker(elsewhere, tmp_path, capsys):
    folder = elsewhere[0]
    words = (folder / "net.npz", "--data", folder / "data.npz", "--out", tmp_path / "out")
    code, _ = told(capsys, *words, "--eps", "0.1", "--samples", "4", "--certificates")
    assert code == 0
    content = json.loads((tmp_path / "out" / "verification.json").read_text())
    decided = content["entries"][0]["counts"]
    files = sorted((tmp_path / "out" / "max-0.1" / "certificates").glob("0*.npz"))
    assert len(files) == decided["verified"] + decided["falsified"] > 0
    for path in files:
        assert app.status(["check", str(path), str(folder / "net.npz")]) == 0
        assert app.status(["check", str(path), str(path.with_name("network.npz"))]) == 0
    capsys.readouterr()


def test_the_two_norm(elsewhere, tmp_path, capsys):
    folder = elsewhere[0]
    words = (folder / "net.npz", "--data", folder / "data.npz", "--out", tmp_path / "out")
    code, text = told(capsys, *words, "--eps", "0.001", "--norm", "2", "--samples", "3")
    assert code == 0
    assert "2-norm eps 0.001: 100.00 % verified" in text
    assert "of 3 inputs" in text


def test_properties(elsewhere, tmp_path, capsys):
    folder, _, x, y = elsewhere
    label = int(y[0])
    others = [j for j in range(4) if j != label]
    start = declarations(x[0], 0.001)
    robust = start + "(assert (or " + " ".join(f"(>= Y_{j} Y_{label})" for j in others) + "))\n"
    both = start + "".join(f"(assert (>= Y_{j} Y_{label}))\n" for j in others[:2])
    wrong = start + "".join(f"(assert (<= Y_{j} Y_{label}))\n" for j in others)
    expected = {"robust": (robust, "unsat"), "both": (both, "unsat"), "wrong": (wrong, "sat")}
    for name, (text, answer) in expected.items():
        path = tmp_path / f"{name}.vnnlib"
        path.write_text(text)
        out = tmp_path / f"{name}.json"
        code, said = told(capsys, folder / "net.npz", "--property", path, "--out", out)
        assert code == 0
        assert f"({answer})" in said
        assert ("counter-example" in said) == (answer == "sat")
        assert Verdict.from_json(out.read_text()).status == (
            "verified" if answer == "unsat" else "falsified"
        )
    # without a search and without cheap proofs there is no answer, and least of all "verified"
    code, said = told(
        capsys, folder / "net.npz", "--property", tmp_path / "wrong.vnnlib", "--budget", "0"
    )
    assert code == 0
    assert "verified" not in said


def test_a_property_that_cannot_be_parsed_names_its_line(elsewhere, tmp_path, capsys):
    folder, _, x, _ = elsewhere
    path = tmp_path / "bad.vnnlib"
    start = declarations(x[0], 0.01)
    path.write_text(start + "(assert (=> Y_0 Y_1))\n")
    code, text = told(capsys, folder / "net.npz", "--property", path)
    assert code == 2
    assert f"line {start.count(chr(10)) + 1}" in text
    assert "bad.vnnlib" in text
    assert "Traceback" not in text


def test_damaged_weights_and_data(elsewhere, tmp_path, capsys):
    folder = elsewhere[0]
    whole = (folder / "net.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(bytes(flipped))
    data = folder / "data.npz"
    for name in ("torn", "flipped"):
        path = tmp_path / f"{name}.npz"
        code, text = told(capsys, path, "--data", data, "--eps", "0.01")
        assert code == 2
        assert f"{name}.npz" in text
        assert "verified" not in text
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    code, text = told(capsys, folder / "net.npz", "--data", tmp_path / "bad.npz", "--eps", "0.01")
    assert code == 2
    assert "cannot be read" in text


@pytest.mark.parametrize(
    ("x", "y", "code", "words"),
    [
        (np.zeros((2, 5)), np.zeros(2, int), 2, "the network has 3 inputs"),
        (np.zeros((2, 3)), np.zeros(3, int), 2, "y (3,)"),
        (np.zeros((2, 3)), np.zeros(2), 2, "y is float64"),
        (np.zeros((2, 3)), np.full(2, 4), 2, "label 4 is no class of a network with 4"),
        (np.zeros((2, 3)), np.full(2, -1), 2, "smallest value of -1"),
        (np.full((2, 3), 1.5), np.zeros(2, int), 1, "outside of the domain [0, 1]"),
        (np.full((2, 3), np.nan), np.zeros(2, int), 1, "NaN"),
    ],
)
def test_data_that_is_refused(elsewhere, tmp_path, capsys, x, y, code, words):
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y)
    given = (elsewhere[0] / "net.npz", "--data", path, "--eps", "0.01", "--domain", "0,1")
    found, text = told(capsys, *given, "--out", tmp_path / "out")
    assert found == code
    assert words in text
    assert "verified" not in text.replace("verification", "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "there is nothing to verify"),
        (["--data", "d.npz"], "`--eps` is not given"),
        (["--data", "d.npz", "--eps", "x"], "`--eps` is 'x'; expected numbers"),
        (["--data", "d.npz", "--eps", "-1"], "`eps` is -1.0"),
        (["--data", "d.npz", "--eps", "0.1", "--norm", "3"], "expected max, inf or 2"),
        (["--data", "d.npz", "--eps", "0.1", "--until", "b"], "`--until` is 'b'"),
        (["--data", "d.npz", "--eps", "0.1", "--domain", "1"], "expected two numbers"),
        (["--data", "d.npz", "--eps", "0.1", "--budget", "-1"], "negative"),
        (["--eps", "0.1", "--seeds", "0"], "--seeds cannot be used with a file of weights"),
        (["--property", "p.vnnlib", "--eps", "0.1"], "--eps beside --property cannot be used"),
        (["--data", "absent.npz", "--eps", "0.1"], "absent.npz"),
    ],
)
def test_wrong_flags_of_verify(elsewhere, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(elsewhere[0])
    code, text = told(capsys, "net.npz", *flags)
    assert code == 2
    assert words in text
    assert "Traceback" not in text


def test_not_a_run_folder_either(tmp_path, capsys):
    code, text = told(capsys, tmp_path / "nothing", "--eps", "0.1")
    assert code == 2
    assert "not a run folder" in text
    code, text = told(capsys, tmp_path, "--eps", "0.1", "--data", "x.npz")
    assert code == 2
    assert "--data cannot be used with a run folder" in text
