"""Files with known digests: read, compare, and only then hand on.

What was compared is what is handed on: the bytes are read once and never looked up again.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wellposed.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
HINT = (
    "the file is damaged or another version; replace it by a fresh copy, or pass a `folder` "
    "(or set $WELLPOSED_DATA) that holds one"
)


@dataclass(frozen=True)
class DataFile:
    """File of a data set, with the digest that its bytes must have.

    Args:
        names: Names under which the file may lie in a folder, the usual one first.
        sha256: Digest of the file itself.
        raw: Digest of the content after gunzip. With it, a plain file and a gzip file with
            another header (time stamp, name, level) are accepted too; `None` accepts neither.
    """

    names: tuple[str, ...]
    sha256: str
    raw: str | None = None


def sha256(data: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_verified(path: Path, expected: DataFile) -> tuple[bytes, str]:
    """Content of a file and the digest of the file, if that is the one expected.

    Args:
        path: Where the file lies.
        expected: What it must be; gzip is undone if a digest of the raw content is known.

    Raises:
        DataError: The file cannot be read, is truncated, or has another digest.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror or error}.",
            hint="check the permissions of the file and of its folder",
        ) from error
    found = sha256(data)
    if expected.raw is None:
        if found != expected.sha256:
            raise _wrong(path, data, found, expected.sha256)
        return data, found
    content = _gunzip(path, data, found, expected) if data.startswith(GZIP_MAGIC) else data
    # equal packed bytes have equal content, and gunzip checked its own sum: no second digest
    if found != expected.sha256 and (raw := sha256(content)) != expected.raw:
        raise _wrong(path, content, raw, expected.raw, what="content")
    return content, found


def _gunzip(path: Path, data: bytes, found: str, expected: DataFile) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"`{path}` is a truncated or damaged gzip file ({error}): it has {len(data):,} bytes "
            f"with SHA-256 {found}, expected {expected.sha256}.",
            hint=HINT,
        ) from error


def _wrong(path: Path, data: bytes, found: str, expected: str, what: str = "file") -> DataError:
    return DataError(
        f"`{path}` is not the file it should be: the {what} has {len(data):,} bytes "
        f"with SHA-256 {found}, expected {expected}.",
        hint=HINT,
    )
