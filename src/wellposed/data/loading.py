"""Loading an image set by name: find its files, check them, decode them."""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import TYPE_CHECKING

from wellposed.data.digests import read_verified
from wellposed.data.folders import VARIABLE, locate, search_folders
from wellposed.data.layouts import Content
from wellposed.data.records import ImageSet
from wellposed.data.registry import IMAGE_SETS, Description
from wellposed.errors import ConfigError, DataError

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path


def load_images(name: str, folder: str | PathLike[str] | None = None) -> ImageSet:
    """Image set with every file checked against its digest.

    Nothing is downloaded, and no set stands in for another one.

    Args:
        name: Name in the registry: `mnist`, `fashion_mnist`, `cifar10` (lossy JPEG),
            `cifar10_exact` (lossless, 8,068 + 1,017 images), `gtsrb32` (every third training
            frame), `mnist_mini`, `fashion_mnist_mini`.
        folder: Folder to search first, see `wellposed.data.search_folders`; either one with a
            folder for each set, or that of the set itself.

    Raises:
        ConfigError: No set has this name.
        DataError: A file is absent, damaged or not the one expected.
    """
    description = describe(name)
    folders = search_folders(folder)
    digests: dict[str, str] = {}

    def open_file(role: str) -> Content:
        path = _find(description, role, folders, given=folder is not None)
        if path is None:
            raise _absent(description, role, folders)
        data, digests[path.name] = read_verified(path, description.files[role])
        return Content(data, str(path))

    train, test = description.layout(open_file)
    return ImageSet(
        name=name,
        train=train,
        test=test,
        classes=description.classes,
        normalisation=description.normalisation,
        digests=MappingProxyType(digests),
    )


def is_available(name: str, folder: str | PathLike[str] | None = None) -> bool:
    """Whether every file of a set is found; what is in the files is not looked at.

    Args:
        name: Name in the registry.
        folder: Folder to search first.
    """
    description = describe(name)
    folders, given = search_folders(folder), folder is not None
    return all(_find(description, role, folders, given=given) for role in description.files)


def describe(name: str) -> Description:
    """Entry of the registry: files and digests, classes, licence.

    Args:
        name: Name in the registry.

    Raises:
        ConfigError: No set has this name.
    """
    if name not in IMAGE_SETS:
        close = difflib.get_close_matches(name, IMAGE_SETS, n=1)
        raise ConfigError(
            f"There is no image set `{name}`; expected one of "
            f"{', '.join(f'`{known}`' for known in IMAGE_SETS)}.",
            hint=f"did you mean `{close[0]}`?" if close else "",
        )
    return IMAGE_SETS[name]


def _find(description: Description, role: str, folders: list[Path], *, given: bool) -> Path | None:
    names = description.files[role].names
    return locate(names, description.subfolders, folders, given=given)


def _absent(description: Description, role: str, folders: list[Path]) -> DataError:
    searched = "".join(
        f"\n  {folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in folders
    )
    subfolder, file = description.subfolders[0], description.files[role].names[0]
    return DataError(
        f"The image set `{description.name}` needs the file `{subfolder}/{file}`, which is in none "
        f"of these folders:{searched}",
        hint=(
            f"pass a `folder` that holds `{subfolder}/{file}`, or set ${VARIABLE} to it; "
            f"nothing is downloaded. {description.origin}"
        ),
    )
