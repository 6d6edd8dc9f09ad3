"""The four formats on small made-up files: what goes in comes out, and damage is named."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from wellposed.data import idx, jpeg, webp
from wellposed.errors import DataError
from wellposed.files import npz

RNG_SEED = 20_261_122


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + (array.tobytes())
    )


@pytest.mark.parametrize("shape", [(7,), (3, 5, 4), (0, 28, 28)])
def test_idx_round_trip(shape):
    array = noise(*shape)
    np.testing.assert_array_equal(idx.parse(idx_bytes(array), "file"), array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with the bytes none, expected 00 00 08"),
        (b"\x1f\x8b\x08\x08rest", "starts with the bytes 1f 8b 08 08"),
        (b"\0\0\x0d\1" + bytes(8), "starts with the bytes 00 00 0d 01"),
        (b"\0\0\x08\0", "rank of at least 1"),
        (b"\0\0\x08\3\0\0\0\1", "has 8 bytes, expected a header of 16 bytes"),
        (
            idx_bytes(noise(6))[:-1],
            r"has 5 bytes after its header, expected 6 for the shape \(6,\)",
        ),
        (idx_bytes(noise(6)) + b"x", "has 7 bytes after its header, expected 6"),
    ],
)
def test_idx_damage_is_named(data, message):
    with pytest.raises(DataError, match=f"`the file` .*{message}"):
        idx.parse(data, "the file")


def packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_npz_round_trip():
    found = npz.arrays(packed(a=noise(3), b=noise(2, 2)), "pack", required=["a"])
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["b"], noise(2, 2))


def test_npz_that_lacks_an_array_is_refused():
    with pytest.raises(DataError, match="`pack` lacks `b`, `c`; it holds `a`"):
        npz.arrays(packed(a=noise(3)), "pack", required=["a", "b", "c"])


def lone_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, noise(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"PK\3\4", b"not a pack", packed(a=noise(300))[:-40]),
        *(lone_array(), packed(a=np.array([{}], dtype=object))),
    ],
)
def test_npz_damage_is_named(data):
    with pytest.raises(DataError, match="`pack` cannot be read as a pack of arrays"):
        npz.arrays(data, "pack", required=[])


def sheet_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_tiles_come_out_row_by_row_without_the_padding():
    sheet = noise(2 * 4, 3 * 4, 3)
    found = webp.tiles(sheet_bytes(sheet), 5, "sheet", across=3, side=4)
    assert found.shape == (5, 3, 4, 4)
    for number in range(5):
        row, column = divmod(number, 3)
        tile = sheet[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(found[number], tile.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width", "count"), [(8, 8, 1), (6, 12, 1), (8, 12, 7)])
def test_a_sheet_of_the_wrong_size_is_refused(height, width, count):
    data = sheet_bytes(noise(height, width, 3))
    with pytest.raises(DataError, match=f"`sheet` is {width} x {height} pixels, expected a width"):
        webp.tiles(data, count, "sheet", across=3, side=4)


def test_a_damaged_sheet_is_refused():
    data = sheet_bytes(noise(64, 64, 3))
    for damaged in (b"", data[:-2000], b"not a picture"):
        with pytest.raises(DataError, match="`sheet` cannot be decoded as a WebP picture"):
            webp.tiles(damaged, 4, "sheet", across=2, side=32)


def test_a_pillow_without_webp_is_named(monkeypatch):
    monkeypatch.setattr(webp.features, "check", lambda feature: False)
    with pytest.raises(DataError, match="no WebP support"):
        webp.tiles(b"", 1, "sheet")


def jpeg_pieces(images: np.ndarray) -> tuple[bytes, bytes, np.ndarray]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=100, subsampling=0)
        files.append(buffer.getvalue())
    # the scan begins after the start-of-scan segment; all that precedes is alike in all files
    at = files[0].index(b"\xff\xda")
    at += 2 + int.from_bytes(files[0][at + 2 : at + 4], "big")
    assert len({file[:at] for file in files}) == 1
    scans = [file[at:-2] for file in files]
    offsets = np.cumsum([0, *map(len, scans)]).astype(np.uint32)
    return files[0][:at], b"".join(scans), offsets


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    ramp = np.arange(16, dtype=np.uint8)
    plane = 8 * ramp[:, None] + 4 * ramp
    return np.stack([np.stack([plane, plane // 2, 255 - plane - k], axis=-1) for k in range(4)])


def test_jpeg_round_trip(smooth):
    found = jpeg.decode(*jpeg_pieces(smooth), "pack", side=16)
    assert found.shape == (4, 3, 16, 16)
    assert np.abs(found.transpose(0, 2, 3, 1).astype(int) - smooth).max() <= 4


def test_jpeg_positions_choose_and_order(smooth):
    pieces = jpeg_pieces(smooth)
    every = jpeg.decode(*pieces, "pack", side=16)
    some = jpeg.decode(*pieces, "pack", side=16, positions=[3, 1])
    np.testing.assert_array_equal(some, every[[3, 1]])


@pytest.mark.parametrize("change", [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 9999, 0, 0]])
def test_jpeg_offsets_that_do_not_fit_are_refused(smooth, change):
    header, scans, offsets = jpeg_pieces(smooth)
    with pytest.raises(DataError, match="offsets that do not rise from 0 to"):
        jpeg.decode(header, scans, offsets + np.array(change), "pack", side=16)


def test_a_jpeg_without_its_header_is_named(smooth):
    _, scans, offsets = jpeg_pieces(smooth)
    with pytest.raises(DataError, match="Image 2 of `pack` cannot be decoded"):
        jpeg.decode(b"", scans, offsets, "pack", side=16, positions=[2])


@pytest.mark.parametrize("side", [8, 24, 32])
def test_a_jpeg_of_another_size_is_named(smooth, side):
    with pytest.raises(DataError, match=f"Image 0 of `pack` .* of {side} x {side} pixels"):
        jpeg.decode(*jpeg_pieces(smooth), "pack", side=side)
