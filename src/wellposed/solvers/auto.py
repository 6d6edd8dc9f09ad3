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
FIRST = 3
"""The first residual that rates are measured by: most solves are done before the second."""
MEMORY = 6
"""Steps that the accelerated iteration remembers: on the hard Metzler case one or two evaluations
more than with 10, and a cheaper step."""


class Watch(NamedTuple):
    """What `Auto` remembers.

    Args:
        level: Residual at the last look; `None` before the first.
        slow: Which samples are accelerated; `None` while none is.
        whole: Whether all are, so that nobody's rate is looked at any more.
        steps: Memory of the accelerated iteration.
        seen: Evaluations so far.
    """

    level: Tensor | None
    slow: Tensor | None
    whole: bool
    steps: Steps | None
    seen: int


@final
@dataclass(frozen=True)
class Auto(Solver):
    """Nonlinear Jacobi, handing slow samples over to Broyden's method on the same map.

    From the fifth evaluation on, the rate of each sample is looked at every second time. Samples
    whose residual shrinks by less than `rate` an evaluation are accelerated from then on, under the
    safeguard; the others get bit by bit what `Jacobi` gives them. On maps without canonical form it
    starts as `Picard`.

    Args:
        rate: Rate of convergence, in (0, 1), above which acceleration pays for its overhead.
    """

    rate: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"`rate` must lie in (0, 1), got {self.rate}.")

    @override
    def prepare(self, map_: Map) -> Map:
        return map_.canonical()

    @override
    def init(self, map_: Map, z: Tensor) -> Watch:
        return Watch(None, None, False, None, 0)

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Watch) -> tuple[Tensor, Watch]:
        level, slow, whole, steps, seen = state
        seen += 1
        if not whole and seen >= FIRST and (seen - FIRST) % STRIDE == 0:
            level, slow = observe(z, fz, level, slow, self.rate**STRIDE)
            whole = slow is not None and bool(plain(slow).all())
        if slow is None:
            return fz, Watch(level, None, False, None, seen)
        out, steps = quasi_newton(z, fz, steps, MEMORY, plainly=None if whole else ~slow)
        return out, Watch(level, slow, whole, steps, seen)


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
