"""Numbers about one row on one region, between two proved ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.core.spectra import outward
from wellposed.errors import ShapeError
from wellposed.verify.branch import branch
from wellposed.verify.derivatives import Derivatives
from wellposed.verify.patterns import Bracket, Measure, Patterns, check_one
from wellposed.verify.problem import Budget, Problem

NormName = Literal["max", "1", "2"]
_NORMS: dict[NormName, Measure] = {
    # the norm of a derivative is the dual one
    "max": Measure(
        lambda d: d.norm,
        lambda d: d.floor,
        lambda part: part.sum(1),
        dual=lambda w: outward(w.sum(-1), w.shape[-1]),
    ),
    "1": Measure(
        lambda d: d.largest,
        lambda d: d.largest_floor,
        lambda part: part.amax(1),
        dual=lambda w: w.amax(-1),
    ),
    "2": Measure(
        lambda d: d.size,
        lambda d: d.size_floor,
        lambda part: part.square().sum(1).sqrt(),
        dual=lambda w: outward(outward(w.square().sum(-1), w.shape[-1]).sqrt(), 2),
    ),
}


def value_brackets(
    problem: Problem, row: Rows, *, tolerance: float = 1e-3, budget: Budget | None = None
) -> tuple[Bracket, Bracket]:
    """Brackets of the smallest and of the largest value of a row on the region.

    Both come from branch and bound on the value: the ends of a bracket are a bound that every leaf
    proves, and the proved value of an input. They meet within `tolerance` if the budget lasts.

    Args:
        problem: The network on its region.
        row: One row.
        tolerance: Wanted width of either bracket.
        budget: For each of the two.

    Raises:
        ShapeError: There is not exactly one row.
    """
    check_one(row)
    low, high = (branch(problem, side, budget, gap=tolerance)[0] for side in (row, -row))
    return Bracket(low.lower, low.upper), Bracket(-high.upper, -high.lower)


def lipschitz_bracket(
    problem: Problem,
    row: Rows,
    *,
    norm: NormName = "max",
    scale: Tensor | None = None,
    tolerance: float = 1e-3,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Bracket:
    """The Lipschitz constant of a row on the region, bracketed.

    On a set of inputs with one phase pattern the network is affine and the constant is the dual
    norm of its derivative; on a convex region it is the largest over the patterns that occur.
    Patterns are divided neuron by neuron, the case with the largest upper bound first; cases
    without an input are dropped once a multiplier proves them empty. The lower end is the norm at
    an input whose pattern is certain.

    Args:
        problem: The network on its region.
        row: One row.
        norm: Of the inputs.
        scale: What the inputs were divided by before the network, shape (d,): the constant is
            that of the undivided ones.
        tolerance: Wanted relative width.
        seconds: Time limit.
        inputs: Random inputs for the lower end.
        seed: Of these.

    Raises:
        ShapeError: There is not exactly one row.
    """
    return Patterns(problem, row, _NORMS[norm], scale).run(tolerance, seconds, inputs, seed)


def sign_along(
    problem: Problem,
    row: Rows,
    feature: int,
    *,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Literal["verified", "falsified", "unknown"]:
    """Whether a row never decreases along an input on the region.

    "Verified": the derivative is proved not negative on every phase pattern that may occur.
    "Falsified": it is proved negative at some input. See `lipschitz_bracket` for the search.

    Args:
        problem: The network on its region.
        row: One row.
        feature: Number of the input.
        seconds: Time limit.
        inputs: Random inputs tried.
        seed: Of these.

    Raises:
        ShapeError: There is not exactly one row, or no such feature.
    """
    if not 0 <= feature < problem.network.d:
        raise ShapeError(f"`feature` is {feature}, expected 0..{problem.network.d - 1}.")

    def above(d: Derivatives) -> Tensor:
        return -d.lower[:, feature]

    fall = Measure(above, lambda d: -d.upper[:, feature], lambda part: part[:, feature], goal=0.0)
    found = Patterns(problem, row, fall).run(0.0, seconds, inputs, seed)
    return "verified" if found.upper <= 0 else "falsified" if found.lower > 0 else "unknown"


def output_row(problem: Problem, output: int | tuple[int, int]) -> Rows:
    """The row of an output ``y_i``, or of a difference ``y_i - y_j`` of two.

    Raises:
        ShapeError: There is no such output.
    """
    net = problem.network
    numbers = (output,) if isinstance(output, int) else output
    if len(numbers) > 2 or not all(0 <= i < net.q for i in numbers):
        raise ShapeError(
            f"`output` is {output}, expected the number of one of {net.q} outputs, or a pair of "
            "them for a difference."
        )
    first = torch.tensor(numbers[:1])
    if len(numbers) == 1:
        return Rows(net.C[first], net.D[first], net.c[first])
    other = torch.tensor(numbers[1:])
    # a difference is rounded by one unit, which every bound's slack covers
    return Rows(net.C[first] - net.C[other], net.D[first] - net.D[other],
                net.c[first] - net.c[other])  # fmt: skip
