"""What branch and bound is asked, with which budget, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from wellposed.certify.dual import Scope
from wellposed.certify.system import System
from wellposed.certify.wellposed import Wellposed
from wellposed.core.network import Network
from wellposed.errors import ConfigError


@final
@dataclass(frozen=True)
class Budget:
    """When to stop, and how to work.

    Args:
        seconds: For all rows together, by the clock on the wall, which is what a user waits for;
            figures of time spent, such as `Verdict.seconds`, are CPU time of this process instead,
            and comparable between machines at work. 0 leaves every row unknown.
        nodes: For all rows together.
        batch: Nodes bounded at a time.
        root: Steps of ascent at the roots.
        steps: Steps of ascent at every other node.
        probes: Inputs tried in every batch.

    Raises:
        ConfigError: A number is negative, or the batch is empty.
    """

    seconds: float = 10.0
    nodes: int = 100_000
    batch: int = 256
    root: int = 40
    steps: int = 10
    probes: int = 8

    def __post_init__(self) -> None:
        if min(self.seconds, self.nodes, self.probes) < 0 or min(self.batch, self.steps) < 1:
            raise ConfigError(f"A budget must not be negative and its batch not empty: {self}.")


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What is known about one row.

    Args:
        status: Verified: ``r z + s x + t`` exceeds the goal on the whole region.
        lower: Proved lower bound of its minimum; -inf if nothing was bounded.
        upper: Proved upper bound of the minimum, from an input; inf if none was tried.
        witness: That input, shape (d,).
        split: The tree in preorder, neuron or -1, "off" before "on", shape (N,).
        multipliers: One a leaf in that order, shape (L, n); zero at open leaves.
        bounds: What they prove, shape (L,); -inf at open leaves.
        nodes: Nodes bounded for this row.
        interrupted: Whether Ctrl-C ended the search.
    """

    status: Literal["verified", "falsified", "unknown"]
    lower: float
    upper: float
    witness: Tensor | None
    split: Tensor
    multipliers: Tensor
    bounds: Tensor
    nodes: int
    interrupted: bool = False


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """A network on one region.

    Args:
        network: Explicit weights, one-kink activations.
        system: The same network from its adjoint side.
        scope: The region with proved preactivation bounds, a batch of one.
        wellposed: Witness of well-posedness.
    """

    network: Network
    system: System
    scope: Scope
    wellposed: Wellposed
