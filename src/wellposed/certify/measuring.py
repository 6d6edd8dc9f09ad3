"""Reading a number off a majorant: the bound in two norms, what proved it, and of what parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Literal, final

from wellposed.certify.chain import Chain, flat, max_norm, one_norm, product, singular, two_norm
from wellposed.certify.eclipse import Proof, Scaled, best_proposal, prove, worthwhile
from wellposed.certify.lipsdp import lipsdp
from wellposed.certify.majorant import Majorant
from wellposed.certify.multipliers import chain_proof
from wellposed.certify.typed import (
    CLOSED,
    ENTRIES,
    Mixed,
    NormName,
    Pair,
    Route,
    best_route,
    part_norm,
)
from wellposed.core.records import Certificate
from wellposed.errors import ConfigError, NotCertifiableError

Method = Literal["auto", "componentwise", "product", "eclipse", "descent", "lipsdp"]

METHODS = ("auto", "componentwise", "product", "eclipse", "descent", "lipsdp")
_PRODUCT = "product of the bounds of the parts"
_SINGULAR = "verified singular vector of the componentwise bounds"
_DESCENT = (
    "slopes and signed weights of all layers (ECLipsE-Fast, arXiv 2410.04375, and descent from it; "
    "multipliers verified)"
)
_RULES = {
    "max": "one vector of componentwise bounds propagated",
    "1": "one covector of componentwise bounds pulled back",
}


@final
@dataclass(frozen=True)
class Measured:
    """A bound with its origin.

    Args:
        value: The bound, perhaps infinite.
        rule: What proved it.
        legs: The typed chain of a bound between two norms.
    """

    value: float
    rule: str
    legs: Route | None = None


def measure(
    majorant: Majorant,
    source: NormName,
    target: NormName,
    method: Method = "auto",
    *,
    mixed: Mixed = "pay",
    chain: Sequence[Pair] | None = None,
) -> Measured:
    """The bound in two unweighted norms.

    Raises:
        ConfigError: The method is for another pair of norms.
        NotCertifiableError: The norms do not fit and may not be paid for, or the method proves
            nothing about this network.
    """
    if chain is not None or source != target:
        if method not in ("auto", "componentwise") or (chain and method != "auto"):
            raise ConfigError(
                f"`method` {method!r} measures in one norm and chooses its own chain; here it is "
                f"asked from {source} to {target}.",
                hint='leave `method` at "auto" for a typed chain.',
            )
        return _typed(majorant, source, target, method, mixed=mixed, chain=chain)
    if method == "product":
        links = [measure(link, source, source).value for link in flat(majorant)]
        return Measured(product(links), _PRODUCT)
    if source == "2":
        return _two(majorant, method)
    if method in ("eclipse", "descent", "lipsdp"):
        raise ConfigError(
            f"`method` {method!r} measures in the 2-norm, not in the {source}-norm.",
            hint='ask with `norm_in="2"`, or leave `method` at "auto".',
        )
    value = max_norm(majorant) if source == "max" else one_norm(majorant)
    return Measured(value, _RULES[source] if isinstance(majorant, Chain) else majorant.rule)


def parts(
    majorant: Majorant, measured: Measured, name: NormName, where: str
) -> tuple[Certificate, ...]:
    """Certificates of the parts: the legs of a typed chain, or each module in one norm."""
    if measured.legs is not None:
        return tuple(
            Certificate("lipschitz", leg.bound, leg.source, leg.target, leg.rule, where)
            for leg in measured.legs.legs
        )
    if not isinstance(majorant, Chain):
        return ()
    found: list[Certificate] = []
    for link in majorant.links:
        own = measure(link, name, name)
        found.append(
            Certificate(
                "lipschitz", own.value, name, name, link.rule, where, link.assumes,
                parts(link, own, name, where),
            )
        )  # fmt: skip
    return tuple(found)


def _typed(
    majorant: Majorant,
    source: NormName,
    target: NormName,
    method: Method,
    *,
    mixed: Mixed,
    chain: Sequence[Pair] | None,
) -> Measured:
    if method == "componentwise":
        return Measured(*_componentwise(majorant, source, target))
    route = best_route(majorant, source, target, mixed, chain)
    found = Measured(route.bound, f"best chain of norms between the parts: {route}", route)
    if chain is not None:
        return Measured(route.bound, f"chain of norms as asked: {route}", route)
    if mixed == "pay" or (source, target) in CLOSED:
        value, rule = _componentwise(majorant, source, target)
        if value < route.bound:
            return Measured(value, f"{rule}; the parts are the best chain of norms", route)
    return found


def _componentwise(majorant: Majorant, source: NormName, target: NormName) -> tuple[float, str]:
    """The whole network between two norms by its componentwise bound, if that is affordable."""
    whole = prod(majorant.in_shape) * prod(majorant.out_shape)
    if source != "max" and target != "1" and whole > ENTRIES:
        return inf, "componentwise bound of the whole"
    value, _ = part_norm(majorant, source, target)
    return value, "componentwise bound of the whole"


def _two(majorant: Majorant, method: Method) -> Measured:
    if method == "componentwise":
        return Measured(singular(majorant), _SINGULAR)
    if not isinstance(majorant, Chain):
        if method in ("eclipse", "descent", "lipsdp"):
            raise _too_short(method)
        return Measured(two_norm(majorant), majorant.rule)
    found = [Measured(singular(majorant), _SINGULAR)]
    steps = majorant.steps
    if method != "auto" and not worthwhile(steps):
        raise _too_short(method)
    if worthwhile(steps):
        size = prod(majorant.in_shape)
        match method:
            case "eclipse":
                return Measured(_fast(Scaled.of(size, steps)).two_norm(), "ECLipsE-Fast, verified")
            case "descent":
                return Measured(chain_proof(size, steps, thorough=True).two_norm(), _DESCENT)
            case "lipsdp":
                found.append(Measured(lipsdp(size, steps).two_norm(), "LipSDP-Neuron, verified"))
            case _:
                pass
        found.append(Measured(chain_proof(size, steps).two_norm(), _DESCENT))
    found.append(Measured(majorant.spectral, _PRODUCT))
    return min(found, key=lambda item: item.value)


def _fast(chain: Scaled) -> Proof:
    return prove(chain, best_proposal(chain))


def _too_short(method: str) -> NotCertifiableError:
    return NotCertifiableError(
        f"`method` {method!r} needs at least two layers whose weights are known as matrices of at "
        "most 1024 outputs, in one sequence.",
        hint='leave `method` at "auto": it takes whatever rule applies.',
    )
