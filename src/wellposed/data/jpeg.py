"""JPEG packs: equally large images that share one header and differ in their scans only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wellposed.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

END_OF_IMAGE = b"\xff\xd9"


def decode(
    header: bytes,
    scans: bytes,
    offsets: NDArray[np.integer],
    source: str,
    *,
    positions: Sequence[int] | None = None,
    side: int = 32,
) -> NDArray[np.uint8]:
    """Decoded images of a pack: (n, 3, side, side).

    Args:
        header: What every file starts with, up to the scan.
        scans: All entropy-coded scans, one after another.
        offsets: Start of each scan, and the end of the last one.
        source: Name of the file, for messages.
        positions: Which images to decode, in this order; `None` decodes all.
        side: Height and width of an image.

    Raises:
        DataError: The offsets do not cut the scans into pieces, or an image cannot be decoded.
    """
    at = offsets.astype(np.int64)
    if len(at) == 0 or at[0] != 0 or at[-1] != len(scans) or (np.diff(at) <= 0).any():
        raise DataError(
            f"`{source}` has offsets that do not rise from 0 to {len(scans):,}, the length of "
            f"its scans.",
            hint="the pack is damaged; replace it by a fresh copy",
        )
    starts: list[int] = at.tolist()
    wanted = range(len(starts) - 1) if positions is None else positions
    images = np.empty((len(wanted), 3, side, side), np.uint8)
    for row, position in enumerate(wanted):
        file = header + scans[starts[position] : starts[position + 1]] + END_OF_IMAGE
        try:
            # the bare decoder: twice as fast as opening each image, whose headers are all alike
            picture = Image.frombytes("RGB", (side, side), file, "jpeg", "RGB", "")
        except (OSError, ValueError) as error:
            raise DataError(
                f"Image {position} of `{source}` cannot be decoded as a JPEG picture of "
                f"{side} x {side} pixels: {error}.",
                hint="the pack is damaged or belongs to another set; replace it by a fresh copy",
            ) from error
        images[row] = np.asarray(picture).transpose(2, 0, 1)
    return images
