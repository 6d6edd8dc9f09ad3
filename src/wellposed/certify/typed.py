"""Typed chains: the best sequence of norms between the layers, from the p- to the q-norm.

A bound ``||dz||_q <= c ||dx||_p`` of one part composes with one of the next part ``q' -> r`` as it
stands if ``q = q'``. Since ``||x||_max <= ||x||_2 <= ||x||_1``, the norm that is held between two
parts may be replaced by a smaller one for free; a larger one costs a factor of the dimension
(``sqrt(n)`` from max to 2 and from 2 to 1, ``n`` from max to 1), which is paid as a part of its
own or refused. Everything else is no bound at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Literal, final

import torch
from torch import Tensor

from wellposed.certify.chain import Chain, core, flat, max_norm, one_norm, product, two_norm
from wellposed.certify.eclipse import Proof, worthwhile
from wellposed.certify.majorant import Majorant
from wellposed.certify.multipliers import chain_proof
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import ConfigError, NotCertifiableError

NormName = Literal["max", "1", "2"]
Mixed = Literal["pay", "refuse"]
Pair = tuple[NormName, NormName]

NAMES: tuple[NormName, ...] = ("max", "2", "1")  # from the smallest norm to the largest
CLOSED: frozenset[Pair] = frozenset(
    {("max", "max"), ("1", "1"), ("2", "2"), ("1", "max"), ("2", "max"), ("1", "2")}
)
ENTRIES = 1 << 22  # of a componentwise bound that is looked at one by one
_COLUMNS = 256


@final
@dataclass(frozen=True)
class Leg:
    """One part of a typed chain.

    Args:
        source: Norm in which it takes differences.
        target: Norm in which it gives them.
        bound: Its own bound.
        rule: What proved it, or which factor was paid.
        links: Parts of the network that it spans, first and behind the last; linear parts in a
            row count as one.
    """

    source: NormName
    target: NormName
    bound: float
    rule: str
    links: tuple[int, int]


@final
@dataclass(frozen=True)
class Route:
    """The best typed chain.

    Args:
        bound: Of the whole.
        legs: Whose bounds multiply to it.
    """

    bound: float
    legs: tuple[Leg, ...]

    def through(self, leg: Leg) -> Route:
        """The route continued by a leg."""
        return Route(product([self.bound, leg.bound]), (*self.legs, leg))

    def __str__(self) -> str:
        return ", ".join(f"{leg.source}->{leg.target}" for leg in self.legs) or "identity"


@torch.no_grad()
def best_route(
    majorant: Majorant,
    source: NormName,
    target: NormName,
    mixed: Mixed = "pay",
    chain: Sequence[Pair] | None = None,
) -> Route:
    """The smallest bound that a legal sequence of norms gives, by dynamic programming.

    Args:
        majorant: The network.
        source: Norm of inputs.
        target: Norm of outputs.
        mixed: Whether a norm that is too small is paid for or refused.
        chain: The pair of norms in which each part is to be measured, elementwise and moving parts
            left out; the best pairs by default.

    Raises:
        ConfigError: `chain` has another length than there are parts to measure.
        NotCertifiableError: The norms do not fit, and nothing may be paid.
    """
    # what is asked for part by part is measured part by part
    links = flat(majorant) if chain is not None else core(majorant)
    demands = _demands(links, chain)
    at: dict[NormName, Route] = {source: Route(1.0, ())}
    _settle(at, prod(majorant.in_shape), 0, mixed)
    proof, counts = _recursion(majorant, links) if chain is None else (None, [])
    start = at.get("2")
    for k, (link, pairs) in enumerate(zip(links, demands, strict=True)):
        found: dict[NormName, Route] = {}
        for p, q in pairs:
            if p in at and (mixed == "pay" or (p, q) in CLOSED):
                bound, rule = part_norm(link, p, q)
                _offer(found, at[p].through(Leg(p, q, bound, rule, (k, k + 1))))
        if proof is not None and start is not None:
            for leg in _spans(proof, counts[k], k + 1):
                _offer(found, start.through(leg))
        if not found:
            raise _misfit(links, k, pairs, at)
        at = found
        _settle(at, prod(link.out_shape), k + 1, mixed)
    if target not in at:
        held = " or ".join(at)
        raise NotCertifiableError(
            f"The norm chain from {source} to {target} does not fit: what comes out is bounded in "
            f"the {held}-norm only ({next(iter(at.values()))}), which is smaller than the "
            f"{target}-norm.",
            hint=f'mixed="pay" pays a factor of the {prod(majorant.out_shape)} outputs in the open '
            "(its square root for a step from max to 2 or from 2 to 1).",
        )
    return at[target]


def part_norm(link: Majorant, p: NormName, q: NormName) -> tuple[float, str]:
    """Upper bound of one part from the p- to the q-norm, and what proved it.

    From max and to 1 the componentwise bound ``|dz| <= |J| |dv|`` tells all; the pairs 1 to max,
    1 to 2 and 2 to max are read off its entries, where these are few enough. A sum is at most the
    sum of the bounds of its summands, each by the best chain of its own.
    """
    found = _single(link, p, q)
    if link.summands:
        try:
            bounds = [best_route(part, p, q, mixed="refuse").bound for part in link.summands]
        except NotCertifiableError:
            return found
        found = min(found, (sum(bounds) * (1 + 2 * rounding(len(bounds))), link.rule))
    return found


def _single(link: Majorant, p: NormName, q: NormName) -> tuple[float, str]:
    match p, q:
        case "2", "2":
            return two_norm(link), link.rule
        case "max", _:
            ones = torch.ones(1, *link.in_shape, dtype=torch.float64)
            return _length(link.apply(ones), q), link.rule
        case _, "1":
            ones = torch.ones(1, *link.out_shape, dtype=torch.float64)
            return _length(link.adjoint(ones), {"1": "max", "2": "2"}[p]), link.rule
        case _:
            return _by_entries(link, p, q)


def _by_entries(link: Majorant, p: NormName, q: NormName) -> tuple[float, str]:
    """1 to max, 1 to 2 or 2 to max: the largest entry, column or row of ``|J|``."""
    known = {
        ("1", "max"): (max_norm, one_norm),
        ("1", "2"): (one_norm,),
        ("2", "max"): (max_norm,),
    }[p, q]  # type: ignore[index]
    # ||z||_max <= ||z||_2 <= ||z||_1: a bound that takes less or gives more serves as well
    found = [(two_norm(link), "at most its bound from 2 to 2")]
    found += [(norm(link), f"at most its {norm.__name__.replace('_', '-')}") for norm in known]
    n, m = prod(link.in_shape), prod(link.out_shape)
    if not link.neutral and n * m <= ENTRIES:
        name = {("1", "max"): "entry", ("1", "2"): "column", ("2", "max"): "row"}[p, q]  # type: ignore[index]
        found.append((_entries(link, p, q), f"largest {name} of the componentwise bound"))
    return min(found)


def _entries(link: Majorant, p: NormName, q: NormName) -> float:
    n = prod(link.in_shape)
    columns, rows = 0.0, torch.zeros(prod(link.out_shape), dtype=torch.float64)
    for first in range(0, n, _COLUMNS):
        count = min(_COLUMNS, n - first)
        unit = torch.zeros(count, n, dtype=torch.float64)
        unit[torch.arange(count), torch.arange(first, first + count)] = 1
        block = link.apply(unit.reshape(count, *link.in_shape)).flatten(1).nan_to_num(nan=inf)
        if p == "1":
            columns = max(columns, *(_length(column[None], q) for column in block))
        else:
            rows = rows + block.square().sum(0)
    return columns if p == "1" else _root(outward(rows, n + 8))


def _length(vector: Tensor, q: str) -> float:
    """Upper bound of a norm of a vector of upper bounds."""
    size = vector.flatten().nan_to_num(nan=inf)
    if not size.numel():
        return 0.0
    if q == "max":
        return float(size.amax())
    if q == "1":
        return float(outward(size.sum(), size.numel()))
    return float(torch.linalg.vector_norm(size)) * (1 + 2 * rounding(size.numel() + 8))


def _root(squares: Tensor) -> float:
    return sqrt(float(squares.amax())) * (1 + 4 * UNIT)


def _settle(at: dict[NormName, Route], n: int, k: int, mixed: Mixed) -> None:
    """Replace norms that are held: by smaller ones for free, by larger ones for a factor."""
    for small, large in (("2", "1"), ("max", "2"), ("max", "1")):
        if large in at:
            free = Leg(large, small, 1.0, "free: it is the smaller norm", (k, k))  # type: ignore[arg-type]
            _offer(at, at[large].through(free))  # type: ignore[index]
    if mixed == "refuse":
        return
    for small, large, factor, name in (
        ("max", "2", sqrt(n) * (1 + 4 * UNIT), f"sqrt({n})"),
        ("2", "1", sqrt(n) * (1 + 4 * UNIT), f"sqrt({n})"),
        ("max", "1", float(n), f"{n}"),
    ):
        if small in at:
            leg = Leg(small, large, factor, f"dimension factor {name}, paid", (k, k))  # type: ignore[arg-type]
            _offer(at, at[small].through(leg))  # type: ignore[index]


def _offer(at: dict[NormName, Route], route: Route) -> None:
    target = route.legs[-1].target
    if target not in at or route.bound < at[target].bound:
        at[target] = route


def _demands(links: list[Majorant], chain: Sequence[Pair] | None) -> list[list[Pair]]:
    every: list[Pair] = [(p, q) for p in NAMES for q in NAMES]
    if chain is None:
        return [every] * len(links)
    measured = [not link.neutral for link in links]
    if sum(measured) != len(chain) or any(p not in NAMES or q not in NAMES for p, q in chain):
        raise ConfigError(
            f"`chain` must hold one pair of norms for each of the {sum(measured)} parts that are "
            f"not elementwise, got {tuple(chain)}.",
            hint='for two dense layers: chain=(("1", "max"), ("max", "max")).',
        )
    pairs = iter(chain)
    same: list[Pair] = [(p, p) for p in NAMES]
    return [[next(pairs)] if own else same for own in measured]


def _misfit(
    links: list[Majorant], k: int, pairs: list[Pair], at: dict[NormName, Route]
) -> NotCertifiableError:
    held = " or ".join(f"{name}" for name in at)
    asked = " or ".join(sorted({p for p, _ in pairs}))
    return NotCertifiableError(
        f"The norm chain does not fit at part {k} of {len(links)}: it is measured from the "
        f"{asked}-norm, but what comes in is bounded in the {held}-norm only "
        f"({next(iter(at.values()))}), which is smaller.",
        hint="between two parts a norm may be replaced by a smaller one only, "
        '||x||_max <= ||x||_2 <= ||x||_1; mixed="pay" pays the factor of the dimension.',
    )


def _recursion(majorant: Majorant, links: list[Majorant]) -> tuple[Proof | None, list[int]]:
    """The ellipsoids of the chain, and how many of its steps each part ends at."""
    steps = majorant.steps if isinstance(majorant, Chain) else None
    if steps is None or not worthwhile(steps):
        return None, []
    counts: list[int] = []
    for link in links:
        own = 1 if link.steps is None else len(link.steps)
        counts.append((counts[-1] if counts else 0) + own)
    return chain_proof(prod(majorant.in_shape), steps), counts


def _spans(proof: Proof, steps: int, end: int) -> list[Leg]:
    rule = "slopes and signed weights of all layers so far (multipliers verified)"
    return [
        Leg("2", "2", proof.two_norm(steps), rule, (0, end)),
        Leg("2", "max", proof.row_norm(steps), rule, (0, end)),
    ]
