"""Golden section finds the minimum, at one value a cut."""

from __future__ import annotations

import pytest

from wellposed.core.golden import golden_section


@pytest.mark.parametrize("at", [-2.0, -1.3, 0.0, 0.77, 3.0])
def test_finds_the_minimum(at: float) -> None:
    found = golden_section(lambda x: (x - at) ** 2 * (2 if x < at else 1), -2.0, 3.0, 40)
    assert found == pytest.approx(at, abs=5 * 0.618**39)


def test_one_value_a_cut() -> None:
    seen: list[float] = []
    golden_section(lambda x: seen.append(x) or abs(x), -1.0, 2.0, 17)
    assert len(seen) == 17 + 2
