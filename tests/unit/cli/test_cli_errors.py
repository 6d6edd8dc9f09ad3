import gzip
import json
import signal

import pytest

import wellposed.experiments.run as run_module
from wellposed.cli import app
from wellposed.errors import AuditError, ConfigError, WellposedError


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text("[training]\nepochs = 1\n")
    return path


def told(capsys, *words):
    code = app.status([str(word) for word in words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--epoks", "3"], ["no key `epoks`", "did you mean", "`epochs`"]),
        (["--training.epochs", "0"], ["`training.epochs` is 0", "greater than or equal to 1"]),
        (["--epochs"], ["has no value"]),
        (["--model.margin", "1"], ["`model.margin` is 1", "less than 1"]),
        (["--solver", "jacoby"], ["no solver `jacoby`", "`jacobi`"]),
        (["--data.name", "mnits"], ["no image set `mnits`", "did you mean `mnist`"]),
        (["--seeds", "x"], ["`--seeds` is 'x'", "0,1,2"]),
    ],
)
def test_wrong_flags(config, capsys, tmp_path, flags, parts):
    code, text = told(capsys, "train", config, "--out", tmp_path / "runs", *flags)
    assert code == 2
    assert text.startswith("error:")
    for part in parts:
        assert part in text
    assert "Traceback" not in text


def test_unknown_key_in_the_file(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text("[training]\nepoch = 3\n")
    code, text = told(capsys, "run", path)
    assert code == 2
    assert "`training.epoch` is not a known key (value 3)" in text
    assert "did you mean `epochs`?" in text


def test_missing_and_broken_files(tmp_path, capsys):
    (tmp_path / "near.toml").write_text("")
    code, text = told(capsys, "run", tmp_path / "absent.toml")
    assert code == 2
    assert "near.toml" in text
    (tmp_path / "broken.toml").write_text("[training\n")
    code, text = told(capsys, "run", tmp_path / "broken.toml")
    assert code == 2
    assert "not valid TOML" in text


def test_truncated_data(config, tmp_path, capsys):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"0" * 1000)[:20])
    code, text = told(
        capsys, "train", config, "--out", tmp_path / "runs", "--data.folder", tmp_path / "data"
    )
    assert code == 2
    assert "truncated or damaged gzip file" in text
    assert "440fcabf" in text


def test_not_a_run_folder(tmp_path, capsys):
    for command in ("certify", "attack", "report"):
        code, text = told(capsys, command, tmp_path / "nothing")
        assert code == 2
        assert "not a run folder" in text


def test_a_folder_that_cannot_be_written(config, tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    code, text = told(
        capsys, "train", config, "--out", tmp_path / "runs", "--data.train_limit", "20"
    )
    assert code == 2
    assert "cannot be written" in text
    assert "--out" in text


def test_status_of_other_errors(config, capsys, monkeypatch):
    errors = {1: AuditError("a"), 2: ConfigError("c", hint="h"), 130: KeyboardInterrupt()}
    for code, error in errors.items():

        def fail(*_words, error=error, **_options):
            raise error

        monkeypatch.setattr(run_module, "train", fail)
        assert told(capsys, "run", config)[0] == code


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(WellposedError):
        app.status(["run", str(tmp_path / "absent.toml"), "--debug"])


def test_env_is_a_record(capsys):
    assert app.status(["env"]) == 0
    assert json.loads(capsys.readouterr().out)["record"] == "Environment"


def test_fields_lists_every_section(capsys):
    assert app.status(["fields"]) == 0
    text = capsys.readouterr().out
    for key in ("--training.epochs", "--model.margin", "--attacks.eps", "--seeds"):
        assert key in text


def test_interrupt_handler_is_the_default_one_outside_training():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
