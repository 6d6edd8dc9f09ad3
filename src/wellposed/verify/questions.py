"""Questions about a network on a region that bounds on cells and cases answer exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, final

from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.core.sets import Region
from wellposed.errors import ConfigError, ShapeError
from wellposed.verify.branch import branch
from wellposed.verify.patterns import Bracket, Measure, Patterns, check_one
from wellposed.verify.problem import Budget, Problem

_NORM = Measure(lambda d: d.norm, lambda d: d.floor, lambda part: part.sum(1))


@final
@dataclass(frozen=True)
class Radius:
    """The distance of the nearest counter-example.

    Args:
        lower: No counter-example within this radius; proved.
        upper: One within this radius; `inf` if none was met.
        witness: It.
    """

    lower: float
    upper: float
    witness: tuple[float, ...] | None


def output_range(
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


def smallest_radius(
    region: Callable[[float], Region],
    make: Callable[[Region], Problem],
    rows: Rows,
    *,
    limit: float,
    tolerance: float = 1e-3,
    budget: Budget | None = None,
) -> Radius:
    """The largest radius at which all rows are positive, by bisection with proofs on both sides.

    Args:
        region: Of a radius; a larger radius must give a larger region.
        make: The network on a region, with proved preactivation bounds.
        rows: What has to be positive.
        limit: The largest radius of interest.
        tolerance: Wanted width of the bracket.
        budget: For every radius that is tried; an undecided radius ends the search between it and
            what is known.

    Raises:
        ConfigError: `limit` or `tolerance` is not positive.
    """
    if not (limit > 0 and tolerance > 0):
        raise ConfigError(f"`limit` and `tolerance` must be positive, got {limit} and {tolerance}.")
    lower, upper = 0.0, inf
    witness: tuple[float, ...] | None = None
    trial, ceiling = limit, limit
    while trial > lower:
        answers = branch(make(region(trial)), rows, budget, every=False)
        bad = [a for a in answers if a.status == "falsified"]
        if bad:
            upper, witness = min(
                (_first_region(region, a.witness, lower, trial), tuple(a.witness.tolist()))
                for a in bad
                if a.witness is not None
            )
            ceiling = upper
        elif all(a.status == "verified" for a in answers):
            lower = trial
        else:
            # undecided here: look below, what is above stays open
            ceiling = trial
        if ceiling - lower <= tolerance:
            break
        trial = (lower + ceiling) / 2
    return Radius(lower, upper, witness)


def _first_region(
    region: Callable[[float], Region], witness: Tensor, low: float, high: float
) -> float:
    """A radius whose region holds the witness, nearly the smallest one."""
    for _ in range(20):
        middle = (low + high) / 2
        if bool(region(middle).contains(witness[None]).all()):
            high = middle
        else:
            low = middle
    return high


def local_lipschitz(
    problem: Problem,
    row: Rows,
    *,
    tolerance: float = 1e-3,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Bracket:
    """The Lipschitz constant of a row on the region for the max norm of inputs, bracketed.

    On a set of inputs with one phase pattern the network is affine and the constant is ``||d||_1``
    of its derivative; on a convex region the constant is the largest over the patterns that occur.
    Patterns are divided neuron by neuron, the case with the largest upper bound first; cases
    without an input are dropped once a multiplier proves them empty. The lower end is the norm at
    an input whose pattern is certain.

    Args:
        problem: The network on its region.
        row: One row.
        tolerance: Wanted relative width.
        seconds: Time limit.
        inputs: Random inputs for the lower end.
        seed: Of these.

    Raises:
        ShapeError: There is not exactly one row.
    """
    return Patterns(problem, row, _NORM).run(tolerance, seconds, inputs, seed)


def monotone_in(
    problem: Problem,
    row: Rows,
    feature: int,
    *,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Literal["verified", "falsified", "unknown"]:
    """Whether a row never decreases along an input on the region (negate it for the other way).

    "Verified": the derivative is proved not negative on every phase pattern that may occur.
    "Falsified": it is proved negative at some input. See `local_lipschitz` for the search.

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
    fall = Measure(
        lambda d: -d.lower[:, feature],
        lambda d: -d.upper[:, feature],
        lambda part: part[:, feature],
        goal=0.0,
    )
    found = Patterns(problem, row, fall).run(0.0, seconds, inputs, seed)
    return "verified" if found.upper <= 0 else "falsified" if found.lower > 0 else "unknown"
