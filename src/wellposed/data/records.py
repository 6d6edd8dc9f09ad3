"""What a loaded data set is: its parts, its classes, and the digests of what was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wellposed.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


# Tensors have no single truth value, hence no comparison by field; identity is what remains.
@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Part of a labelled image set.

    Args:
        images: Pixels 0..255, uint8 of shape (n, channels, height, width).
        labels: Class of each image, int64 of shape (n,).
        group: What must not be torn apart by a validation split (the track of a GTSRB frame, as
            ``1000 label + track``), int64 of shape (n,).
        index: Position of each image in the original part, int64 of shape (n,); `None` if the
            images are the original part, in order.
    """

    images: Tensor
    labels: Tensor
    group: Tensor | None = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ShapeError(
                f"`images` must be uint8 of shape (n, channels, height, width), got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        columns = {"labels": self.labels, "group": self.group, "index": self.index}
        for name, column in columns.items():
            if column is not None and (
                column.shape != self.images.shape[:1] or column.dtype != torch.int64
            ):
                raise ShapeError(
                    f"`{name}` must be int64 of shape ({len(self.images)},), one for each image, "
                    f"got {column.dtype} of shape {tuple(column.shape)}."
                )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        extra = [name for name in ("group", "index") if getattr(self, name) is not None]
        return f"Split({' x '.join(map(str, self.images.shape))}{''.join(f', {x}' for x in extra)})"

    def floats(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixels in [0, 1], that is ``images / 255``, of shape (n, channels, height, width).

        Args:
            dtype: A floating-point type.
        """
        if not dtype.is_floating_point:
            raise ConfigError(
                f"`dtype` must be a floating-point type, got {dtype}.",
                hint="take `images` for the pixels as bytes",
            )
        return self.images.to(dtype).div_(255)

    def take(self, positions: Tensor) -> Split:
        """The images at some positions, in the order given; `index` still tells the originals.

        Args:
            positions: Positions in this part, int64 of shape (m,).
        """
        return Split(
            images=self.images[positions],
            labels=self.labels[positions],
            group=None if self.group is None else self.group[positions],
            index=positions.clone() if self.index is None else self.index[positions],
        )


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel of the training pixels in [0, 1].

    Args:
        mean: One mean per channel.
        std: One standard deviation per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled image set as it was read.

    Args:
        name: Name in the registry.
        train: Training part; cut validation from it with `split_validation`.
        test: Test part, never to be used for a choice.
        classes: Name of each class, in the order of the labels.
        normalisation: Usual scaling of the pixels. The images are *not* scaled by it: a radius
            is measured in pixels, so the scaling belongs into the network.
        digests: SHA-256 of each file that was read, by file name.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    normalisation: Normalisation
    digests: Mapping[str, str]
