"""What a run guarantees, in plain words, from its records alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from wellposed.report.numbers import (
    NONE,
    bounds,
    main_bounds,
    median_radius,
    metric,
    number,
    over_seeds,
    short,
)
from wellposed.report.reading import Run


def headline(run: Run) -> str:
    """One sentence about the first network: how good it is and what is proved."""
    if not run.variants:
        return "Nothing was trained yet, so nothing can be said."
    name = run.variants[0]
    accuracy = over_seeds((metric(run, t, "test_accuracy") for t in run.of(name)), as_percent=True)
    text = f"{name} classifies {accuracy} of the test images rightly. "
    text = text if accuracy[0].isdigit() else f"{name} has no recorded test accuracy. "
    proved, _ = main_bounds(run, name)
    if proved is None:
        return text + "No Lipschitz certificate was found in this run: nothing is guaranteed."
    text += (
        "Every input has exactly one output, and moving every pixel by at most eps moves no logit "
        f"by more than {short(proved.value, way='up')} eps"
    )
    radius = median_radius(run, name)
    if radius:
        text += (
            "; for half of the test images tried, no change of amplitude below "
            f"{short(radius, way='down')} can alter the predicted class"
        )
    return text + "."


CHECKS_HEAD = (
    "Network",
    "Lipschitz: certified over attacked",
    "Errors within the certified radius",
    "Attacked accuracy above clean",
    "Solves that failed in attacks",
)


@final
@dataclass(frozen=True)
class Check:
    """One comparison: whether it holds (`None`: nothing to compare) and what it found."""

    holds: bool | None
    text: str


def checks(run: Run) -> list[tuple[str, list[Check]]]:
    """Comparisons of certificates with attacks, the worst over seeds, one row a variant."""
    rows: list[tuple[str, list[Check]]] = []
    for name in run.variants:
        records = [t.parts["certificates"] for t in run.of(name) if "certificates" in t.parts]
        attacks = [t.parts["attacks"] for t in run.of(name) if "attacks" in t.parts]
        row = [_ratio(records), _within(attacks), _above(attacks), _failed(attacks)]
        if any(check.holds is not None for check in row):
            rows.append((name, row))
    return rows


def _ratio(trials: list[Any]) -> Check:
    ratios: list[float] = []
    for records in trials:
        rows = bounds(records)
        for norms in dict.fromkeys(row.norms for row in rows):
            mine = [row for row in rows if row.norms == norms]
            proved = [r.value for r in mine if r.proved and r.region == "everywhere"]
            found = [r.value for r in mine if not r.proved]
            if proved and found:
                ratios.append(min(proved) / max(found))
    if not ratios:
        return Check(None, NONE)

    worst = min(ratios)
    return Check(worst >= 1, f"{short(worst)} {'≥' if worst >= 1 else '<'} 1")


def _within(trials: list[Any]) -> Check:
    made = [n for t in trials if t.get("certified") and (n := number(t.get("comparisons")))]
    if any(_crossing(t) for t in trials):
        return Check(False, "certified curve above PGD")
    # the run itself stops with an error at the first image that errs within its radius
    return Check(True, f"0 of {sum(made):,.0f}") if made else Check(None, NONE)


def _crossing(attacks: dict[str, Any]) -> bool:
    """Whether more images are certified at some radius than an attack of that radius left."""
    certified, pgd = attacks.get("certified"), (attacks.get("curves") or {}).get("pgd")
    if not certified or not pgd:
        return False
    proved = list(zip(certified["eps"], certified["accuracy"], strict=True))
    return any(
        at >= eps and share > left + 1e-9
        for eps, left in zip(pgd["eps"], pgd["accuracy"], strict=True)
        for at, share in proved
    )


def _above(trials: list[Any]) -> Check:
    gaps = [
        max(pgd) - clean
        for t in trials
        if (clean := number(t.get("clean"))) is not None
        and (pgd := ((t.get("curves") or {}).get("pgd") or {}).get("accuracy"))
    ]
    if not gaps:
        return Check(None, NONE)
    worst = max(gaps)
    return Check(worst <= 1e-9, "nowhere" if worst <= 1e-9 else f"by {100 * worst:.2g} points")


def _failed(trials: list[Any]) -> Check:
    curves = [curve for t in trials for curve in (t.get("curves") or {}).values()]
    if not curves:
        return Check(None, NONE)
    failed = sum(sum(curve.get("unsolved") or [0]) for curve in curves)
    return Check(failed == 0, f"{failed:,}")


def assumptions(run: Run) -> list[str]:
    """What the certificates take on trust, each once."""
    found: dict[str, None] = {}
    for trial in run.trials:
        records = trial.parts.get("certificates")
        for record in records if isinstance(records, list) else []:
            if isinstance(record, dict):
                found |= dict.fromkeys(str(a) for a in record.get("assumes") or ())
        certified = (trial.parts.get("attacks") or {}).get("certified") or {}
        found |= dict.fromkeys(str(a) for a in certified.get("assumes") or ())
    return list(found)
