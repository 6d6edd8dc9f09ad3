"""Records: JSON both ways, and what they refuse."""

from math import inf

import pytest

from wellposed.core.records import Certificate, Environment, Estimate, Verdict
from wellposed.errors import ConfigError

PART = Certificate("lipschitz", inf, "max", "max", "L3", assumes=("a", "b"))
RECORDS = [
    PART,
    Certificate("lipschitz", 1 / 3, "2", "2", "chain", "box", ("c",), (PART, PART)),
    Estimate("lipschitz", 0.1, "max", "max", "pairs", 7),
    Verdict("verified", 0.25, "box", 0.5),
    Verdict("falsified", -0.25, "pgd", 0.5, (0.1, -inf)),
    Verdict("unknown", -inf, "branching", 9.5, None, {"boxes": -inf, "branching": -0.5}, 17, 400),
    Environment.here(),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_round_trip(record):
    assert type(record).from_json(record.to_json()) == record


def test_records_do_not_become_one_another():
    with pytest.raises(ConfigError, match="Certificate"):
        Certificate.from_json(RECORDS[2].to_json())
    with pytest.raises(ConfigError, match="unknown fields"):
        Estimate.from_dict({**RECORDS[2].to_dict(), "extra": 1})
    with pytest.raises(ConfigError, match="incomplete"):
        Estimate.from_dict({"record": "Estimate", "claim": "x"})


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_a_certificate_is_a_bound(value):
    with pytest.raises(ConfigError, match="bound"):
        Certificate("lipschitz", value, "max", "max", "L3")


def test_only_falsified_verdicts_carry_a_witness():
    with pytest.raises(ConfigError, match="witness"):
        Verdict("verified", 0.1, "box", witness=(1.0,))
    with pytest.raises(ConfigError, match="witness"):
        Verdict("falsified", 0.1, "pgd")
    with pytest.raises(ConfigError, match="status"):
        Verdict("maybe", 0.1, "pgd")
