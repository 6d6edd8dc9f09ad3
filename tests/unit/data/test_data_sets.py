"""What the image sets hold: sizes, classes, indices, tracks, and how the two CIFARs differ."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from wellposed.data import IMAGE_SETS, ImageSet, describe, jpeg, load_images
from wellposed.data.folders import checkouts, locate, search_folders
from wellposed.files import npz

SIZES = {
    "mnist": (60_000, 10_000, (1, 28, 28), 10),
    "fashion_mnist": (60_000, 10_000, (1, 28, 28), 10),
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "cifar10_exact": (8_068, 1_017, (3, 32, 32), 10),
    "gtsrb32": (13_069, 12_630, (3, 32, 32), 43),
    "mnist_mini": (2_000, 1_000, (1, 28, 28), 10),
    "fashion_mnist_mini": (2_000, 1_000, (1, 28, 28), 10),
}


def counts(loaded: ImageSet, part: str) -> list[int]:
    labels = getattr(loaded, part).labels
    return torch.bincount(labels, minlength=len(loaded.classes)).tolist()


def test_every_set_of_the_registry_has_a_size_here():
    assert SIZES.keys() == IMAGE_SETS.keys()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "cifar10" else []) for n in SIZES],
)
def test_shapes_types_and_digests(image_set, name):
    loaded = image_set(name)
    train, test, shape, classes = SIZES[name]
    for part, n in ((loaded.train, train), (loaded.test, test)):
        assert part.images.shape == (n, *shape)
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        assert part.labels.shape == (n,)
        assert part.labels.dtype == torch.int64
        assert (part.labels.min(), part.labels.max()) == (0, classes - 1)
        assert len(part) == n
    assert len(loaded.classes) == len(set(loaded.classes)) == classes
    assert len(loaded.normalisation.mean) == len(loaded.normalisation.std) == shape[0]
    assert len(loaded.digests) == len(describe(name).files)
    assert loaded.name == name


def test_the_digests_are_those_of_the_files_as_they_lie(image_set):
    loaded = image_set("mnist")
    folder = next(root / "data" / "mnist" for root in checkouts() if (root / "data/mnist").is_dir())
    listed = dict(
        reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    assert dict(loaded.digests) == listed
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_mnist_is_mnist(image_set):
    loaded = image_set("mnist")
    assert loaded.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert loaded.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert counts(loaded, "train") == [
        *(5923, 6742, 5958, 6131, 5842),
        *(5421, 5918, 6265, 5851, 5949),
    ]
    assert counts(loaded, "test") == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_fashion_mnist_has_equally_many_of_each_class(image_set):
    loaded = image_set("fashion_mnist")
    assert counts(loaded, "train") == [6_000] * 10
    assert counts(loaded, "test") == [1_000] * 10


@pytest.mark.slow
def test_cifar10_has_equally_many_of_each_class(image_set):
    loaded = image_set("cifar10")
    assert counts(loaded, "train") == [5_000] * 10
    assert counts(loaded, "test") == [1_000] * 10


def test_exact_cifar10_has_the_counts_that_were_recorded(image_set):
    loaded = image_set("cifar10_exact")
    train = counts(loaded, "train")
    assert (min(train), max(train)) == (777, 856)
    assert counts(loaded, "test") == [105, 93, 100, 104, 92, 87, 114, 102, 110, 110]
    assert loaded.test.index.tolist() == list(range(1_017))
    assert loaded.train.index[4_000:4_003].tolist() == [10_000, 10_001, 10_002]


def test_gtsrb_has_the_counts_and_the_tracks_that_were_recorded(image_set):
    loaded = image_set("gtsrb32")
    train, test = counts(loaded, "train"), counts(loaded, "test")
    assert (min(train), max(train)) == (70, 750)
    assert (min(test), max(test)) == (60, 750)
    tracks, frames = loaded.train.group.unique(return_counts=True)
    assert len(tracks) == 1_307
    # one track of 29 frames has 9 of every third, all others have 10 of 30
    assert frames.unique(return_counts=True)[1].tolist() == [1, 1_306]
    assert (loaded.train.group // 1000 == loaded.train.labels).all()
    assert loaded.test.group is None


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "gtsrb32"])
def test_the_normalisation_is_that_of_the_training_pixels(image_set, name):
    loaded = image_set(name)
    pixels = loaded.train.images.numpy()
    mean = pixels.mean(axis=(0, 2, 3), dtype=np.float64) / 255
    square = np.stack([np.square(c, dtype=np.float32).mean() for c in pixels.swapaxes(0, 1)])
    std = np.sqrt(square / 255**2 - mean**2)
    np.testing.assert_allclose(mean, loaded.normalisation.mean, atol=1e-4)
    np.testing.assert_allclose(std, loaded.normalisation.std, atol=2e-4)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_mini_set_is_the_full_set_at_its_indices(image_set, name, part):
    mini, full = (getattr(image_set(n), part) for n in (f"{name}_mini", name))
    assert (mini.index.diff() > 0).all()
    at = full.take(mini.index)
    assert torch.equal(at.images, mini.images)
    assert torch.equal(at.labels, mini.labels)
    assert torch.equal(at.index, mini.index)
    per_class = 200 if part == "train" else 100
    assert torch.bincount(mini.labels).tolist() == [per_class] * 10


@pytest.mark.parametrize(("part", "error"), [("train", 8.06), ("test", 8.09)])
def test_lossy_cifar10_lines_up_with_the_exact_one(image_set, needs, part, error):
    needs("cifar10")
    exact = getattr(image_set("cifar10_exact"), part)
    entry = describe("cifar10")
    path = locate(entry.files["pack"].names, entry.subfolders, search_folders(), given=False)
    pack = npz.arrays(Path(path).read_bytes(), "pack", required=["header"])
    lossy = jpeg.decode(
        pack["header"].tobytes(),
        pack[f"{part}_scan"].tobytes(),
        pack[f"{part}_offset"],
        "pack",
        positions=exact.index.tolist(),
    )
    difference = lossy.astype(np.float32) - exact.images.numpy()
    per_image = np.sqrt(np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64))
    assert np.sqrt(np.mean(per_image**2)) == pytest.approx(error, abs=0.02)
    # an image in the wrong place would be off by far more
    assert per_image.max() < 18
    assert pack[f"{part}_label"][exact.index.numpy()].tolist() == exact.labels.tolist()


def test_a_set_is_loaded_afresh_each_time(mnist):
    again = load_images("mnist")
    again.test.images.zero_()
    assert mnist.test.images.any()
