"""Numbers of a run folder, as the report prints them. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from math import inf, isfinite, sqrt
from typing import Any, Literal, final

from wellposed.report.reading import Run, Trial

NONE = "–"
Way = Literal["near", "up", "down"]
_WAYS = {"near": ROUND_HALF_EVEN, "up": ROUND_CEILING, "down": ROUND_FLOOR}


def number(value: Any) -> float | None:
    """A finite or infinite number, also one that JSON had to write as text; `None` otherwise."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return None if value != value else float(value)  # noqa: PLR0124 - NaN
    return float(value) if value in ("inf", "-inf") else None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds, with n - 1."""
    middle = mean(values)
    return sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))


def short(value: float | None, digits: int = 3, way: Way = "near") -> str:
    """A number to some digits, with thousands separated.

    Args:
        value: Number.
        digits: Significant ones.
        way: Upper bounds are printed rounded up and lower bounds down, so that what is printed is
            proved as well.
    """
    if value is None:
        return NONE
    if not isfinite(value):
        return "∞" if value > 0 else "-∞"
    exact = Decimal(repr(value))
    if exact:
        place = Decimal(1).scaleb(exact.adjusted() - digits + 1)
        if way != "near" or place < 1:
            exact = exact.quantize(place, _WAYS[way])
    if not exact or (-3 <= exact.adjusted() < 6):
        plain = exact.to_integral_value() if exact == exact.to_integral_value() else exact
        if plain.adjusted() >= digits - 1:
            return f"{plain.quantize(Decimal(1), _WAYS[way]):,}"
        text = f"{plain:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    head, _, tail = f"{exact:.{digits - 1}e}".partition("e")
    raised = str(int(tail)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    head = head.rstrip("0").rstrip(".") if "." in head else head
    return f"10{raised}" if head == "1" else f"{head} × 10{raised}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def over_seeds(values: Iterable[float | None], *, as_percent: bool = False, digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    known = [v for v in values if v is not None and isfinite(v)]
    if not known:
        return NONE
    scale, unit = (100.0, " %") if as_percent else (1.0, "")
    middle = scale * mean(known)
    text = f"{middle:.2f}" if as_percent else short(middle, digits)
    if len(known) > 1:
        spread = scale * deviation(known)
        if spread > 0:
            text += f" ± {spread:.2f}" if as_percent else f" ± {short(spread, 2)}"
    return text + unit


@final
@dataclass(frozen=True)
class Bound:
    """A Lipschitz bound or a measured lower bound of one.

    Args:
        label: Short name, such as ``L3``.
        value: Number.
        proved: Whether it is a certificate.
        rule: Rule or method.
        region: Where it holds.
        norms: Norms of inputs and outputs.
        assumes: What it takes on trust.
    """

    label: str
    value: float
    proved: bool
    rule: str
    region: str
    norms: str
    assumes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The value in print: a certificate rounded up, an estimate down."""
        return short(self.value, way="up" if self.proved else "down")


def bounds(records: Any) -> list[Bound]:
    """Every Lipschitz certificate and estimate, certificates first, loosest first."""
    found: list[Bound] = []
    for record in records if isinstance(records, list) else []:
        if not isinstance(record, dict) or "lipschitz" not in str(record.get("claim", "")):
            continue
        value = number(record.get("value"))
        if value is None or not isfinite(value) or value <= 0:
            continue
        proved = record.get("record") == "Certificate"
        rule = str(record.get("rule") or record.get("method") or "")
        norms = f"{record.get('norm_in', '?')} → {record.get('norm_out', '?')}"
        found.append(
            Bound(
                _label(rule, record, proved=proved),
                value,
                proved,
                rule,
                str(record.get("region") or "everywhere"),
                norms,
                tuple(str(a) for a in record.get("assumes") or ()),
            )
        )
    return sorted(found, key=lambda b: (not b.proved, b.norms, -b.value))


def main_norm(rows: list[Bound]) -> list[Bound]:
    """The bounds in the max norm, or those of the first norm where there is none."""
    norms = [row.norms for row in rows]
    main = "max → max" if "max → max" in norms else (norms[0] if norms else "")
    return [row for row in rows if row.norms == main]


