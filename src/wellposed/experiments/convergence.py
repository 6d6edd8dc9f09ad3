"""How fast each solver solves the equilibria of a trained network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from wellposed.attacks.exact import exact_layers
from wellposed.core.maps import Map
from wellposed.errors import WellposedError
from wellposed.experiments.curves import rounded
from wellposed.gradients.base import Problem
from wellposed.solvers.base import Solution, Solver, Status, Stopping, rms, solve
from wellposed.solvers.picard import Jacobi

TARGET = 1e-6
BUDGET = 300
REPEATS = 3
POINTS = 80


@final
class _Stopwatch:
    """Worst relative residual and CPU time after each evaluation, its own cost taken out."""

    def __init__(self) -> None:
        self.residual: list[float] = []
        self.seconds: list[float] = []
        self._began = time.process_time()

    def __call__(self, z: Tensor, residual: Tensor) -> None:
        now = time.process_time()
        self.seconds.append(now - self._began)
        rtol, atol = Stopping(rtol=TARGET).tolerances(z.dtype)
        # the measure that stopping uses: relative, except for states of the size of rounding
        self.residual.append(float((residual / (rms(z) + atol / rtol)).amax()))
        self._began += time.process_time() - now


def first_problem(model: nn.Module, x: Tensor) -> tuple[Problem, Tensor] | None:
    """The first equilibrium that the network solves, and the evaluations of each image.

    `None` for a network without any.
    """
    with exact_layers(model) as solves, torch.no_grad():
        model(x)
    return (solves.problems[0], solves.evaluations(len(x))) if solves.problems else None


def race(problem: Problem, solvers: Mapping[str, Solver]) -> dict[str, Any]:
    """Residual against evaluations and CPU time, one entry a solver.

    A solver that cannot be applied to the map, or diverges, is reported with the reason. Each
    starts at the value at 0 of the form that it iterates, as it does in use. `distance` is the
    worst relative distance of where they end to the solution in float64, which tells whether a
    small residual means a right answer.
    """
    truth = _truth(problem.map_, problem.start)
    stopping = Stopping(rtol=TARGET, max_evaluations=BUDGET)
    out: dict[str, Any] = {}
    for name, solver in solvers.items():
        try:
            runs = [_run(problem, solver, stopping) for _ in range(REPEATS)]
        except WellposedError as error:
            out[name] = {"refused": error.message}
            continue
        watch, solution = min(runs, key=lambda run: run[0].seconds[-1])
        distance = rms(solution.value.double() - truth) / rms(truth).clamp(min=1e-12)
        status = Status(int(solution.status.amax()))
        keep = _thinned(len(watch.residual))
        out[name] = {
            "evaluations": [k + 1 for k in keep],
            "residual": _plain([watch.residual[k] for k in keep]),
            "seconds": _plain([watch.seconds[k] for k in keep]),
            "reached": status == Status.CONVERGED,
            "status": status.message,
            "total_evaluations": int(solution.evaluations.amax()),
            "total_seconds": float(f"{watch.seconds[-1]:.4g}"),
            "sample_evaluations": int(solution.evaluations.sum()),
            "distance": _plain([float(distance.amax())])[0],
        }
    return out


def histogram(evaluations: Tensor) -> dict[str, list[int]]:
    """How many samples took how many evaluations."""
    values, counts = evaluations.unique(return_counts=True)
    return {"evaluations": values.tolist(), "samples": counts.tolist()}


def _run(problem: Problem, solver: Solver, stopping: Stopping) -> tuple[_Stopwatch, Solution]:
    watch = _Stopwatch()
    return watch, solve(problem.map_, problem.start, solver, stopping, watch=watch)


def _truth(map_: Map, start: Tensor | None) -> Tensor:
    exact = map_.with_tensors(tuple(t.double() for t in map_.detach().tensors))
    stopping = Stopping(rtol=1e-12, max_evaluations=5000)
    return solve(exact, None if start is None else start.double(), Jacobi(), stopping).value


def _thinned(count: int) -> list[int]:
    """At most `POINTS` places, the first and the last among them."""
    if count <= POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})


def _plain(values: list[float]) -> list[float | None]:
    found = rounded(torch.tensor(values, dtype=torch.float64))
    return [v if abs(v) < float("inf") else None for v in found]
