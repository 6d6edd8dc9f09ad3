"""``wellposed verify``: verified, falsified or unknown, for every input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wellposed.cli.shared import opened
from wellposed.errors import ConfigError

if TYPE_CHECKING:
    from wellposed.experiments.question import NormName, Question
    from wellposed.verify.verdicts import Tier

T = TypeVar("T")
_NORMS: dict[str, NormName] = {"max": "max", "inf": "max", "2": "2"}


def verify(
    target: Path,
    *,
    eps: str | None = None,
    norm: str = "max",
    samples: int = 1000,
    budget: float = 10.0,
    nodes: int = 100_000,
    until: str = "branching",
    steps: int = 20,
    restarts: int = 1,
    variants: str | None = None,
    seeds: str | None = None,
    data: Path | None = None,
    property: Path | None = None,
    domain: str | None = None,
    out: Path | None = None,
    certificates: bool = False,
    again: bool = False,
    record: bool = False,
) -> None:
    """Decide for every input whether its class is the same in the whole ball around it.

    Methods are tried from the cheapest to the complete one, and an input leaves at the first
    answer: attack, lipschitz, boxes, linear, tightening, branching. A verdict is on the disk as
    soon as it is reached: after Ctrl-C the same command goes on. Under ``torchrun`` every process
    takes its share of the inputs.

    Args:
        target: A run folder, or a file of weights that were trained elsewhere (.npz, .safetensors,
            .pt) with W, U, b, C, c.
        eps: Radius in the unit of the inputs, or several such as 0.01,0.02.
        norm: Norm of the ball, max (or inf) or 2.
        samples: The first so many inputs; 0 for all.
        budget: Seconds of the search over phases by the clock, for one input; 0 for no search. What
            is reported is CPU time.
        nodes: Limit of the same search in cases.
        until: The last method to try.
        steps: Gradient steps of the attack; 0 for none.
        restarts: Of the attack.
        variants: Of a run, such as nemon,mlp; all by default.
        seeds: Of a run, such as 0,1; all by default.
        data: For weights: an .npz file with inputs x (N, d) and labels y (N,).
        property: For weights: a VNN-LIB file that states what must not happen.
        domain: For weights: smallest and largest value of an input, such as 0,1; none by default.
        out: For weights: a folder for the verdicts on --data, verification/<name> by default; a
            JSON file for the verdict on --property.
        certificates: Write a file for `wellposed check` for every decided input, beside the
            verdicts.
        again: Forget earlier verdicts.
        record: For a run: write the figures to results/<name>.json as well.
    """
    last = _tier(until)
    if target.is_dir() or not target.exists():
        _refuse(target, {"--data": data, "--property": property, "--domain": domain, "--out": out})
        questions = _questions(eps, norm, last, (budget, nodes, steps, restarts))
        _run(
            target,
            questions,
            (variants, seeds, samples),
            again=again,
            certificates=certificates,
            record=record,
        )
        return
    _refuse(target, {"--variants": variants, "--seeds": seeds, "--record": record or None})
    from wellposed.experiments.foreign import check_property, read_data, verify_data
    from wellposed.experiments.shards import sharded
    from wellposed.verify.branch import Budget
    from wellposed.verify.weights import load_network

    network = load_network(target)
    if property is not None:
        _refuse(target, {"--eps beside --property": eps, "--data beside --property": data})
        place = Path("verification") / property.stem if out is None else out.parent / out.stem
        check_property(
            network,
            property,
            budget=Budget(budget, nodes),
            until=last,
            out=out,
            certificates=place if certificates else None,
        )
        return
    if data is None:
        raise ConfigError(
            f"`{target}` is a file of weights, and there is nothing to verify.",
            hint="give `--data FILE.npz --eps 0.01` or `--property FILE.vnnlib`.",
        )
    questions = _questions(eps, norm, last, (budget, nodes, steps, restarts))
    limits = None if domain is None else _pair(domain)
    subject = read_data(network, data, limits, samples)
    folder = out or Path("verification") / target.stem
    with sharded() as shard:
        verify_data(subject, questions, folder, shard, again=again, certificates=certificates)


def _run(
    target: Path,
    questions: list[Question],
    chosen: tuple[str | None, str | None, int],
    *,
    again: bool,
    certificates: bool,
    record: bool,
) -> None:
    from wellposed.experiments.shards import sharded
    from wellposed.experiments.summary import record as publish
    from wellposed.experiments.summary import summarise
    from wellposed.experiments.verification import Choice, verify_run

    work = opened(target)
    variants, seeds, samples = chosen
    choice = Choice(
        variants=_list(variants, str, "variants"),
        seeds=_list(seeds, int, "seeds"),
        samples=samples,
        again=again,
        certificates=certificates,
    )
    with sharded() as shard:
        verify_run(work, questions, choice, shard)
        if shard.leads:
            summary = summarise(work)
            if record:
                publish(work, Path("results"), summary)


def _questions(
    eps: str | None, norm: str, last: Tier, effort: tuple[float, int, int, int]
) -> list[Question]:
    from wellposed.experiments.question import Question

    if eps is None:
        raise ConfigError("`--eps` is not given.", hint="give a radius, such as `--eps 0.1`.")
    if norm not in _NORMS:
        raise ConfigError(f"`--norm` is {norm!r}, expected max, inf or 2.")
    seconds, nodes, steps, restarts = effort
    return [
        Question(radius, _NORMS[norm], last, seconds, nodes, steps, restarts)
        for radius in _list(eps, float, "eps")
    ]


def _tier(name: str) -> Tier:
    from wellposed.verify.verdicts import Tier

    found = [tier for tier in Tier if name and tier.value.startswith(name)]
    if len(found) != 1:
        names = ", ".join(tier.value.partition(" ")[0] for tier in Tier)
        raise ConfigError(f"`--until` is {name!r}, expected one of {names}.")
    return found[0]


def _list(text: str | None, kind: Callable[[str], T], flag: str) -> list[T]:
    try:
        return [] if text is None else [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        what = {int: "whole numbers", float: "numbers"}.get(kind, "names")  # type: ignore[call-overload]
        raise ConfigError(f"`--{flag}` is {text!r}; expected {what} with commas between.") from None


def _pair(text: str) -> tuple[float, float]:
    found = _list(text, float, "domain")
    if len(found) != 2:
        raise ConfigError(f"`--domain` is {text!r}, expected two numbers such as 0,1.")
    return found[0], found[1]


def _refuse(target: Path, flags: dict[str, object]) -> None:
    given = [name for name, value in flags.items() if value is not None]
    if given:
        kind = "a file of weights" if target.is_file() else "a run folder"
        raise ConfigError(f"{', '.join(given)} cannot be used with {kind}, `{target}`.")
