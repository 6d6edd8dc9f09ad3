"""Solver, Stopping and `solve`: the only loop over nonlinear iterations.

A solver proposes the next iterate and nothing else. Stopping, counting, freezing and dropping
samples that have converged happen here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from wellposed.core.maps import Map
from wellposed.core.peel import AS_IT_IS, plain, wrapped
from wellposed.errors import ConfigError, ShapeError
from wellposed.solvers.looks import all_at_most, next_look, worthwhile
from wellposed.solvers.rows import Ledger, Pages, Row, Sheet, cut_rows
from wellposed.solvers.solution import AdjointReport as AdjointReport
from wellposed.solvers.solution import Solution as Solution
from wellposed.solvers.solution import Tally as Tally
from wellposed.solvers.solution import describe as describe
from wellposed.solvers.status import Status as Status


@final
@dataclass(frozen=True)
class Stopping:
    """When a sample is done: ``rms(f(z) - z) <= atol + rtol * rms(f(z))``.

    Args:
        rtol: Relative tolerance; `None` picks by dtype: 1e-5 in float32, 1e-10 in float64, 1e-2 in
            half precisions.
        atol: Absolute tolerance; `None` picks the rounding unit of the dtype.
        max_evaluations: Budget a sample.
        first_look: No residual is looked at before this evaluation. On small states a look costs as
            much as half an evaluation, and a solve from a cold start is not done by then.
        every: After the first look, residuals are looked at after every so many evaluations.
    """

    rtol: float | None = None
    atol: float | None = None
    max_evaluations: int = 1000
    first_look: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise ConfigError(f"`{name}` must be finite and not negative, got {value}.")
        for name in ("max_evaluations", "first_look", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def tolerances(self, dtype: torch.dtype) -> tuple[float, float]:
        """`rtol` and `atol` for states of this dtype."""
        rtol = _DEFAULT_RTOL.get(dtype, 1e-2) if self.rtol is None else self.rtol
        return rtol, torch.finfo(dtype).eps if self.atol is None else self.atol


_DEFAULT_RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}


@final
@dataclass(frozen=True, eq=False)
class Shared:
    """A part of a solver's memory that belongs to the map and not to its samples."""

    value: Any


class Solver(ABC):
    """Proposes iterates. A frozen value: it never changes and holds nothing of a solve."""

    stride: ClassVar[int] = 1
    """Residuals are looked at after every so many iterations. Above 1 the solver does without the
    map's value, and the map is evaluated for these looks only."""

    def prepare(self, map_: Map) -> Map:
        """The map that is iterated and whose residual is reported; it has the same fixed points."""
        return map_

    def damping(self, map_: Map) -> float:
        """Factor by which `prepare` shrinks residuals; the loop divides it out."""
        return 1.0

    def init(self, map_: Map, z: Tensor) -> Any:
        """Memory of the iteration: a tree of batch-first tensors, numbers, `Shared` and `None`."""
        return None

    @abstractmethod
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next iterate and memory, given the prepared map, an iterate and its value."""

    def advance(self, map_: Map, z: Tensor, state: Any, times: int) -> tuple[Tensor, Any]:
        """What `propose` gives after `times` iterations of a closed map that nobody looks at."""
        for _ in range(times):
            z, state = self.propose(map_, z, z if self.stride > 1 else map_(z), state)
        return z, state


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: a norm that does not grow with the dimension."""
    flat = x.flatten(1)
    return torch.linalg.vector_norm(flat, dim=1) * (1 / sqrt(max(flat.shape[1], 1)))


