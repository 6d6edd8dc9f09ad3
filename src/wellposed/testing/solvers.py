"""`check_solver`: what every solver must do, for ours and for those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap, Map
from wellposed.core.operators import Dense
from wellposed.solvers.base import Solution, Solver, Status, Stopping, rms, solve


def contractive_map(
    samples: int = 13, states: int = 12, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> AffineMap:
    """A dense ReLU map whose matrix has logarithmic max norm 0.4 and diagonal entries below 0."""
    make = torch.Generator().manual_seed(seed)
    off = torch.randn(states, states, generator=make, dtype=torch.float64)
    off.fill_diagonal_(0)
    A = off + torch.diag(0.4 - off.abs().sum(1))
    q = torch.randn(samples, states, generator=make, dtype=torch.float64)
    return AffineMap(Dense(A.to(dtype)), q.to(dtype), ReLU())


def check_solver(
    solver: Solver,
    *,
    maps: Iterable[Map] | None = None,
    stopping: Stopping | None = None,
    bitwise: bool = False,
) -> None:
    """Check that a solver keeps the contract of `wellposed.solvers`; raise `AssertionError` if not.

    Checked: the solver is a frozen, hashable value that a solve does not change; the reported
    residual and number of evaluations are true; a solution does not depend on batch mates, their
    order or their NaNs; budgets of 1 and 2 are kept; a start at the solution costs one evaluation;
    empty, single and non-contiguous batches work; divergence is flagged; the tolerance does not
    depend on the dimension.

    Args:
        solver: The solver under test.
        maps: Maps with samples along dimension 0 that it must solve, in float64 and with known
            `Map.batched`; affine ReLU maps by default.
        stopping: Tolerances and budget that it must reach on them; rtol 1e-9 by default.
        bitwise: Whether results must be bitwise independent of batch mates (plain iterations);
            otherwise to 100 times the tolerance.
    """
    stopping = stopping or Stopping(rtol=1e-9, atol=0.0, max_evaluations=5000)
    _check_value(solver)
    for map_ in [contractive_map()] if maps is None else list(maps):
        start = _start(map_)
        whole = solve(map_, start, solver, stopping)
        _claim(bool(whole.converged.all()), f"{solver} does not converge: {whole.status.tolist()}")
        _check_report(map_, solver, whole, stopping)
        _check_batch(map_, solver, whole, stopping, bitwise=bitwise)
        _check_poison(map_, solver, whole, stopping)
        _check_budget(map_, solver, stopping)
        _check_warm(map_, solver, whole, stopping)
        _check_shapes(map_, solver, whole, stopping, bitwise=bitwise)
    if maps is None:
        _check_divergence(solver)
        _check_dimension(solver, stopping)


def counted(map_: Map, solver: Solver, start: Tensor, stopping: Stopping) -> tuple[Solution, int]:
    """A solve and how many iterates the loop really looked at."""
    calls = 0

    def count(_z: Tensor, _residual: Tensor) -> None:
        nonlocal calls
        calls += 1

    return solve(map_, start, solver, stopping, watch=count), calls


def _claim(fact: bool, message: str) -> None:
    if not fact:
        raise AssertionError(message)


def _start(map_: Map) -> Tensor:
    start = map_.start()
    _claim(start is not None, "the maps under test must know where to start")
    assert start is not None
    return start


def _rows(map_: Map, rows: Iterable[int]) -> Map:
    return map_.select(torch.tensor(list(rows), dtype=torch.long))


def _check_value(solver: Solver) -> None:
    _claim(is_dataclass(solver), f"{type(solver).__name__} is not a dataclass")
    value: Any = solver
    _claim(hash(value) == hash(replace(value)), f"{solver} is not a hashable value")
    _claim(value == replace(value), f"{solver} does not equal a copy of itself")
    name = fields(value)[0].name if fields(value) else "anything"
    try:
        setattr(solver, name, None)
    except AttributeError:
        return
    raise AssertionError(f"{type(solver).__name__} is not frozen: `{name}` could be set")


def _check_report(map_: Map, solver: Solver, whole: Solution, stopping: Stopping) -> None:
    before = (hash(solver), repr(solver), vars(solver).copy())
    again, calls = counted(map_, solver, _start(map_), stopping)
    _claim(before == (hash(solver), repr(solver), vars(solver)), f"{solver} was changed by a solve")
    _claim(torch.equal(again.value, whole.value), "two equal solves differ")
    _claim(
        int(again.evaluations.max()) == calls,
        f"reported {int(again.evaluations.max())} evaluations, made {calls}",
    )
    work = solver.prepare(map_.detach())
    image = work(whole.value)
    true = rms(image - whole.value) / solver.damping(map_)
    _near(whole.residual, true, 1e-12 + 1e-6 * true, "the reported residual is not the true one")
    rtol, atol = stopping.tolerances(true.dtype)
    worst = (true - (rtol * rms(image) + atol)).max()
    _claim(float(worst) <= 1e-14, "a sample counts as converged above its tolerance")
    plain = map_.canonical()
    gap = rms(plain(whole.value) - whole.value)
    _claim(
        bool((gap <= 1e3 * (rtol * rms(image) + atol)).all()),
        "the result is not a fixed point of the map that was given",
    )


def _check_batch(
    map_: Map, solver: Solver, whole: Solution, stopping: Stopping, *, bitwise: bool
) -> None:
    samples = len(whole.value)
    make = torch.Generator().manual_seed(1)
    order = torch.randperm(samples, generator=make).tolist()
    half = samples // 2
    for rows in (order, range(half), range(half, samples), [0], [samples - 1, 0]):
        part = _rows(map_, rows)
        found = solve(part, _start(part), solver, stopping)
        index = torch.tensor(list(rows))
        _same(found, whole, index, stopping, bitwise=bitwise, what="depends on its batch mates")


def _same(
    found: Solution,
    whole: Solution,
    rows: Tensor,
    stopping: Stopping,
    *,
    bitwise: bool,
    what: str,
) -> None:
    expected = whole.value[rows]
    if bitwise:
        _claim(torch.equal(found.value, expected), f"a result {what}")
        _claim(torch.equal(found.evaluations, whole.evaluations[rows]), f"a count {what}")
        _claim(torch.equal(found.residual, whole.residual[rows]), f"a residual {what}")
    else:
        rtol, _ = stopping.tolerances(expected.dtype)
        size = expected.abs().amax().clamp_min(1)
        _near(found.value, expected, 100 * rtol * size, f"a result {what}")
    _claim(torch.equal(found.status, whole.status[rows]), f"a status {what}")


def _check_poison(map_: Map, solver: Solver, whole: Solution, stopping: Stopping) -> None:
    flags = map_.batched
    _claim(flags is not None, "the maps under test must know which tensors are batched")
    assert flags is not None
    where = flags.index(True)
    start = _start(map_)
    for value in (nan, inf):
        tensors = [t.clone() for t in map_.tensors]
        tensors[where][2] = value
        found = solve(map_.with_tensors(tuple(tensors)), start, solver, stopping)
        # infinity may be mapped to a number (tanh), and that number to a fixed point
        _claim(
            int(found.status[2]) == Status.NONFINITE or value == inf,
            f"a sample with {value} ended with status {int(found.status[2])}, expected "
            f"{int(Status.NONFINITE)}",
        )
        others = torch.tensor([i for i in range(len(whole.value)) if i != 2])
        _claim(
            torch.equal(found.value[others], whole.value[others]),
            f"{value} in one sample changes others",
        )


def _check_budget(map_: Map, solver: Solver, stopping: Stopping) -> None:
    for budget in (1, 2):
        limit = replace(stopping, rtol=1e-15, atol=0.0, max_evaluations=budget)
        found, calls = counted(map_, solver, _start(map_), limit)
        _claim(calls <= budget, f"a budget of {budget} was overdrawn: {calls} evaluations")
        _claim(int(found.evaluations.max()) == calls, f"a budget of {budget} is counted wrong")
        short = found.evaluations == budget
        _claim(
            bool((found.status[short & (found.residual > 1e-9)] == Status.BUDGET).all()),
            f"a sample that ran out of its budget of {budget} is not flagged",
        )


def _check_warm(map_: Map, solver: Solver, whole: Solution, stopping: Stopping) -> None:
    found = solve(map_, whole.value, solver, stopping)
    _claim(
        bool((found.evaluations == 1).all()),
        f"a start at the solution takes {int(found.evaluations.max())} evaluations, expected 1",
    )


def _check_shapes(
    map_: Map, solver: Solver, whole: Solution, stopping: Stopping, *, bitwise: bool
) -> None:
    none = _rows(map_, [])
    empty = solve(none, _start(map_)[:0], solver, stopping)
    _claim(empty.value.shape[0] == 0 and len(empty.status) == 0, "an empty batch is not left empty")
    start = _start(map_)
    strided = torch.stack([start, start + 1], -1)[..., 0]
    found = solve(map_, strided, solver, stopping)
    rows = torch.arange(len(whole.value))
    _same(found, whole, rows, stopping, bitwise=bitwise, what="depends on the strides of its start")


def _check_divergence(solver: Solver) -> None:
    # z = relu(2 z + 1) has no solution, and no step of any solver can find one
    map_ = AffineMap(
        Dense(torch.tensor([[-1.0, 3.0], [3.0, -1.0]], dtype=torch.float64)),
        torch.ones(3, 2, dtype=torch.float64),
        ReLU(),
    )
    stopping = Stopping(1e-9, 0.0, 60)
    found = solve(map_, _start(map_), solver, stopping)
    _claim(not bool(found.converged.any()), "a problem without solution counts as solved")


def _check_dimension(solver: Solver, stopping: Stopping) -> None:
    small = contractive_map(samples=4)
    copies: list[Callable[[Tensor], Tensor]] = [lambda t: t, lambda t: t.repeat(1, 8)]
    matrix = small.operator.weight
    counts: list[Tensor] = []
    for size, copy in zip((1, 8), copies, strict=True):
        blocks = torch.block_diag(*[matrix] * size)
        map_ = AffineMap(Dense(blocks), copy(small.offset), ReLU())
        counts.append(solve(map_, _start(map_), solver, stopping).evaluations)
    _claim(
        bool(((counts[0] - counts[1]).abs() <= 1 + counts[0] // 10).all()),
        f"copies of one problem take {counts[1].tolist()} evaluations, the problem alone "
        f"{counts[0].tolist()}: the tolerance depends on the dimension",
    )


def _near(found: Tensor, expected: Tensor, tolerance: Tensor | float, message: str) -> None:
    gap = (found - expected).abs()
    if bool((gap <= tolerance).all()):
        return
    raise AssertionError(f"{message}: off by {float(gap.max()):.3g}")
