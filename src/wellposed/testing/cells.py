"""Checks of a cell: determinism, independent samples, gradients, promised bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from wellposed.cells.base import AffineCell, Cell
from wellposed.core.norms import MaxNorm, TwoNorm
from wellposed.errors import AuditError
from wellposed.solvers.base import Status, Stopping, first_iterate, solve
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.solvers.splitting import PeacemanRachford


@dataclass(frozen=True)
class CellReport:
    """What `check_cell` found.

    Args:
        evaluations: Evaluations of the slowest sample.
        log_norm: Logarithmic max norm of ``A`` in the weights that the cell names, or the one of
            the 2-norm if only that is below 1; `None` for cells that are not affine.
        passed: Names of the checks that passed, in order.
    """

    evaluations: int
    log_norm: float | None
    passed: list[str] = field(default_factory=list[str])


def check_cell(cell: Cell, x: Tensor, *, max_evaluations: int = 1000) -> CellReport:
    """Check a cell on a batch of inputs.

    The map must be deterministic, keep shape and dtype, treat samples apart, and reach its
    parameters; the iteration must converge. For affine cells the canonical form must have the same
    fixed points, and the logarithmic norm must be below 1 where the activation has slopes in
    [0, 1]: that of the max norm in the cell's own weights, or that of the 2-norm in the cell's own
    metric (monotone cells, which are solved by splitting).

    Args:
        cell: The cell under test.
        x: At least two inputs.
        max_evaluations: Budget of the solve.

    Raises:
        AuditError: Names the first check that failed.
    """
    passed = list[str]()
    map_ = cell.bind(x)
    start = first_iterate(map_, cell.start(x, map_))
    _require("one state a sample", len(start) == len(x) and start.ndim >= 2, passed)
    with torch.no_grad():
        one, two = map_(start), cell.bind(x)(start)
        _require("shape and dtype are kept", _alike(one, start), passed)
        _require("evaluations are repeatable", torch.equal(one, two), passed)
        for row in range(min(len(x), 3)):
            alone = cell.bind(x[row : row + 1])(start[row : row + 1])
            near = torch.allclose(alone[0], one[row], rtol=1e-4, atol=1e-6)
            _require(f"sample {row} does not depend on its batch", near, passed)
    level = _check_affine(cell, passed) if isinstance(cell, AffineCell) else None
    solver = Picard() if level is None else PeacemanRachford() if level.monotone else Jacobi()
    found = solve(map_, start, solver, Stopping(max_evaluations=max_evaluations))
    done = bool((found.status == Status.CONVERGED).all())
    _require("the iteration converges", done, passed)
    z = found.value
    size = 1 + float(z.abs().max())
    gap = float((map_.detach()(z) - z).abs().max()) / size
    # the given form may amplify a residual of the canonical one; a wrong form is off by far more
    _require(f"it ends at a fixed point of the given map (gap {gap:.3g})", gap <= 1e-2, passed)
    _check_gradients(cell, x, z, passed)
    return CellReport(int(found.evaluations.max()), None if level is None else level.value, passed)


def _check_gradients(cell: Cell, x: Tensor, z: Tensor, passed: list[str]) -> None:
    wanted = [(n, p) for n, p in cell.named_parameters() if p.requires_grad]
    if not wanted:
        return
    with torch.enable_grad():
        fz = cell.bind(x)(z)
        mixed = (fz * torch.linspace(-1, 2, fz.numel(), dtype=fz.dtype).reshape(fz.shape)).sum()
        grads = torch.autograd.grad(mixed, [p for _, p in wanted], allow_unused=True)
    for (name, _), grad in zip(wanted, grads, strict=True):
        seen = grad is not None  # pyright: ignore[reportUnnecessaryComparison]
        alive = seen and bool(torch.isfinite(grad).all() & (grad != 0).any())
        _require(f"`{name}` has a finite gradient that is not zero", alive, passed)


class _Level(NamedTuple):
    """A logarithmic norm, and whether it is that of the 2-norm."""

    value: float
    monotone: bool


def _check_affine(cell: AffineCell, passed: list[str]) -> _Level:
    affine = cell.explicit().double()
    matrix = affine.A.materialise()
    eta = affine.witness
    if eta is not None:
        eta = eta.expand(affine.A.out_shape).flatten()
    level = _Level(float(MaxNorm(eta).log_norm(matrix)), False)
    low, high = cell.explicit().activation.slopes
    if low >= 0 and high <= 1:
        metric = affine.metric
        weights = None if metric is None else metric.expand(affine.A.out_shape).flatten().rsqrt()
        other = float(TwoNorm(weights).log_norm(matrix))
        if level.value >= 1 > other:
            level = _Level(other, True)
        _require(
            f"the logarithmic norm is below 1 (got {level.value:.4g})", level.value < 1, passed
        )
    return level


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _require(name: str, holds: bool, passed: list[str]) -> None:
    if not holds:
        raise AuditError(
            f"Cell check failed: {name}.", hint=f"checks passed before: {passed or 'none'}."
        )
    passed.append(name)
