"""Tile sheets: many small images side by side in one lossless WebP picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, features

from wellposed.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tiles(
    data: bytes, count: int, source: str, *, across: int = 64, side: int = 32
) -> NDArray[np.uint8]:
    """The first `count` tiles of a sheet, row by row: (count, 3, side, side).

    Args:
        data: Content of the WebP file.
        count: How many tiles are images; the last row is padded with meaningless ones.
        source: Name of the file, for messages.
        across: Tiles in a row.
        side: Height and width of a tile.

    Raises:
        DataError: The picture cannot be decoded or has no such tiles.
    """
    if not features.check("webp"):
        raise DataError(
            f"`{source}` cannot be decoded: this build of Pillow has no WebP support.",
            hint="install one that has it, as the published wheels do",
        )
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
            sheet = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"`{source}` cannot be decoded as a WebP picture: {error}.",
            hint="the file is damaged; replace it by a fresh copy",
        ) from error
    height, width, _ = sheet.shape
    if width != across * side or height % side or height // side * across < count:
        raise DataError(
            f"`{source}` is {width} x {height} pixels, expected a width of {across * side} and "
            f"{-(-count // across)} or more whole rows of {side} for {count:,} tiles.",
            hint="the sheet and the labels belong to different versions; replace both",
        )
    grid = sheet.reshape(-1, side, across, side, 3).transpose(0, 2, 4, 1, 3)
    return grid.reshape(-1, 3, side, side)[:count]
