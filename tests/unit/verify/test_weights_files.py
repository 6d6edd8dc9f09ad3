"""Weights trained elsewhere: three formats, read exactly, refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wellposed.core.activations import LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.errors import DataError
from wellposed.verify.weights import export_network, load_network


def weights(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = {"W": (3, 3), "U": (3, 2), "b": (3,), "C": (4, 3), "c": (4,)}
    return {k: torch.randn(*s, generator=g, dtype=dtype) for k, s in shapes.items()}


def write(path, tensors, texts=None):
    texts = texts or {}
    match path.suffix:
        case ".npz":
            np.savez(path, **{k: t.numpy() for k, t in tensors.items()}, **texts)
        case ".safetensors":
            save_file(tensors, path, {k: str(v) for k, v in texts.items()})
        case _:
            torch.save(tensors | texts, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_read_is_what_was_written(tmp_path, suffix, dtype):
    held = weights(dtype)
    net = load_network(write(tmp_path / f"a{suffix}", held))
    assert all(torch.equal(getattr(net, k), t.double()) for k, t in held.items())
    assert net.activation == ReLU()
    assert not net.D.any()
    more = held | {"D": torch.ones(4, 2), "linear": torch.tensor([True, False, False])}
    texts = {"activation": "leaky_relu", "negative_slope": 0.3}
    net = load_network(write(tmp_path / f"b{suffix}", more, texts))
    assert net.slope.tolist() == [1.0, 0.3, 0.3]
    assert bool((net.D == 1).all())
    net = load_network(write(tmp_path / f"c{suffix}", held, {"activation": "tanh"}))
    assert net.activation == Tanh()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_networks_come_back_with_their_digest(tmp_path, suffix):
    mask = torch.tensor([True, False, False])
    for activation, linear in [(None, None), (LeakyReLU(0.07), None), (LeakyReLU(0.07), mask),
                               (ReLU(), mask), (ReLU(), torch.ones(3) > 0)]:  # fmt: skip
        net = Network.of(*weights().values(), activation=activation, linear=linear)
        export_network(net, tmp_path / f"a{suffix}")
        assert load_network(tmp_path / f"a{suffix}").digest() == net.digest()
    smooth = Network.of(*weights().values(), activation=Tanh(), linear=mask)
    export_network(smooth, tmp_path / f"a{suffix}")
    back = load_network(tmp_path / f"a{suffix}")
    assert (back.activation, back.linear.tolist()) == (Tanh(), mask.tolist())
    with pytest.raises(DataError, match=r"\.txt"):
        export_network(net, tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_what_is_wrong_is_said(tmp_path, suffix):
    path, held = tmp_path / f"a{suffix}", weights()
    cases = [
        ({k: t for k, t in held.items() if k != "C"}, {}, "C"),
        (held | {"V": torch.zeros(1)}, {}, "V"),
        (held | {"W": held["W"] * torch.nan}, {}, "`W`: 9 NaN"),
        (held | {"U": held["U"].mT.contiguous()}, {}, "shape"),
        (held | {"b": held["b"][None]}, {}, "dimensions"),
        (held | {"D": torch.zeros(2, 4)}, {}, "`D` has shape"),
        (held | {"slope": torch.tensor([0.0, 0.1, 0.2])}, {}, "slope"),
        (held | {"slope": torch.tensor([0.0, 1.5, 1.0])}, {}, "slope"),
        (held | {"slope": torch.zeros(3)}, {"activation": "relu"}, "one of the two"),
        (held, {"activation": "maxout"}, "maxout"),
        (held, {"activation": "leaky_relu", "negative_slope": 1.5}, "negative_slope"),
    ]
    for tensors, texts, match in cases:
        with pytest.raises(DataError, match=match) as caught:
            load_network(write(path, tensors, texts))
        assert caught.value.hint


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_damaged_files(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", weights())
    data = path.read_bytes()
    for content in (b"", data[: len(data) // 2], b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read|state-dict"):
            load_network(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_network(tmp_path / f"none{suffix}")
    with pytest.raises(DataError, match="suffix"):
        load_network(tmp_path / "weights.onnx")


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(DataError, match="state-dict"):
        load_network(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(DataError, match="dictionary"):
        load_network(path)
    torch.save({**weights(), "W": [1, 2]}, path)
    with pytest.raises(DataError, match="a list"):
        load_network(path)
    np.savez(tmp_path / "a.npz", **{**{k: t.numpy() for k, t in weights().items()},
             "W": np.array([object()])}, allow_pickle=True)  # fmt: skip
    with pytest.raises(DataError, match="cannot be read"):
        load_network(tmp_path / "a.npz")
