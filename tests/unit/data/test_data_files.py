"""Finding and checking files: damaged, wrong, absent, plain, in folders of other shapes."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

import wellposed.data.folders as folders_module
from wellposed.data import is_available, load_images, search_folders
from wellposed.data.folders import checkouts
from wellposed.errors import ConfigError, DataError

IMAGES = "t10k-images-idx3-ubyte.gz"
LABELS = "t10k-labels-idx1-ubyte.gz"
DIGEST = "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
RAW_DIGEST = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Path:
    """An empty data folder, and no other place where a file could be found."""
    for name in ("home", "project", "data"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(folders_module, "checkouts", lambda: [tmp_path / "project"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WELLPOSED_DATA", raising=False)
    return tmp_path / "data"


@pytest.fixture
def copy(alone) -> Path:
    """A copy of MNIST that a test may damage, and no other."""
    # resolved before the copy, since `alone` hides the checkout
    source = Path(folders_module.__file__).resolve().parents[3] / "data" / "mnist"
    shutil.copytree(source, alone / "mnist")
    return alone / "mnist"


def test_a_truncated_gzip_file_is_named_with_both_digests(copy):
    path = copy / IMAGES
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="truncated or damaged gzip file") as caught:
        load_images("mnist", copy.parent)
    message = str(caught.value)
    assert str(path) in message
    assert "1,647,877 bytes" in message
    assert DIGEST in message
    assert "hint: " in message


@pytest.mark.parametrize("position", [0, 40, 400_000, -1])
def test_a_flipped_byte_raises(copy, position):
    path = copy / IMAGES
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match=IMAGES) as caught:
        load_images("mnist", copy.parent)
    assert DIGEST in str(caught.value) or RAW_DIGEST in str(caught.value)


def test_only_the_content_counts_not_the_header_of_the_gzip_file(copy):
    path = copy / IMAGES
    data = bytearray(path.read_bytes())
    data[4] ^= 0x10  # in the time stamp
    path.write_bytes(data)
    assert load_images("mnist", copy.parent).digests[IMAGES] != DIGEST


def test_a_flipped_pixel_in_a_sound_gzip_file_raises(copy):
    path = copy / IMAGES
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[5000] ^= 1
    path.write_bytes(gzip.compress(raw, compresslevel=1))
    with pytest.raises(DataError, match="content has 7,840,016 bytes") as caught:
        load_images("mnist", copy.parent)
    assert RAW_DIGEST in str(caught.value)


def test_a_truncated_plain_file_raises(copy):
    raw = gzip.decompress((copy / IMAGES).read_bytes())
    (copy / IMAGES).unlink()
    (copy / IMAGES.removesuffix(".gz")).write_bytes(raw[:-1])
    with pytest.raises(DataError, match="7,840,015 bytes"):
        load_images("mnist", copy.parent)


def test_a_flipped_byte_in_a_pack_raises(alone):
    # damaged or not a pack at all: only the digest counts
    (alone / "mnist").mkdir()
    (alone / "mnist" / "mnist_mini.npz").write_bytes(b"PK\3\4 not the pack")
    with pytest.raises(DataError, match=r"file has 17 bytes with SHA-256 \w+, expected a9fbd6e1"):
        load_images("mnist_mini", alone)


def test_plain_and_repacked_files_are_the_same_set(mnist, copy):
    for name in (IMAGES, LABELS):
        raw = gzip.decompress((copy / name).read_bytes())
        (copy / name).unlink()
        if name == IMAGES:
            (copy / "t10k-images.idx3-ubyte").write_bytes(raw)
        else:
            (copy / name).write_bytes(gzip.compress(raw, compresslevel=1, mtime=1))
    loaded = load_images("mnist", copy.parent)
    assert loaded.test.images.equal(mnist.test.images)
    assert loaded.test.labels.equal(mnist.test.labels)
    # the digest is that of the file as it lies; for a plain file, that of its content
    assert loaded.digests["t10k-images.idx3-ubyte"] == RAW_DIGEST


def test_the_folder_of_the_set_itself_will_do(copy):
    assert is_available("mnist", copy)
    assert len(load_images("mnist", str(copy)).test) == 10_000


def test_the_files_of_another_set_are_refused(copy):
    with pytest.raises(DataError, match="is not the file it should be"):
        load_images("fashion_mnist", copy)


def test_an_absent_set_names_file_folders_and_remedy(alone, tmp_path):
    assert not is_available("gtsrb32", alone)
    with pytest.raises(DataError) as caught:
        load_images("gtsrb32", alone)
    message = str(caught.value)
    assert "The image set `gtsrb32` needs the file `gtsrb32/gtsrb32_labels.npz`" in message
    assert f"\n  {alone}\n" in message
    assert f"{tmp_path / 'project' / 'data'} (no such folder)" in message
    assert f"{tmp_path / 'shared' / 'data'} (no such folder)" in message
    assert "hint: pass a `folder`" in message
    assert "$WELLPOSED_DATA" in message


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"`folder` must be a folder that exists, got .*nowhere"):
        load_images("mnist", tmp_path / "nowhere")


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"no image set `fasion_mnist`.*`cifar10_exact`"
    ) as caught:
        load_images("fasion_mnist")
    assert caught.value.hint == "did you mean `fashion_mnist`?"


def test_the_folders_are_searched_in_the_order_that_is_promised(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("WELLPOSED_DATA", str(tmp_path / "variable"))
    assert search_folders(alone) == [
        alone,
        tmp_path / "variable",
        tmp_path / "project" / "data",
        tmp_path / "shared" / "data",
        tmp_path / "home" / "wellposed",
    ]


@pytest.mark.parametrize("place", ["variable", "project/data", "shared/data", "home/wellposed"])
def test_each_place_is_searched(alone, tmp_path, monkeypatch, place):
    monkeypatch.setenv("WELLPOSED_DATA", str(tmp_path / "variable"))
    assert not is_available("cifar10", alone)
    (tmp_path / place / "cifar10").mkdir(parents=True)
    (tmp_path / place / "cifar10" / "cifar10_jpeg75.npz").touch()
    assert is_available("cifar10", alone)


def test_a_damaged_file_is_not_passed_over_for_a_sound_one_further_on(copy, tmp_path):
    (tmp_path / "first" / "mnist").mkdir(parents=True)
    (tmp_path / "first" / "mnist" / LABELS).write_bytes(b"\0\0\x08\1")
    shutil.copytree(copy, tmp_path / "project" / "data" / "mnist")
    with pytest.raises(DataError, match=LABELS):
        load_images("mnist", tmp_path / "first")


def test_the_checkout_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "benchmarks" / "deep")
    assert checkouts()[-1] == tmp_path


def test_a_file_that_cannot_be_read_is_a_data_error(alone, monkeypatch):
    (alone / "mnist").mkdir()
    (alone / "mnist" / "mnist_mini.npz").touch()

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"mnist_mini\.npz` cannot be read: Permission denied"):
        load_images("mnist_mini", alone)
