"""Folders in which data sets are looked for, in order; nothing is ever downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wellposed.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIABLE = "WELLPOSED_DATA"


def search_folders(folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders to search, the most particular first.

    The folder given by the caller; `$WELLPOSED_DATA`; `data/` of a checkout; `shared/data` beside
    a checkout; the user's cache. Since every file is checked against its digest, it does not
    matter for the result which of them holds it.

    Args:
        folder: Folder given by the caller.

    Raises:
        DataError: The caller's folder does not exist.
    """
    found: list[Path] = []
    if folder is not None:
        given = Path(folder).expanduser()
        if not given.is_dir():
            raise DataError(
                f"`folder` must be a folder that exists, got `{given}`.",
                hint="leave it out to search the usual places",
            )
        found.append(given)
    if variable := os.environ.get(VARIABLE):
        found.append(Path(variable).expanduser())
    roots = checkouts()
    found += [root / "data" for root in roots]
    found += [root.parent / "shared" / "data" for root in roots]
    found.append(cache_folder())
    return list(dict.fromkeys(path.resolve() for path in found))


def checkouts() -> list[Path]:
    """Checkouts: that of the package's source, if it has one, and that of the current folder."""
    source = Path(__file__).resolve().parents[3]
    here = Path.cwd()
    owners = [path for path in (here, *here.parents) if _is_project(path)]
    current = owners[0] if owners else here
    return [source, current] if _is_project(source) else [current]


def _is_project(path: Path) -> bool:
    return (path / "pyproject.toml").is_file()


def cache_folder() -> Path:
    """Folder of the user's cache that belongs to the library; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "wellposed"


def locate(
    names: Sequence[str], subfolders: Sequence[str], folders: Sequence[Path], *, given: bool
) -> Path | None:
    """First file that has one of the names, or `None`.

    Args:
        names: Names of the file, the usual one first.
        subfolders: Folders of the set inside a data folder.
        folders: Data folders, in order.
        given: Whether the caller named the first folder, which may then be the set's own.
    """
    for position, folder in enumerate(folders):
        inside = [*subfolders, "."] if given and position == 0 else subfolders
        for subfolder in inside:
            for name in names:
                path = folder / subfolder / name
                if path.is_file():
                    return path
    return None
