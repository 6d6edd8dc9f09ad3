"""Solution: a batch of fixed points, and what is known about each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import final

import torch
from torch import Tensor

from wellposed.core.maps import Map
from wellposed.core.peel import plain, transforming
from wellposed.errors import NonConvergenceError
from wellposed.solvers.status import Status


@final
class Tally:
    """How every sample of a batch fared.

    Args:
        residual: ``rms(f(z) - z)``, a sample.
        evaluations: Evaluations of the map that each sample took part in.
        status: `Status` codes, a sample (int8).
    """

    __slots__ = ("_kept", "_late")

    def __init__(self, residual: Tensor, evaluations: Tensor, status: Tensor) -> None:
        self._kept: tuple[Tensor, Tensor, Tensor] | None = residual, evaluations, status
        self._late: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None

    @classmethod
    def together(cls, distance: Tensor, unit: float, count: int) -> Tally:
        """Of samples that converged all at once; put together when somebody asks.

        Args:
            distance: Norms of ``f(z) - z``, a sample.
            unit: Makes residuals of them.
            count: Evaluations.
        """

        def late() -> tuple[Tensor, Tensor, Tensor]:
            counts = torch.full_like(distance, count, dtype=torch.long)
            return distance * unit, counts, torch.zeros_like(distance, dtype=torch.int8)

        made = cls.__new__(cls)
        made._kept, made._late = None, late
        return made

    @classmethod
    def unmeasured(cls, value: Tensor, count: int) -> Tally:
        """Of values whose residual nobody looked at: it is NaN."""
        rows = plain(value).new_zeros(len(value))
        return cls(rows * torch.nan, rows.long() + count, rows.to(torch.int8))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, evaluations and status."""
        if self._kept is not None:
            return self._kept
        assert self._late is not None
        with torch.no_grad():
            made = self._late()
        if not transforming():  # what is made inside a transform is of no use outside
            self._kept, self._late = made, None
        return made

    def plain(self) -> Tally:
        """The numbers under all transforms."""
        return Tally(*map(plain, self.read())) if transforming() else self


@dataclass(eq=False)
class AdjointReport:
    """Filled by the backward pass: how the adjoint equation was solved."""

    tally: Tally | None = field(default=None, repr=False)

    @property
    def residual(self) -> Tensor | None:
        """``rms(M u + rhs - u)``, a sample; `None` before a backward pass."""
        return None if self.tally is None else self.tally.read()[0]

    @property
    def evaluations(self) -> Tensor | None:
        """Products that each sample took part in; `None` before a backward pass."""
        return None if self.tally is None else self.tally.read()[1]

    @property
    def status(self) -> Tensor | None:
        """`Status` codes, a sample; `None` before a backward pass."""
        return None if self.tally is None else self.tally.read()[2]

    @property
    def converged(self) -> bool | None:
        """Whether every sample reached its tolerance; `None` before a backward pass."""
        status = self.status
        return None if status is None else bool((status == Status.CONVERGED).all())


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A batch of fixed points and what is known about each.

    Args:
        value: The iterates, one a sample.
        tally: How each sample fared.
        map_: The prepared map, detached; `None` if it was not kept.
        adjoint: Filled during a backward pass.
        clean: Whether every sample is known to have converged without looking at `status`; false
            if nobody knows.
    """

    value: Tensor
    tally: Tally = field(repr=False)
    map_: Map | None = None
    adjoint: AdjointReport | None = None
    clean: bool = False

    @property
    def residual(self) -> Tensor:
        """``rms(f(z) - z)`` at `value`, a sample."""
        return self.tally.read()[0]

    @property
    def evaluations(self) -> Tensor:
        """Evaluations of the map that each sample took part in (int64)."""
        return self.tally.read()[1]

    @property
    def status(self) -> Tensor:
        """`Status` codes, a sample (int8)."""
        return self.tally.read()[2]

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

    def on_tape(self, value: Tensor, adjoint: AdjointReport | None) -> Solution:
        """This solution with a value that carries history, and the report of its backward pass."""
        return Solution(value, self.tally, self.map_, adjoint, self.clean)

    def require(self) -> Solution:
        """This solution if every sample converged.

        Raises:
            NonConvergenceError: Some sample did not.
        """
        failed = plain(self.status) != Status.CONVERGED
        if bool(failed.any()):
            raise NonConvergenceError(describe(self.tally), hint=_HINT)
        return self


_HINT = (
    "raise `max_evaluations`, loosen `rtol`, or choose `solver=Auto()`; `Solution.status` tells "
    "which samples failed."
)


def describe(tally: Tally) -> str:
    """One sentence about the samples that did not converge."""
    residual, _, status = map(plain, tally.read())
    failed = status != Status.CONVERGED
    kinds = [s for s in Status if s != Status.CONVERGED and bool((status == s).any())]
    worst = float(residual[failed].nan_to_num(inf).max()) if bool(failed.any()) else 0.0
    why = " and ".join(kind.message for kind in kinds)
    return (
        f"{int(failed.sum())} of {failed.numel()} samples did not converge (largest residual "
        f"{worst:.3g}): {why}."
    )
