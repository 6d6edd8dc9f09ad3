"""Verdicts of many inputs, and the tiers of the cascade that reaches them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

from wellposed.core.records import Record, Verdict


@final
class Tier(Enum):
    """What is tried, in this order; an input leaves at the first answer."""

    ATTACK = "attack"
    LIPSCHITZ = "lipschitz"
    BOXES = "boxes"
    LINEAR = "linear bounds"
    TIGHTENED = "tightening"
    BRANCHING = "branching"

    @property
    def rank(self) -> int:
        """Place in the order."""
        return list(Tier).index(self)


@final
@dataclass(frozen=True)
class Verdicts(Record):
    """One verdict an input, in the order of the inputs.

    Args:
        verdicts: At least one.
    """

    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        # records read from JSON hold dictionaries
        given: tuple[Any, ...] = tuple(self.verdicts)
        read = tuple(v if isinstance(v, Verdict) else Verdict.from_dict(v) for v in given)
        object.__setattr__(self, "verdicts", read)

    @property
    def counts(self) -> dict[str, int]:
        """How many are verified, falsified and unknown."""
        found = Counter(v.status for v in self.verdicts)
        return {status: found[status] for status in ("verified", "falsified", "unknown")}

    @property
    def certified(self) -> float:
        """Fraction that is verified; 0 for no inputs."""
        return self.counts["verified"] / max(len(self.verdicts), 1)

    @property
    def upper(self) -> float:
        """Fraction that is not falsified: no verifier can certify more."""
        return 1 - self.counts["falsified"] / max(len(self.verdicts), 1)

    def share(self, tier: Tier) -> float:
        """Fraction that is verified by this tier or an earlier one."""
        names = {t.value for t in Tier if t.rank <= tier.rank}
        found = sum(v.status == "verified" and v.method in names for v in self.verdicts)
        return found / max(len(self.verdicts), 1)

    def __add__(self, other: Verdicts) -> Verdicts:
        return Verdicts(self.verdicts + other.verdicts)