def solve(
    map_: Map,
    start: Tensor | None,
    solver: Solver,
    stopping: Stopping | None = None,
    *,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Solution:
    """Iterate until every sample has met its tolerance, spent its budget or left the numbers.

    A sample that is done keeps the value, residual and count of that moment; as soon as it saves
    work, rows that are done leave the batch, in whole blocks. What a sample returns does not depend
    on its batch mates.

    Args:
        map_: The map, batched over the first dimension.
        start: First iterates; `None` for those of the form of the map that is iterated.
        solver: Proposes iterates.
        stopping: Tolerances and budget.
        watch: Called with the iterates and residuals of the live samples after each evaluation.

    Raises:
        ShapeError: The map changes the shape of its argument, or nobody says where to start.
    """
    with _off_the_tape():
        return _iterate(map_, start, solver, stopping or Stopping(), watch)[0]


def solve_with_image(
    map_: Map, start: Tensor | None, solver: Solver, stopping: Stopping
) -> tuple[Solution, Tensor | None]:
    """`solve`, and what the prepared map makes of the solution: that was evaluated anyway.

    `None` inside a function transform.
    """
    with _off_the_tape():
        return _iterate(map_, start, solver, stopping, image=True)


def _off_the_tape() -> AbstractContextManager[object]:
    # inside an autograd Function, where most solves happen, there is nothing to switch off
    return torch.no_grad() if torch.is_grad_enabled() else AS_IT_IS


def first_iterate(map_: Map, start: Tensor | None) -> Tensor:
    """`start`, or by default where the map itself says that its iteration starts; off the tape.

    Raises:
        ShapeError: Nobody says.
    """
    first = map_.start() if start is None else start
    if first is None:
        raise ShapeError(
            f"Nothing says where the iteration of a {type(map_).__name__} starts.",
            hint="give first iterates, or override `Cell.start`.",
        )
    return first.detach()


def _iterate(
    map_: Map,
    start: Tensor | None,
    solver: Solver,
    stopping: Stopping,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    *,
    image: bool = False,
) -> tuple[Solution, Tensor | None]:
    work = solver.prepare(map_.detach())
    z = first_iterate(work, start)
    rtol, atol = stopping.tolerances(z.dtype)
    kept, shape = work, z.shape
    rows = shape[0]
    if not rows:
        return Solution(z, Tally.unmeasured(z, 0), kept), z

    apart = not any(map(wrapped, (z, *work.tensors)))
    compact = work.batched is not None and apart
    slots = pending = None
    if compact and rows % work.block:
        z, work, slots, pending = _fill(z, work)
    columns = z.shape[1] if z.ndim == 2 else 0
    wider = work.widened() if apart and columns else None
    if wider is not None:
        # the zeros stay zeros and add nothing to a norm
        z, work = functional.pad(z, (0, wider.tensors[1].shape[1] - columns)), wider
    waiting, entered = rows, 0
    state = solver.init(work, z)
    # norms are compared unscaled: the common iteration is two norms, a difference, a test, a count
    damping = solver.damping(map_)
    unit = 1 / (sqrt(max(prod(shape[1:]), 1)) * damping)
    slack, floor = rtol * damping, atol / unit
    ledger: Ledger = Pages(rows, unit) if apart else Sheet(unit)
    wide = torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else None
    axes = tuple(range(1, z.ndim))
    count, following, limit = 0, stopping.first_look, stopping.max_evaluations
    if watch is None and work.closed:
        count = min(following, limit) - 1
        z, state = solver.advance(work, z, state, count)

    while True:
        count += 1
        look = count in (following, limit)
        if solver.stride > 1 and not look and watch is None:
            z, state = solver.propose(work, z, z, state)
            continue
        fz = work(z)
        if fz.dtype != z.dtype or fz.shape != z.shape:
            fz = _as_state(fz, z)
        if not look and watch is None:
            z, state = solver.propose(work, z, fz, state)
            continue
        distance = torch.linalg.vector_norm(fz - z, dim=axes, dtype=wide)
        if watch is not None:
            watch(z if wider is None else z[:, :columns], distance * unit)
        if look:
            following = next_look(count, max(solver.stride, stopping.every))
            size = torch.linalg.vector_norm(fz, dim=axes, dtype=wide)
            above = torch.sub(distance, size, alpha=slack)
            if pending is None and apart and all_at_most(above, floor):
                now = Row(z, distance, fz if image else None)
                ended = ledger.close(now, count, None, slots, over=None, clean=True)
                break
            # NaN compares false, as does the difference of two infinities: they end a sample too
            going = above > floor
            if pending is not None:
                going = going & pending
            still = int(torch.count_nonzero(going if apart else plain(going)))
            if count == limit or not still:
                over = going if still else None
                now = Row(z, distance, fz if image else None)
                ended = ledger.close(now, count, pending, slots, over=over)
                break
            if still < waiting:
                done = ~going if pending is None else pending ^ going
                ledger.write(Row(z, distance, fz if image else None), count, done, slots)
                pending, waiting = going, still
            room = waiting + (-waiting % work.block)
            if pending is not None and compact and worthwhile(z, room, count - entered):
                keep = torch.argsort((~pending).to(torch.int8), stable=True)[:room]
                slots = keep if slots is None else slots.index_select(0, keep)
                work = work.select(keep)
                z, fz, state, pending = cut_rows((z, fz, state, pending), keep)
                entered = count
                pending = None if waiting == room else pending
        z, state = solver.propose(work, z, fz, state)
    value, _, fz = ended.row
    if wider is not None:
        value = value[:, :columns].contiguous()
        fz = None if fz is None else fz[:, :columns].contiguous()
    return Solution(value, ended.tally, kept, clean=ended.clean), fz


def _fill(z: Tensor, work: Map) -> tuple[Tensor, Map, Tensor, Tensor]:
    """Repeat the first sample until the rows fill a block; also their slots and who is waiting."""
    rows = len(z)
    fill = -rows % work.block
    slots = torch.cat([torch.arange(rows), torch.zeros(fill, dtype=torch.long)]).to(z.device)
    pending = torch.arange(rows + fill, device=z.device) < rows
    return z.index_select(0, slots), work.select(slots), slots, pending


def _as_state(fz: Tensor, z: Tensor) -> Tensor:
    """The image in the precision of the state (autocast may have lowered it)."""
    if fz.shape != z.shape:
        raise ShapeError(
            f"The map sends a state of shape {tuple(z.shape)} to one of {tuple(fz.shape)}; both "
            "must be equal.",
            hint="look for a missing batch dimension or for broadcasting in the cell.",
        )
    return fz.to(z.dtype)
