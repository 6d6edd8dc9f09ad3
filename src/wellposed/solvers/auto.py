"""Auto: plain iteration, and for the samples that converge slowly an accelerated one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.maps import Map
from wellposed.core.peel import plain
from wellposed.errors import ConfigError
from wellposed.solvers.base import Solver
from wellposed.solvers.broyden import Steps, quasi_newton

STRIDE = 2
"""Rates are observed over this many evaluations."""
FIRST = 4
"""No rate is looked at before this evaluation: most solves are nearly done by then."""
MEMORY = 8
"""Steps that the accelerated iteration remembers."""


class Watch(NamedTuple):
    """What `Auto` remembers.

    Args:
        level: Residual at the last look; `None` before the first.
        slow: Which samples are accelerated; `None` while none is.
        steps: Memory of the accelerated iteration.
        seen: Evaluations so far.
    """

    level: Tensor | None
    slow: Tensor | None
    steps: Steps | None
    seen: int


@final
@dataclass(frozen=True)
class Auto(Solver):
    """Nonlinear Jacobi, handing slow samples over to Broyden's method on the same map.

    From the fourth evaluation on, the rate of each sample is looked at every second time. Samples
    whose residual shrinks by less than `rate` an evaluation are accelerated from then on, under the
    safeguard; the others get bit by bit what `Jacobi` gives them. On maps without canonical form it
    starts as `Picard`.

    Args:
        rate: Rate of convergence, in (0, 1), above which acceleration pays for its overhead.
    """

    rate: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"`rate` must lie in (0, 1), got {self.rate}.")

    @override
    def prepare(self, map_: Map) -> Map:
        return map_.canonical()

    @override
    def init(self, map_: Map, z: Tensor) -> Watch:
        return Watch(None, None, None, 0)

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Watch) -> tuple[Tensor, Watch]:
        level, slow, steps, seen = state
        seen += 1
        if seen >= FIRST and seen % STRIDE == 0:
            level, slow = observe(z, fz, level, slow, self.rate**STRIDE)
        if slow is None:
            return fz, Watch(level, None, None, seen)
        out, steps = quasi_newton(z, fz, steps, MEMORY)
        out = torch.where(slow.reshape(-1, *[1] * (z.ndim - 1)), out, fz)
        return out, Watch(level, slow, steps, seen)


def observe(
    z: Tensor, fz: Tensor, level: Tensor | None, slow: Tensor | None, factor: float
) -> tuple[Tensor, Tensor | None]:
    """Residuals now, and which samples have not reduced theirs by `factor` since the last look."""
    size = torch.linalg.vector_norm((fz - z).flatten(1), dim=1)
    if level is None:
        return size, slow
    poor = size > factor * level
    if slow is not None:
        return size, slow | poor
    return size, poor if int(torch.count_nonzero(plain(poor))) else None
