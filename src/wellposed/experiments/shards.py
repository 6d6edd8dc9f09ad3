"""Work divided over processes that torchrun started: who does what, and waiting for the others."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import final

import torch.distributed as dist

from wellposed.errors import ConfigError

_PATIENCE = timedelta(days=7)  # a rank may search for hours while the others are done
_HINT = "start it as `torchrun --nproc-per-node 2 -m wellposed verify ...`."


@final
@dataclass(frozen=True)
class Shard:
    """One of several processes; each takes every `world`-th piece of work.

    Args:
        rank: Its number, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(
                f"`RANK` is {self.rank} with `WORLD_SIZE` {self.world}; expected 0 <= RANK < "
                "WORLD_SIZE.",
                hint=_HINT,
            )

    @property
    def leads(self) -> bool:
        """Whether this process merges, writes and talks."""
        return self.rank == 0

    def mine(self, pieces: Sequence[int]) -> list[int]:
        """The pieces of this process."""
        return list(pieces[self.rank :: self.world])

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def shard_of(variables: Mapping[str, str] | None = None) -> Shard:
    """The shard that the environment variables of torchrun describe; a single process without them.

    Raises:
        ConfigError: ``RANK`` or ``WORLD_SIZE`` is no such number.
    """
    given = os.environ if variables is None else variables
    found: list[int] = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        text = given.get(name, default)
        try:
            found.append(int(text))
        except ValueError:
            raise ConfigError(
                f"`{name}` is {text!r}, expected a whole number.", hint=_HINT
            ) from None
    return Shard(*found)


@contextmanager
def sharded() -> Generator[Shard]:
    """This process among those of torchrun, joined by gloo while the block lasts.

    Raises:
        ConfigError: There are several processes and no address to meet at.
    """
    shard = shard_of()
    if shard.world == 1:
        yield shard
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"`WORLD_SIZE` is {shard.world} and `MASTER_ADDR` is not set.", hint=_HINT
        )
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield shard
    finally:
        dist.destroy_process_group()
