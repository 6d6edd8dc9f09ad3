"""The idx format of MNIST and Fashion-MNIST: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

import numpy as np

from wellposed.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNSIGNED_BYTE = 8


def parse(data: bytes, source: str) -> NDArray[np.uint8]:
    """Array of an idx file that holds unsigned bytes.

    The header is ``0 0 8 rank`` followed by one 32-bit length per axis.

    Args:
        data: Content of the file, after gunzip.
        source: Name of the file, for messages.

    Raises:
        DataError: The magic number or the length is wrong.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE or data[3] == 0:
        raise DataError(
            f"`{source}` starts with the bytes {data[:4].hex(' ') or 'none'}, "
            f"expected 00 00 08 and a rank of at least 1.",
            hint="the file is not an idx file of unsigned bytes; is it still packed?",
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise DataError(
            f"`{source}` has {len(data)} bytes, expected a header of {start} bytes.",
            hint="the file is truncated; replace it by a fresh copy",
        )
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"`{source}` has {len(data) - start:,} bytes after its header, expected "
            f"{math.prod(shape):,} for the shape {shape}.",
            hint="the file is truncated or has a tail; replace it by a fresh copy",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
