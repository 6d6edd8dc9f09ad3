"""How the files of a set make up its training and its test part.

A layout is given a function that finds, checks and reads the file that plays a named role.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from wellposed.data import idx, jpeg, webp
from wellposed.data.records import Split
from wellposed.files import npz

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor


class Content(NamedTuple):
    """Checked content of a file, and its name for messages."""

    data: bytes
    name: str


Open: TypeAlias = Callable[[str], Content]
Layout: TypeAlias = Callable[[Open], tuple[Split, Split]]


def idx_files(open_file: Open) -> tuple[Split, Split]:
    """Four idx files, in the roles `train_image`, `train_label`, `test_image`, `test_label`."""

    def part(which: str) -> Split:
        images = idx.parse(*open_file(f"{which}_image"))
        return Split(_grey(images), _integers(idx.parse(*open_file(f"{which}_label"))))

    return part("train"), part("test")


def grey_pack(open_file: Open) -> tuple[Split, Split]:
    """One pack, in the role `pack`, of grey images, labels and original positions."""
    content = open_file("pack")
    keys = [f"{which}_{what}" for which in _PARTS for what in ("image", "label", "index")]
    pack = npz.arrays(*content, required=keys)

    def part(which: str) -> Split:
        return _labelled(_grey(pack[f"{which}_image"]), pack, which)

    return part("train"), part("test")


def jpeg_pack(open_file: Open) -> tuple[Split, Split]:
    """One pack, in the role `pack`, of JPEG scans with a common header, and labels."""
    content = open_file("pack")
    keys = [f"{which}_{what}" for which in _PARTS for what in ("scan", "offset", "label")]
    pack = npz.arrays(*content, required=["header", *keys])

    def part(which: str) -> Split:
        images = jpeg.decode(
            pack["header"].tobytes(),
            pack[f"{which}_scan"].tobytes(),
            pack[f"{which}_offset"].astype(np.int64),
            content.name,
        )
        return _labelled(torch.from_numpy(images), pack, which)

    return part("train"), part("test")


def tile_sheets(open_file: Open) -> tuple[Split, Split]:
    """Two sheets, in the roles `train` and `test`, and a pack of labels, in the role `labels`."""
    pack = npz.arrays(*open_file("labels"), required=[f"{which}_label" for which in _PARTS])

    def part(which: str) -> Split:
        content = open_file(which)
        images = webp.tiles(content.data, len(pack[f"{which}_label"]), content.name)
        return _labelled(torch.from_numpy(np.ascontiguousarray(images)), pack, which)

    return part("train"), part("test")


_PARTS = ("train", "test")


def _labelled(images: Tensor, pack: Mapping[str, NDArray[np.generic]], which: str) -> Split:
    labels = _integers(pack[f"{which}_label"])
    index, track = pack.get(f"{which}_index"), pack.get(f"{which}_track")
    return Split(
        images,
        labels,
        # the numbers of tracks restart in every class: only the pair tells them apart
        group=None if track is None else 1000 * labels + _integers(track),
        index=None if index is None else _integers(index),
    )


def _grey(images: NDArray[np.generic]) -> Tensor:
    # a copy, since the bytes of a file are read-only and a tensor must not be
    return torch.from_numpy(images[:, None].astype(np.uint8, order="C", copy=True))


def _integers(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
