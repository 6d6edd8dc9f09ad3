"""Audit: no measured lower bound may exceed a certificate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import final

from wellposed.core.records import Certificate, Estimate
from wellposed.errors import AuditError, ConfigError


@final
@dataclass(frozen=True)
class Comparison:
    """One certificate beside the largest estimate of the same claim and norms.

    Args:
        certificate: The proved upper bound.
        estimate: The largest measured lower bound.
    """

    certificate: Certificate
    estimate: Estimate

    @property
    def ratio(self) -> float:
        """Certificate over estimate: at least 1 if both are right, 1 if the bound is tight."""
        return inf if self.estimate.value == 0 else self.certificate.value / self.estimate.value


@final
@dataclass(frozen=True)
class AuditSummary:
    """What an audit compared.

    Args:
        comparisons: Each certificate that some estimate speaks about.
        unmatched: Claims of certificates that no estimate speaks about.
    """

    comparisons: tuple[Comparison, ...]
    unmatched: tuple[str, ...]


def audit(
    certificates: Iterable[Certificate], estimates: Iterable[Estimate], *, slack: float = 1e-6
) -> AuditSummary:
    """Compare every certificate with every estimate of the same claim and norms.

    Args:
        certificates: Proved upper bounds. A certificate on a region is compared as well: pass only
            estimates that were taken inside it.
        estimates: Measured lower bounds.
        slack: Relative rounding error granted to an estimate; estimates come from floating-point
            evaluations of the network, certificates do not.

    Returns:
        The comparisons, each with the largest estimate.

    Raises:
        AuditError: An estimate exceeds its certificate: one of the two is wrong.
        ConfigError: `slack` is negative.
    """
    if not slack >= 0:
        raise ConfigError(f"`slack` must not be negative, got {slack}.")
    measured = list(estimates)
    comparisons: list[Comparison] = []
    unmatched: list[str] = []
    for certificate in certificates:
        same = [e for e in measured if _key(e) == _key(certificate)]
        if not same:
            unmatched.append(" ".join(_key(certificate)))
            continue
        # not-a-number is no estimate: it must fail here, not slip through a comparison
        worst = max(same, key=lambda e: inf if e.value != e.value else e.value)
        if not worst.value <= certificate.value * (1 + slack):
            raise AuditError(
                f"An estimate of {certificate.claim} ({worst.method}) is {worst.value:.9g}, above "
                f"the certificate {certificate.value:.9g} of rule {certificate.rule!r} "
                f"({certificate.norm_in} to {certificate.norm_out}).",
                hint="please report it: either the rule is unsound, or the estimate was taken on "
                "other weights, outside the region, or in another unit.",
            )
        comparisons.append(Comparison(certificate, worst))
    return AuditSummary(tuple(comparisons), tuple(unmatched))


def _key(record: Certificate | Estimate) -> tuple[str, str, str]:
    return record.claim, record.norm_in, record.norm_out
