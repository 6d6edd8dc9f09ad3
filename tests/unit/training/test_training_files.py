import errno
import json

import pytest
import torch

import wellposed as wp
from wellposed.errors import CheckpointError, DataError
from wellposed.files import atomic as files
from wellposed.files.atomic import digest, read_tensors, write_atomic, write_json, write_tensors
from wellposed.training import Recipe, fit, load_weights, save_weights
from wellposed.training.checkpoint import Position, Trainee
from wellposed.training.meter import Sums

STATE = "checkpoint/state.safetensors"


def test_tensors_round_trip(tmp_path):
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.tensor(4.0),
        "c": torch.zeros(0, dtype=torch.uint8),
    }
    found = write_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 3})
    back, meta = read_tensors(tmp_path / "x.safetensors")
    assert meta == {"epoch": 3}
    assert digest(back) == found
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_truncated_file(tmp_path, cut):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(30)}, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tensors(path)
    assert "without `--resume`" in caught.value.hint


def test_flipped_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.randn(30)}, {})
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged: its tensors have digest"):
        read_tensors(path)


def test_a_foreign_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not written by this library"):
        read_tensors(tmp_path / "x.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / "x.safetensors")


def test_digest_sees_names_shapes_and_values():
    base = {"a": torch.zeros(4)}
    others = [{"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.ones(4)}]
    assert len({digest(t) for t in [base, *others]}) == 4


def full_disk(path, data):
    path.write_bytes(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(files, "_write_through", full_disk)
    with pytest.raises(DataError, match=r"No space left.*previous file is intact") as caught:
        write_json(path, {"new": 2})
    assert "free some space" in caught.value.hint
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_full_disk_in_the_middle_of_training(make_model, examples, recipe, tmp_path, monkeypatch):
    whole = make_model()
    fit(whole, examples, recipe, tmp_path / "whole")
    writes = iter(range(1000))
    original = files._write_through

    def sometimes(path, data):
        if next(writes) == 4:
            full_disk(path, data)
        original(path, data)

    monkeypatch.setattr(files, "_write_through", sometimes)
    with pytest.raises(DataError, match="No space left"):
        fit(make_model(), examples, recipe, tmp_path / "part")
    monkeypatch.setattr(files, "_write_through", original)
    again = make_model()
    fit(again, examples, recipe, tmp_path / "part", resume=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_file_where_the_folder_should_be(make_model, examples, recipe, tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written") as caught:
        fit(make_model(), examples, recipe, tmp_path / "run")
    assert "--out" in caught.value.hint


def test_read_only_folder_is_found_out_before_training(
    make_model, examples, recipe, tmp_path, monkeypatch
):
    # permissions do not bind the super-user, so the refusal is simulated
    def refused(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "_write_through", refused)
    model = make_model()
    before = digest(model.state_dict())
    with pytest.raises(DataError, match="Read-only file system") as caught:
        fit(model, examples, recipe, tmp_path)
    assert "read-only" in caught.value.hint
    assert digest(model.state_dict()) == before


def test_write_atomic_makes_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "text")
    assert (tmp_path / "a" / "b.txt").read_text() == "text"


def test_weights_round_trip_and_refuse_another_model(make_model, tmp_path):
    model, path = make_model(), tmp_path / "w.safetensors"
    with torch.no_grad():
        model[3].bias.fill_(7)
    written = save_weights(path, model, {"kind": "nemon"})
    other = make_model()
    found, meta = load_weights(path, other)
    assert found == written
    assert meta == {"kind": "nemon"}
    assert torch.equal(other[3].bias, model[3].bias)
    with pytest.raises(CheckpointError, match=r"expected \(7, 36\)"):
        load_weights(path, make_model(states=7))


def test_a_damaged_checkpoint_is_refused(make_model, examples, tmp_path):
    recipe = Recipe(epochs=1, batch=50)
    fit(make_model(), examples, recipe, tmp_path)
    data = bytearray((tmp_path / STATE).read_bytes())
    data[-10] ^= 255
    (tmp_path / STATE).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        fit(make_model(), examples, recipe, tmp_path, resume=True)


def test_a_search_goes_on_from_the_vector_of_the_checkpoint(tmp_path):
    def fresh():
        torch.manual_seed(0)
        cell = wp.ContractiveCell(5, 40, bound=0.9)
        with torch.no_grad():
            cell.W.mul_(5)
        layer = wp.Equilibrium(cell)
        optimiser = torch.optim.SGD(layer.parameters(), 0.1)
        return layer, optimiser, Trainee(layer, optimiser, None, "stamp")

    def step(layer, optimiser):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    layer, optimiser, trainee = fresh()
    for _ in range(3):
        step(layer, optimiser)
    trainee.save(tmp_path, Position(0, 3, Sums(), []))
    vector = layer.cell.leading.vector.clone()
    step(layer, optimiser)

    again, other, resumed = fresh()
    assert again.cell.leading.vector is None
    resumed.load(tmp_path)
    assert torch.equal(again.cell.leading.vector, vector)
    step(again, other)
    assert torch.equal(again.cell.W, layer.cell.W)
    assert torch.equal(again.cell.leading.vector, layer.cell.leading.vector)
