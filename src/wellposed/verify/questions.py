"""Questions about a network on a region, or around inputs, with proved answers on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from operator import index
from time import perf_counter
from typing import Literal, final

import torch
from torch import Tensor, nn

from wellposed.core.network import Network
from wellposed.core.sets import Box, Region
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.verify.asked import check_question
from wellposed.verify.brackets import (
    NormName,
    lipschitz_bracket,
    output_row,
    sign_along,
    value_brackets,
)
from wellposed.verify.classifier import Classifier
from wellposed.verify.nearest import Bisection
from wellposed.verify.nearest import Radius as Radius
from wellposed.verify.patterns import Bracket
from wellposed.verify.problem import Budget, Problem

Output = int | tuple[int, int]


@final
@dataclass(frozen=True)
class Range:
    """The values of an output on a region.

    Args:
        smallest: Bracket of the smallest value.
        largest: Bracket of the largest value.
    """

    smallest: Bracket
    largest: Bracket


@torch.no_grad()
def output_range(
    model: nn.Module | Network | Classifier,
    region: Region,
    outputs: Sequence[Output] | None = None,
    *,
    tolerance: float = 1e-3,
    budget: Budget | None = None,
) -> tuple[Range, ...]:
    """The smallest and the largest value of outputs on a region, each between two proved numbers.

    By branch and bound on the value: exact up to `tolerance` if the budget lasts, and a true
    bracket whenever it ends. An input within rounding of the region counts as inside.

    Args:
        model: A module in evaluation mode whose layers have rules, or explicit weights.
        region: One region: a batch of one, shape (1, *in_shape).
        outputs: Numbers of outputs, or pairs ``(i, j)`` for differences ``y_i - y_j``; by default
            every output.
        tolerance: Wanted width of every bracket.
        budget: For each end of each output.

    Returns:
        One range an output.

    Raises:
        NotCertifiableError: A layer has no rule, nothing shows that the network is well posed, or
            it is no dense network with one-kink activations.
        ShapeError: The region does not fit, or there is no such output.
    """
    task, problem = _prepared(model, region)
    wanted = range(task.classes) if outputs is None else outputs
    found: list[Range] = []
    for output in wanted:
        row = output_row(problem, output)
        found.append(Range(*value_brackets(problem, row, tolerance=tolerance, budget=budget)))
    return tuple(found)


@torch.no_grad()
def local_lipschitz(
    model: nn.Module | Network | Classifier,
    region: Region,
    norm: NormName = "max",
    *,
    output: Output | None = None,
    tolerance: float = 1e-3,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Bracket:
    """The Lipschitz constant on a region, from a norm of inputs to the max norm of outputs.

    By branch and bound over phase patterns (`lipschitz_bracket`): the exact constant if it ends in
    time, which it does for some dozens of open neurons at most, and a true bracket before that.
    Inputs are those of the model, in front of a `Normalise`. An input within rounding of the
    region counts as inside.

    Args:
        model: A module in evaluation mode whose layers have rules, or explicit weights.
        region: One region: a batch of one, shape (1, *in_shape).
        norm: Of inputs: ``"max"``, ``"1"`` or ``"2"``.
        output: The number of one output, or a pair for a difference of two; by default the largest
            constant of all outputs.
        tolerance: Wanted relative width.
        seconds: Time limit, for all outputs together.
        inputs: Random inputs for the lower end.
        seed: Of these.

    Raises:
        NotCertifiableError: As for `output_range`.
        ShapeError: The region does not fit, or there is no such output.
        ConfigError: There is no such norm.
    """
    if norm not in ("max", "1", "2"):
        raise ConfigError(f'`norm` must be "max", "1" or "2", got {norm!r}.')
    task, problem = _prepared(model, region)
    wanted = list(range(task.classes)) if output is None else [output]
    start, lower, upper = perf_counter(), 0.0, 0.0
    for k, one in enumerate(wanted):
        share = max(0.0, seconds - (perf_counter() - start)) / (len(wanted) - k)
        found = lipschitz_bracket(
            problem, output_row(problem, one), norm=norm, scale=_scale(task), tolerance=tolerance,
            seconds=share, inputs=inputs, seed=seed,
        )  # fmt: skip
        lower, upper = max(lower, found.lower), max(upper, found.upper)
    return Bracket(lower, upper)


@torch.no_grad()
def monotone_in(
    model: nn.Module | Network | Classifier,
    region: Region,
    feature: int | tuple[int, ...],
    output: Output = 0,
    *,
    decreasing: bool = False,
    seconds: float = 10.0,
    inputs: int = 64,
    seed: int = 0,
) -> Literal["verified", "falsified", "unknown"]:
    """Whether an output never decreases along one input on a region.

    "Verified": its derivative is proved not negative on every phase pattern that may occur.
    "Falsified": it is proved negative at some input, or within rounding of one.

    Args:
        model: A module in evaluation mode whose layers have rules, or explicit weights.
        region: One region: a batch of one, shape (1, *in_shape).
        feature: Number of the input, counted from 0 in the flattened input, or its place in
            `in_shape` such as ``(0, 3, 4)``.
        output: Number of the output, or a pair for a difference of two.
        decreasing: Ask whether it never increases instead.
        seconds: Time limit.
        inputs: Random inputs tried.
        seed: Of these.

    Raises:
        NotCertifiableError: As for `output_range`.
        ShapeError: The region does not fit, or there is no such input or output.
    """
    task, problem = _prepared(model, region)
    row = output_row(problem, output)
    place = _flat(feature, task.in_shape)
    return sign_along(
        problem, -row if decreasing else row, place, seconds=seconds, inputs=inputs, seed=seed
    )


def smallest_radius(
    model: nn.Module | Network | Classifier,
    x: Tensor,
    y: Tensor,
    norm: Literal["max", "2"] = "max",
    *,
    limit: float = 1.0,
    tolerance: float = 1e-3,
    domain: tuple[float, float] | None = (0.0, 1.0),
    budget: Budget | None = None,
) -> tuple[Radius, ...]:
    """The distance of the nearest input of another class, between two proved numbers.

    By bisection over `verify`: a radius that is verified moves the lower end, a proved
    counter-example the upper end to its own distance. A radius that stays undecided is not asked
    again: the search goes on below it.

    Args:
        model: A module in evaluation mode whose layers have rules, or explicit weights.
        x: Inputs, shape (B, *in_shape).
        y: Labels, int64 of shape (B,).
        norm: ``"max"`` or ``"2"``.
        limit: The largest radius of interest.
        tolerance: Wanted width of the bracket.
        domain: Smallest and largest value of an input; `None` for no limits.
        budget: Of branch and bound, for every radius that is tried.

    Returns:
        One bracket an input. A misclassified input has the radius 0.

    Raises:
        NotCertifiableError: A layer has no rule, or nothing shows that the network is well posed.
        ShapeError: Shapes do not fit, or an input leaves the domain.
        ConfigError: A label is no class, or `limit` or `tolerance` is not positive.
    """
    if not (0 < limit < inf and tolerance > 0):
        raise ConfigError(
            f"`limit` and `tolerance` must be positive and finite, got {limit} and {tolerance}."
        )
    if norm not in ("max", "2"):
        raise ConfigError(f'`norm` must be "max" or "2", got {norm!r}.')
    task = model if isinstance(model, Classifier) else Classifier.of(model, tuple(x.shape[1:]))
    wide = x.detach().cpu().double()
    check_question(task, wide, y, Box(wide, wide), domain)
    module = model if isinstance(model, nn.Module) and domain == (0.0, 1.0) else None
    search = Bisection(task, module, norm, (limit, tolerance), domain, budget or Budget())
    return tuple(search.run(x[i : i + 1], y[i : i + 1]) for i in range(len(x)))


def _prepared(
    model: nn.Module | Network | Classifier, region: Region
) -> tuple[Classifier, Problem]:
    """The network on one region, with proved bounds of its neurons.

    Raises:
        NotCertifiableError: Branch and bound does not apply to it.
        ShapeError: The region is no batch of one.
    """
    shape = region.box.shape
    if len(shape) < 2 or shape[0] != 1:
        raise ShapeError(
            f"The region has shape {shape}, expected one region: a batch of one, (1, *in_shape).",
            hint="`region.unsqueeze()` makes a batch of one box, `region.select` takes one of "
            "several.",
        )
    task = (
        model if isinstance(model, Classifier) else Classifier.of(model, tuple(shape[1:]), least=1)
    )
    if not task.branches or task.network is None:
        why = f"{task.system.neurons.activation.name} has more than one kink"
        if task.network is None:
            why = f"its {task.system.n} neurons are too many, or its weights are rounded"
        raise NotCertifiableError(
            f"The question has no complete answer for this network: {why}.",
            hint="`wp.enclose` bounds its outputs, `wp.lipschitz(model, region=...)` its constant.",
        )
    scope = task.scope(task.enter(region))
    return task, Problem(task.network, task.system, scope, task.wellposed)


def _scale(task: Classifier) -> Tensor | None:
    """What the model divides its inputs by, shape (d,)."""
    scaling = None if task.lowered is None else task.lowered.scaling
    if scaling is None:
        return None
    return scaling.std.detach().cpu().double().expand(task.in_shape).flatten()


def _flat(feature: int | tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The number of an input in the flattened input."""
    places = feature if isinstance(feature, tuple) else (index(feature),)
    sizes = shape if isinstance(feature, tuple) else (prod(shape),)
    if len(places) != len(sizes) or not all(0 <= p < s for p, s in zip(places, sizes, strict=True)):
        raise ShapeError(f"`feature` is {feature}, expected a place in inputs of shape {shape}.")
    flat = 0
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place
    return flat
