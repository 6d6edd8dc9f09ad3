"""Packs of named numpy arrays."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from wellposed.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def arrays(data: bytes, source: str, required: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """All arrays of a pack; pickled objects are refused.

    Args:
        data: Content of the file.
        source: Name of the file, for messages.
        required: Names of arrays that must be there.

    Raises:
        DataError: The pack is damaged or lacks an array.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as pack:
            found = {name: pack[name] for name in pack.files}
    # a plain .npy loads as an array, which is no context manager: TypeError or AttributeError
    except (
        *(AttributeError, TypeError, ValueError, EOFError, OSError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        raise DataError(
            f"`{source}` cannot be read as a pack of arrays: {error}.",
            hint="the file is damaged or not an .npz file; replace it by a fresh copy",
        ) from error
    if missing := [name for name in required if name not in found]:
        raise DataError(
            f"`{source}` lacks {', '.join(f'`{name}`' for name in missing)}; "
            f"it holds {', '.join(f'`{name}`' for name in found) or 'nothing'}.",
            hint="the file belongs to another set or version; replace it by a fresh copy",
        )
    return found
