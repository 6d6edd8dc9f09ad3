"""Links: parts of a network whose features on both sides somebody wants to look at."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.checks import check_sizes


@final
class Link(nn.Module):
    """``y = body(x)``, marked as a part across which features are compared.

    Args:
        body: Any module.
        channels: Length of the second dimension of its outputs.

    Raises:
        ShapeError: `channels` is not positive.
    """

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        check_sizes(channels=channels)
        self.body = body
        self.directions: Tensor
        # where power iterations start: a row for this network, one for that it is compared with;
        # kept with the weights, so that a run that goes on from a checkpoint has the same bits
        self.register_buffer("directions", torch.full((2, channels), 1 / sqrt(channels)))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@final
@dataclass(frozen=True, eq=False)
class Crossing:
    """One pass through a link.

    Args:
        link: Which.
        source: Its input, on the tape.
        target: Its output, on the tape.
    """

    link: Link
    source: Tensor
    target: Tensor


@final
@dataclass(eq=False)
class Passes:
    """What was seen of a network: the inputs of its passes, and all crossings in their order."""

    inputs: list[Tensor] = field(default_factory=list[Tensor])
    crossings: list[Crossing] = field(default_factory=list[Crossing])


@contextmanager
def watched_links(model: nn.Module) -> Generator[Passes]:
    """Inside this block the passes through a network and its links are written down.

    Args:
        model: All `Link` modules in it are watched; hooks are gone at the end of the block.
    """
    seen = Passes()

    def enter(module: nn.Module, inputs: Any) -> None:
        seen.inputs.append(inputs[0])

    def cross(link: nn.Module, inputs: Any, output: Any) -> None:
        assert isinstance(link, Link)
        seen.crossings.append(Crossing(link, inputs[0], output))

    handles = [model.register_forward_pre_hook(enter)]
    handles += [m.register_forward_hook(cross) for m in model.modules() if isinstance(m, Link)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
