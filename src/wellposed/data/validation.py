"""Validation parts, cut from the training part so that no choice is made on the test part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from wellposed.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wellposed.data.records import Split


def split_validation(
    split: Split,
    size: int | float,
    seed: int | np.random.Generator,
    by_group: bool | None = None,
) -> tuple[Split, Split]:
    """Training part without the validation images, and the validation part.

    Both keep the original order, and the same seed gives the same parts. Whole groups are drawn
    until they hold at least the images asked for: near copies of a training image (frames of one
    GTSRB track) would make a validation accuracy worthless.

    Args:
        split: Training part.
        size: Images for validation: a count (`int`), or a fraction (`float`) in (0, 1).
        seed: Seed, or a numpy generator, which is advanced.
        by_group: Whether groups stay together; `None` keeps them together if there are any.

    Raises:
        ConfigError: The size leaves one of the parts empty.
        DataError: Groups are asked for and the part has none.
    """
    count = _count(size, len(split))
    generator = np.random.default_rng(seed)
    if by_group is None:
        by_group = split.group is not None
    if not by_group:
        chosen = np.zeros(len(split), dtype=np.bool_)
        chosen[generator.permutation(len(split))[:count]] = True
    elif split.group is None:
        raise DataError(
            f"`by_group` needs groups, and this part of {len(split):,} images has none.",
            hint="leave `by_group` out; of the image sets, only `gtsrb32` has groups",
        )
    else:
        chosen = _whole_groups(split.group.numpy(), count, generator)
    if chosen.all():
        raise ConfigError(
            f"`size` takes whole groups for {count:,} images, which are all {len(split):,}.",
            hint="ask for fewer validation images",
        )
    kept, held_out = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return split.take(torch.from_numpy(kept)), split.take(torch.from_numpy(held_out))


def _count(size: int | float, total: int) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"`size` must be a count or a fraction, got {size!r}.")
    if isinstance(size, float):
        if not 0 < size < 1:
            raise ConfigError(
                f"`size` as a fraction must lie in (0, 1), got {size}.",
                hint="give an `int` for a number of images",
            )
        count = round(size * total)
    else:
        count = size
    if not 0 < count < total:
        raise ConfigError(
            f"`size` asks for {count:,} validation images; expected 1 to {total - 1:,} "
            f"of the {total:,}.",
            hint="a validation part and a training part must both have images",
        )
    return count


def _whole_groups(
    group: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    _, member, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    drawn = np.zeros(len(sizes), dtype=np.bool_)
    drawn[order[before < count]] = True
    return drawn[member]
