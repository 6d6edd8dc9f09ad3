"""Solver, Solution, Status and `solve`: the only loop over nonlinear iterations.

A solver proposes the next iterate and nothing else. Stopping, counting, freezing and dropping
samples that have converged happen here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from wellposed.core.maps import Map
from wellposed.core.peel import plain, wrapped
from wellposed.errors import ConfigError, NonConvergenceError, ShapeError
from wellposed.solvers.looks import all_at_most, next_look, worthwhile
from wellposed.solvers.rows import Ledger, Pages, Row, Sheet, cut_rows
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


@dataclass(eq=False)
class AdjointReport:
    """Filled by the backward pass: how the adjoint equation was solved."""

    evaluations: Tensor | None = None
    residual: Tensor | None = None
    status: Tensor | None = None

    @property
    def converged(self) -> bool | None:
        """Whether every sample reached its tolerance; `None` before a backward pass."""
        return None if self.status is None else bool((self.status == Status.CONVERGED).all())


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A batch of fixed points and what is known about each.

    Args:
        value: The iterates, one a sample.
        residual: ``rms(f(z) - z)`` at `value`, a sample.
        evaluations: Evaluations of the map that each sample took part in.
        status: `Status` codes, a sample (int8).
        map_: The prepared map, detached; `None` if it was not kept.
        adjoint: Filled during a backward pass.
        clean: Whether every sample is known to have converged without looking at `status`; false
            if nobody knows.
    """

    value: Tensor
    residual: Tensor
    evaluations: Tensor
    status: Tensor
    map_: Map | None = None
    adjoint: AdjointReport | None = None
    clean: bool = False

    @property
    def converged(self) -> Tensor:
        """Whether each sample reached its tolerance."""
        return self.status == Status.CONVERGED

    @property
    def error_bound(self) -> Tensor | None:
        """Certified bound of ``max_i |z_i - z*_i|``, a sample; `None` where nothing is proved.

        Recomputed from the map's weights (`wellposed.core.posterior`); it holds whether or not
        the solve converged.
        """
        if self.map_ is None:
            return None
        return self.map_.error_bound(self.value.detach())

    def require(self) -> Solution:
        """This solution if every sample converged.

        Raises:
            NonConvergenceError: Some sample did not.
        """
        failed = plain(self.status) != Status.CONVERGED
        if bool(failed.any()):
            raise NonConvergenceError(describe(self), hint=_HINT)
        return self


_HINT = (
    "raise `max_evaluations`, loosen `rtol`, or choose `solver=Auto()`; `Solution.status` tells "
    "which samples failed."
)


def describe(solution: Solution) -> str:
    """One sentence about the samples that did not converge."""
    status, residual = plain(solution.status), plain(solution.residual)
    failed = status != Status.CONVERGED
    kinds = [s for s in Status if s != Status.CONVERGED and bool((status == s).any())]
    worst = float(residual[failed].nan_to_num(inf).max()) if bool(failed.any()) else 0.0
    why = " and ".join(kind.message for kind in kinds)
    return (
        f"{int(failed.sum())} of {failed.numel()} samples did not converge (largest residual "
        f"{worst:.3g}): {why}."
    )


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample: a norm that does not grow with the dimension."""
    flat = x.flatten(1)
    return torch.linalg.vector_norm(flat, dim=1) * (1 / sqrt(max(flat.shape[1], 1)))


def solve(
    map_: Map,
    start: Tensor,
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
        start: First iterates.
        solver: Proposes iterates.
        stopping: Tolerances and budget.
        watch: Called with the iterates and residuals of the live samples after each evaluation.

    Raises:
        ShapeError: The map changes the shape of its argument.
    """
    with torch.no_grad():
        return _iterate(map_, start, solver, stopping or Stopping(), watch)[0]


def solve_with_image(
    map_: Map, start: Tensor, solver: Solver, stopping: Stopping
) -> tuple[Solution, Tensor | None]:
    """`solve`, and what the prepared map makes of the solution: that was evaluated anyway.

    `None` inside a function transform.
    """
    with torch.no_grad():
        return _iterate(map_, start, solver, stopping, image=True)


def _iterate(
    map_: Map,
    start: Tensor,
    solver: Solver,
    stopping: Stopping,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    *,
    image: bool = False,
) -> tuple[Solution, Tensor | None]:
    rtol, atol = stopping.tolerances(start.dtype)
    work = solver.prepare(map_.detach())
    kept, rows = work, start.shape[0]
    z = start.detach()
    if not rows:
        empty = z.new_zeros(0)
        return Solution(z, empty, empty.long(), empty.to(torch.int8), kept), z

    apart = not any(map(wrapped, (z, *work.tensors)))
    compact = work.batched is not None and apart
    z, work, slots, pending = _fill(z, work) if compact else (z, work, None, None)
    columns = z.shape[1] if z.ndim == 2 else 0
    wider = work.widened() if apart and columns else None
    if wider is not None:
        # the zeros stay zeros and add nothing to a norm
        z, work = functional.pad(z, (0, wider.tensors[1].shape[1] - columns)), wider
    ledger: Ledger = Pages(rows) if apart else Sheet()
    waiting, entered = rows, 0
    state = solver.init(work, z)
    # norms are compared unscaled: the common iteration is two norms, a difference, a test, a count
    unit = 1 / (sqrt(max(prod(start.shape[1:]), 1)) * solver.damping(map_))
    slack, floor = rtol * solver.damping(map_), atol / unit
    wide = torch.float32 if z.dtype in (torch.float16, torch.bfloat16) else None
    axes = tuple(range(1, z.ndim))
    count, following, limit = 0, stopping.first_look, stopping.max_evaluations

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
    value, residual, fz = ended.row
    if wider is not None:
        value = value[:, :columns].contiguous()
        fz = None if fz is None else fz[:, :columns].contiguous()
    found = Solution(
        value, residual * unit, ended.evaluations, ended.status, kept, clean=ended.clean
    )
    return found, fz


def _fill(z: Tensor, work: Map) -> tuple[Tensor, Map, Tensor | None, Tensor | None]:
    """Repeat the first sample until the rows fill a block; also their slots and who is waiting."""
    rows = len(z)
    fill = -rows % work.block
    if not fill:
        return z, work, None, None
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
