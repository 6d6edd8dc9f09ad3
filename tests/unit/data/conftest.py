"""Image sets for the tests: loaded once, and skipped by name where they are absent."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from wellposed.data import ImageSet, is_available, load_images


def require(name: str) -> None:
    """Skip the test if a file of the set is absent; a damaged file is no reason to skip."""
    # MNIST comes with the checkout: without it the tests fail
    if name != "mnist" and not is_available(name):
        pytest.skip(f"the image set `{name}` is absent: put it into a folder of $WELLPOSED_DATA")


@functools.cache
def _loaded(name: str) -> ImageSet:
    return load_images(name)


@pytest.fixture(scope="session")
def needs() -> Callable[[str], None]:
    return require


@pytest.fixture(scope="session")
def image_set() -> Callable[[str], ImageSet]:
    def load(name: str) -> ImageSet:
        require(name)
        return _loaded(name)

    return load


@pytest.fixture(scope="session")
def mnist(image_set) -> ImageSet:
    """MNIST, loaded before a test can hide the folders."""
    return image_set("mnist")
