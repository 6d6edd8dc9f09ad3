"""Training and validation images in memory, and the order in which an epoch sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.errors import ShapeError


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and class labels.

    Args:
        inputs: Floats, batch first; images have pixels in [0, 1].
        labels: Classes, int64.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ShapeError(
                f"There are {len(self.inputs)} inputs and {len(self.labels)} labels, expected as "
                "many of the one as of the other."
            )
        if not self.inputs.is_floating_point() or self.labels.dtype != torch.int64:
            raise ShapeError(
                f"The inputs are {self.inputs.dtype} and the labels {self.labels.dtype}, expected "
                "a floating-point type and int64.",
                hint="divide bytes by 255 first: `split.floats()` does.",
            )

    def __len__(self) -> int:
        return len(self.inputs)


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The permutation of one epoch: a function of its arguments, so nothing has to be saved."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=generator)


def shifted(inputs: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to `reach` pixels in both directions; zeros come in."""
    if not reach:
        return inputs
    height, width = inputs.shape[-2:]
    room = torch.nn.functional.pad(inputs, [reach] * 4)
    moves = torch.randint(0, 2 * reach + 1, (2, len(inputs)), generator=generator)
    rows = moves[0][:, None] + torch.arange(height)
    columns = moves[1][:, None] + torch.arange(width)
    samples = torch.arange(len(inputs))[:, None, None]
    # channels last after advanced indexing with a slice between the indices
    picked = room.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
