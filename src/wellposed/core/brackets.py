"""Proved bounds of an operator norm from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, ldexp, nextafter
from typing import final

from wellposed.errors import NotCertifiableError

_CLOSED = 1e-9  # relative width that rounding alone may leave


@final
@dataclass(frozen=True)
class NormBracket:
    """``lower <= ||M|| <= upper``, both proved with their rounding.

    Args:
        lower: From a vector that is stretched so far.
        upper: From a closed form, a decomposition whose defect was measured, or an iteration that
            never falls below the norm.
        exact: Whether the two differ by rounding only.
        method: How the upper bound was found, and which factor it pays where it pays one.
    """

    lower: float
    upper: float
    exact: bool = False
    method: str = ""


def bracket(lower: float, upper: float, method: str) -> NormBracket:
    """A bracket that knows whether it is exact.

    Args:
        lower: Not above the norm; what is not a number counts as zero.
        upper: Not below the norm; what is not a number counts as infinity.
        method: How the upper bound was found.
    """
    low = 0.0 if isnan(lower) else max(lower, 0.0)
    high = inf if isnan(upper) else upper
    return NormBracket(low, high, high < inf and high - low <= _CLOSED * high, method)


def shifted(found: NormBracket, exponent: int) -> NormBracket:
    """The bracket of ``2^exponent M``, given that of ``M``.

    A power of two changes no digit, unless the result is subnormal: one step outwards covers that.
    """
    if found.upper == 0 or exponent == 0:
        return found
    lower, upper = _shift(found.lower, exponent), _shift(found.upper, exponent)
    return NormBracket(
        nextafter(lower, 0.0), nextafter(upper, inf), found.exact and upper < inf, found.method
    )


def check_finite(size: float) -> None:
    """Refuse weights that bound nothing.

    Args:
        size: The largest absolute weight.

    Raises:
        NotCertifiableError: It is not finite.
    """
    if not size < inf:
        raise NotCertifiableError(
            "The weights hold NaN or infinity; no norm can be bounded.",
            hint="training diverged; certify a checkpoint with finite weights.",
        )


def _shift(value: float, exponent: int) -> float:
    try:
        return ldexp(value, exponent)
    except OverflowError:
        return inf
