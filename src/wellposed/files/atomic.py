"""Files that are either the old one or the new one, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wellposed.errors import CheckpointError, DataError

_HINTS = {
    errno.ENOSPC: "free some space or choose another folder with `--out`, then `--resume`.",
    errno.EDQUOT: "free some of your quota or choose another folder with `--out`.",
    errno.EROFS: "the file system is read-only: choose another folder with `--out`.",
    errno.EACCES: "you may not write there: choose another folder with `--out`.",
    errno.EPERM: "you may not write there: choose another folder with `--out`.",
    errno.ENOTDIR: "a part of that path is a file: choose another folder with `--out`.",
    errno.EEXIST: "a file is in the way: choose another folder with `--out`.",
}


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file: the new content is on the disk before the old one goes.

    Raises:
        DataError: The folder is not writable or the disk is full. The old file is intact.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(partial, data)
        partial.replace(path)
    except OSError as error:
        partial_removed(partial)
        raise cannot_write(path, error, len(data)) from error


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def partial_removed(path: Path) -> None:
    """Delete a half-written file if that is possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def cannot_write(path: Path, error: OSError, size: int | None = None) -> DataError:
    """The error for a file that could not be written."""
    kept = "the previous file is intact" if path.exists() else "there was no previous file"
    what = "" if size is None else f" ({size:,} bytes)"
    return DataError(
        f"`{path}`{what} cannot be written: {error.strerror or error}; {kept}.",
        hint=_HINTS.get(error.errno or 0, "check the folder that `--out` names."),
    )


def write_json(path: Path, content: Any) -> None:
    """Write an object as indented JSON, atomically."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of some tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and a JSON object into one safetensors file, atomically.

    Returns:
        The digest of the tensors.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    found = digest(plain)
    header = {"wellposed": json.dumps(dict(meta)), "digest": found}
    write_atomic(path, save(plain, header))
    return found


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`.

    Raises:
        CheckpointError: The file is absent, truncated, changed, or not one of ours.
    """
    hint = "take another checkpoint, or start again without `--resume`."
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
        raise CheckpointError(
            f"`{path}` ({size}) cannot be read as a safetensors file: {error}.", hint=hint
        ) from error
    if "wellposed" not in header or "digest" not in header:
        raise CheckpointError(
            f"`{path}` was not written by this library: its header has {sorted(header)}, expected "
            "`wellposed` and `digest`.",
            hint=hint,
        )
    found = digest(tensors)
    if found != header["digest"]:
        raise CheckpointError(
            f"`{path}` is damaged: its tensors have digest {found[:16]}, expected "
            f"{header['digest'][:16]}.",
            hint=hint,
        )
    return tensors, json.loads(header["wellposed"])
