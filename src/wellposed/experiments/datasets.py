"""From a data section to examples in memory, with the digests of what was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from wellposed.data import ImageSet, Split, load_images, split_validation
from wellposed.errors import ConfigError
from wellposed.experiments.sections import Data
from wellposed.training.data import Examples


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of an image set that an experiment uses.

    Args:
        source: The set as it was read.
        train: What is learnt.
        validation: Held out of it to choose by; `None` if nothing is chosen.
        test: Looked at once, at the end.
    """

    source: ImageSet
    train: Split
    validation: Split | None
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load_parts(section: Data) -> Parts:
    """Read, limit and split.

    Raises:
        ConfigError: The name is unknown, or no training images are left.
        DataError: A file is absent or damaged.
    """
    source = load_images(section.name, section.folder)
    train, test = _first(source.train, section.train_limit), _first(source.test, section.test_limit)
    validation = None
    if section.validation >= len(train):
        raise ConfigError(
            f"`data.validation` is {section.validation:,}, expected fewer than the {len(train):,} "
            "training images."
        )
    if section.validation:
        train, validation = split_validation(train, section.validation, section.split_seed)
    return Parts(source, train, validation, test)


def examples(split: Split) -> Examples:
    """Pixels in [0, 1] and labels."""
    return Examples(split.floats(), split.labels)


def _first(split: Split, limit: int) -> Split:
    return split if not limit or limit >= len(split) else split.take(torch.arange(limit))