def _label(rule: str, record: dict[str, Any], *, proved: bool) -> str:
    head = rule.split(":", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    level = head if len(head) == 2 and head[0] == "L" and head[1].isdigit() else ""
    norm = str(record.get("norm_in", "max"))
    tail = "" if norm == "max" else f", {norm}-norm"
    if not proved:
        return f"attacked{tail}"
    local = record.get("region", "everywhere") != "everywhere"
    return (level or "composed") + (" (local)" if local and level != "L4" else "") + tail


def metric(run: Run, trial: Trial, *names: str) -> float | None:
    """The first of some metrics that the trial's files or the summary hold."""
    seeds = (run.summary.get("variants") or {}).get(trial.variant) or {}
    for source in (trial.parts.get("metrics"), seeds.get(trial.seed)):
        if isinstance(source, dict):
            for name in names:
                value = number(source.get(name))
                if value is not None:
                    return value
    return None


def epoch_mean(trial: Trial, name: str) -> float | None:
    """Mean of a column of ``metrics.jsonl`` over the epochs."""
    values = [v for row in trial.epochs if (v := number(row.get(name))) is not None]
    return mean(values) if values else None


def main_bounds(run: Run, variant: str) -> tuple[Bound | None, Bound | None]:
    """The smallest certificate that holds everywhere, and the largest lower bound beside it.

    In the max norm, and for the seed whose certificate is the largest: what is said of a variant
    holds for every seed.
    """
    found: list[tuple[Bound | None, Bound | None]] = []
    for trial in run.of(variant):
        rows = main_norm(bounds(trial.parts.get("certificates")))
        proved = [row for row in rows if row.proved and row.region == "everywhere"]
        attacked = [row for row in rows if not row.proved]
        found.append(
            (
                min(proved, key=lambda b: b.value, default=None),
                max(attacked, key=lambda b: b.value, default=None),
            )
        )
    known = [pair for pair in found if pair[0] or pair[1]]
    if not known:
        return None, None
    # a seed without a certificate leaves the variant without one
    return max(known, key=lambda pair: inf if pair[0] is None else pair[0].value)


def median_radius(run: Run, variant: str) -> float | None:
    """The smallest over seeds of the median certified radius; `None` unless all seeds have one."""
    found = [
        number(((t.parts.get("attacks") or {}).get("certified") or {}).get("median_radius"))
        for t in run.of(variant)
    ]
    known = [v for v in found if v is not None]
    return min(known) if known and len(known) == len(found) else None


def summary_rows(run: Run) -> list[list[str]]:
    """The summary table, one row a variant."""
    rows: list[list[str]] = []
    for variant in run.variants:
        trials = run.of(variant)
        proved, attacked = main_bounds(run, variant)
        rows.append(
            [
                variant,
                over_seeds((metric(run, t, "test_accuracy") for t in trials), as_percent=True),
                over_seeds(metric(run, t, "parameters") for t in trials),
                over_seeds(
                    metric(run, t, "cpu_seconds_per_epoch", "epoch_cpu_seconds")
                    or epoch_mean(t, "cpu_seconds")
                    for t in trials
                ),
                _pair(_evaluations(trials, ""), _evaluations(trials, "adjoint_")),
                _pair(
                    short(proved.value, way="up") if proved else NONE,
                    short(attacked.value, way="down") if attacked else NONE,
                ),
                short(median_radius(run, variant), way="down"),
            ]
        )
    return rows


SUMMARY_HEAD = (
    "Network",
    "Test accuracy",
    "Parameters",
    "CPU seconds an epoch",
    "Evaluations, forward / backward",
    "Lipschitz, certified / attacked",
    "Median certified eps",
)


def _evaluations(trials: Sequence[Trial], which: str) -> str:
    known = [_last(t, f"{which}evaluations_mean") for t in trials]
    return over_seeds(v or None for v in known)


def _pair(one: str, two: str) -> str:
    return NONE if one == two == NONE else f"{one} / {two}"


def _last(trial: Trial, name: str) -> float | None:
    values = [v for row in trial.epochs if (v := number(row.get(name))) is not None]
    return values[-1] if values else None


def all_metrics(run: Run) -> list[list[str]]:
    """Every number of the summary: variant, seed, metric, value."""
    rows: list[list[str]] = []
    for trial in run.trials:
        found = trial.parts.get("metrics")
        if isinstance(found, dict):
            rows += [
                [trial.variant, trial.seed, name, short(v, 6)]
                for name, value in found.items()
                if (v := number(value)) is not None
            ]
    return rows
