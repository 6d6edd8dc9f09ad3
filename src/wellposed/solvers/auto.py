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
MEMORY = 7
"""Steps that the accelerated iteration remembers: of 4 to 10 the cheapest over 24 hard Metzler
cases (100 to 400 states, margin 0.9 and 0.95, both precisions), and no sample needed a long time in
any of them; with 6 one did."""


class Watch(NamedTuple):
    """What `Auto` remembers.

    Args:
        first: Iterate and value at the first look: their residual is measured if there is a second
            one, which most solves do not live to see.
        level: Residual at the last look; `None` before the second.
        slow: Which samples are accelerated; `None` while none is.
        whole: Whether all are, so that nobody's rate is looked at any more.
        steps: Memory of the accelerated iteration.
        seen: Evaluations so far.
    """

    first: tuple[Tensor, Tensor] | None
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
        return Watch(None, None, None, False, None, 0)

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Watch) -> tuple[Tensor, Watch]:
        first, level, slow, whole, steps, seen = state
        seen += 1
        if seen == FIRST:
            first = z, fz
        elif not whole and seen > FIRST and (seen - FIRST) % STRIDE == 0:
            if first is not None:
                level, first = distance(*first), None
            level, slow = observe(z, fz, level, slow, self.rate**STRIDE)
            whole = slow is not None and bool(plain(slow).all())
        if slow is None:
            return fz, Watch(first, level, None, False, None, seen)
        out, steps = quasi_newton(z, fz, steps, MEMORY, plainly=None if whole else ~slow)
        return out, Watch(None, level, slow, whole, steps, seen)

    @override
    def advance(self, map_: Map, z: Tensor, state: Watch, times: int) -> tuple[Tensor, Watch]:
        if state.seen or not FIRST <= times < FIRST + STRIDE:
            return super().advance(map_, z, state, times)
        # no rate is looked at before: the same iterates without the bookkeeping of each
        z = map_.repeated(z, FIRST - 1)
        fz = map_(z)
        first = z, fz
        return map_.repeated(fz, times - FIRST), Watch(first, None, None, False, None, times)


def distance(z: Tensor, fz: Tensor) -> Tensor:
    """Norm of the step from `z` to `fz`, a sample."""
    return torch.linalg.vector_norm((fz - z).flatten(1), dim=1)


def observe(
    z: Tensor, fz: Tensor, level: Tensor | None, slow: Tensor | None, factor: float
) -> tuple[Tensor, Tensor | None]:
    """Residuals now, and which samples have not reduced theirs by `factor` since the last look."""
    size = distance(z, fz)
    if level is None:
        return size, slow
    poor = size > factor * level
    if slow is not None:
        return size, slow | poor
    return size, poor if int(torch.count_nonzero(plain(poor))) else None
