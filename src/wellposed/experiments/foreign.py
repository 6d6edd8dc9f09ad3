"""Networks that were trained elsewhere: their weights, their data, properties of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from wellposed.core.network import Network
from wellposed.core.records import Verdict
from wellposed.errors import ConfigError, DataError
from wellposed.experiments.counting import entry
from wellposed.experiments.filing import file_property, filed
from wellposed.experiments.ledger import Ledger
from wellposed.experiments.question import Question, Subject
from wellposed.experiments.shards import Shard
from wellposed.experiments.verification import (
    CERTIFICATES,
    FORMAT,
    clean_share,
    decide,
    file_mine,
    report_line,
)
from wellposed.files.atomic import digest, write_json
from wellposed.files.npz import arrays
from wellposed.verify.branch import Budget
from wellposed.verify.property import verify_statement, worst
from wellposed.verify.verdicts import Tier
from wellposed.verify.vnnlib import load_property


def read_data(
    network: Network, path: Path, domain: tuple[float, float] | None, samples: int
) -> Subject:
    """Labelled inputs of a network from an ``.npz`` file with ``x`` (N, ...) and ``y`` (N,).

    Raises:
        DataError: The file is absent, damaged, or lacks an array, or the inputs do not fit.
        ConfigError: A label is no class.
        ShapeError: An input leaves the domain.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror or error}.", hint="check the path."
        ) from error
    found = arrays(content, str(path), ("x", "y"))
    x, y = found["x"], found["y"]
    form = "the file holds x (N, d), numbers, and y (N,), whole numbers."
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "iu":
        raise DataError(f"`{path}`: x is {x.dtype} and y is {y.dtype}.", hint=form)
    if x.ndim < 2 or y.shape != x.shape[:1] or x[0].size != network.d:
        raise DataError(
            f"`{path}`: x has shape {x.shape} and y {y.shape}; the network has {network.d} inputs.",
            hint=form,
        )
    count = len(x) if not samples else min(samples, len(x))
    inputs = torch.from_numpy(x[:count].astype("float64")).flatten(1)
    return Subject(network, inputs, torch.from_numpy(y[:count].astype("int64")), domain)


def verify_data(
    subject: Subject,
    questions: Sequence[Question],
    folder: Path,
    shard: Shard,
    *,
    again: bool = False,
    certificates: bool = False,
    console: Console | None = None,
) -> None:
    """Answer questions about labelled inputs of a network; ``verification.json`` in `folder`.

    Args:
        subject: Network and inputs.
        questions: Radii and norms.
        folder: For the verdicts; a second call goes on from what is there.
        shard: This process among several.
        again: Forget earlier verdicts.
        certificates: Write a file for the independent checker for every decided input.
        console: Where to write.
    """
    if not isinstance(subject.model, Network):
        raise ConfigError(f"Expected explicit weights, got a {type(subject.model).__name__}.")
    console = console or Console()
    weights = subject.model.digest()
    entries: list[Any] = []
    # explicit weights have no gradients: they are attacked within the search
    for question in [q.unattacked for q in questions]:
        title = f"{question.norm}-norm eps {question.eps:g}"
        about = {
            "format": FORMAT,
            "weights": weights,
            "norm": question.norm,
            "eps": question.eps,
            "domain": None if subject.domain is None else list(subject.domain),
            "data": digest({"x": subject.x, "y": subject.y}),
        }
        place = folder / f"{question.norm}-{question.eps!r}"
        ledger = Ledger(place, about, part=shard.rank, again=again)
        if shard.leads:
            ledger.prepare()
        shard.wait()
        decide(subject, question, ledger, title=title, console=console, shard=shard)
        if certificates:
            file_mine(subject, question, ledger, shard)
        shard.wait()
        if not shard.leads:
            continue
        found = ledger.read()
        content = entry(question, [found[i] for i in range(len(subject))], clean_share(subject))
        if certificates:
            content["certificates"] = asdict(filed(place / CERTIFICATES, shard.world))
        entries.append(content)
        console.print(report_line(title, content), highlight=False, soft_wrap=True)
    if shard.leads:
        path = folder / "verification.json"
        write_json(path, {"format": FORMAT, "weights": weights, "entries": entries})
        console.print(f"verdicts: {path}", highlight=False, soft_wrap=True)


def check_property(
    network: Network,
    path: Path,
    *,
    budget: Budget,
    until: Tier = Tier.BRANCHING,
    out: Path | None = None,
    certificates: Path | None = None,
    console: Console | None = None,
) -> Verdict:
    """Decide a VNN-LIB property: verified (unsat), falsified (sat) with an input, or unknown.

    Args:
        network: Explicit weights.
        path: Of the property.
        budget: Of the search, for each box of inputs that the property names.
        until: The last method.
        out: A JSON file for the verdict.
        certificates: A folder for files for the independent checker, one for each box of inputs.
        console: Where to write.

    Raises:
        DataError: The property cannot be read or parsed; the line is named.
    """
    console = console or Console()
    tasks = load_property(path, network.d, network.q)
    found: list[Verdict] = []
    for task in tasks:
        found += verify_statement(network, task.region, task.statement, budget=budget, until=until)
        if found[-1].status == "falsified":
            break
    verdict = worst(found)
    word = {"verified": "unsat", "falsified": "sat", "unknown": "unknown"}[verdict.status]
    seconds = sum(v.seconds for v in found)
    console.print(
        f"{path}: {verdict.status} ({word}) by {verdict.method} in {seconds:.2f} CPU s, margin "
        f"{verdict.margin:.4g}",
        highlight=False,
        soft_wrap=True,
    )
    if verdict.witness is not None:
        point = " ".join(f"{v:.17g}" for v in verdict.witness[:20])
        more = " ..." if len(verdict.witness) > 20 else ""
        console.print(f"counter-example: {point}{more}", highlight=False, soft_wrap=True)
    if out is not None:
        write_json(out, verdict.to_dict())
    if certificates is not None:
        count = file_property(network, tasks, found, certificates, budget)
        console.print(
            f"certificates: {count.filed} of {count.decided} decided boxes have a file in "
            f"{certificates}, {count.accepted} are accepted",
            highlight=False,
            soft_wrap=True,
        )
    return verdict
