"""Golden section: where a function of one number with one minimum is smallest."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

_RATIO = (sqrt(5) - 1) / 2


def golden_section(f: Callable[[float], float], low: float, high: float, sections: int) -> float:
    """The middle of what `sections` cuts leave of an interval around the minimum: a hint.

    One value of `f` a cut; the interval shrinks by 0.618.

    Args:
        f: Falls up to its minimum and rises from there.
        low: Left end.
        high: Right end.
        sections: Number of cuts.
    """
    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(sections):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _RATIO * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _RATIO * (high - low)
            at_right = f(right)
    return (low + high) / 2
