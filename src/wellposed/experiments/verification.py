"""Verify trained networks of a run: resumable, divided over processes, written for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from rich.console import Console

from wellposed.attacks.exact import margins
from wellposed.certify.equilibria import equilibrium
from wellposed.core.network import Network
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.experiments.counting import entry
from wellposed.experiments.curves import Sample, clean_margins
from wellposed.experiments.deciding import Decider
from wellposed.experiments.filing import Filed, file_certificates, filed
from wellposed.experiments.ledger import Ledger
from wellposed.experiments.question import Question, Subject
from wellposed.experiments.shards import Shard
from wellposed.experiments.watch import Watch
from wellposed.experiments.witnesses import gallery
from wellposed.experiments.workspace import Job, Workspace
from wellposed.training.interrupt import first_interrupt

STEP = "verification"
CERTIFICATES = "certificates"
PIXELS = (0.0, 1.0)
FORMAT = 1


@final
@dataclass(frozen=True)
class Choice:
    """Which networks and inputs of a run.

    Args:
        variants: Names; empty for all.
        seeds: Empty for all.
        samples: The first so many test images; 0 for all.
        again: Forget earlier verdicts.
        certificates: Write a file for the independent checker for every decided input.
    """

    variants: Sequence[str] = ()
    seeds: Sequence[int] = ()
    samples: int = 1000
    again: bool = False
    certificates: bool = False

    def jobs(self, work: Workspace) -> list[Job]:
        """The networks that were chosen.

        Raises:
            ConfigError: There is no such variant or seed.
        """
        if self.samples < 0:
            raise ConfigError(f"`samples` is {self.samples}, expected 0 (all) or more.")
        jobs = list(work.jobs())
        for what, wanted, known in (
            ("variant", self.variants, [job.name for job in jobs]),
            ("seed", self.seeds, [job.seed for job in jobs]),
        ):
            for value in wanted:
                if value not in known:
                    there = ", ".join(map(str, dict.fromkeys(known)))
                    raise ConfigError(f"There is no {what} {value} in this run; it has {there}.")
        return [
            job
            for job in jobs
            if (not self.variants or job.name in self.variants)
            and (not self.seeds or job.seed in self.seeds)
        ]


def verify_run(
    work: Workspace,
    questions: Sequence[Question],
    choice: Choice | None = None,
    shard: Shard | None = None,
) -> None:
    """Answer the questions for every chosen network and write ``verification.json`` beside each.

    A network without rules is told and left out.

    Args:
        work: The run.
        questions: Radii and norms.
        choice: Which networks and how many images.
        shard: This process among several.

    Raises:
        NotCertifiableError: No chosen network can be verified.
        InterruptedRunError: The user asked to stop; the same call goes on.
    """
    choice, shard = choice or Choice(), shard or Shard()
    torch.set_num_threads(work.config.threads)
    refused: NotCertifiableError | None = None
    done = 0
    for job in choice.jobs(work):
        try:
            for question in questions:
                verify_job(work, job, question, choice, shard)
            done += 1
        except NotCertifiableError as error:
            refused = error
            if shard.leads:
                work.say(f"{job.title}: not verified: {error.message}")
    if refused is not None and not done:
        raise refused


def verify_job(
    work: Workspace, job: Job, question: Question, choice: Choice, shard: Shard
) -> dict[str, Any] | None:
    """One network and one radius; returns the new entry of ``verification.json`` where it leads.

    Every process writes a part of its own and takes every `world`-th image; the leading one then
    merges. Verdicts that exist are kept, so that a second call only does what is missing.
    """
    model, weights = work.trained(job)
    split = work.parts.test
    count = len(split) if not choice.samples else min(choice.samples, len(split))
    part = split.take(torch.arange(count))
    subject = Subject(model, part.floats(), part.labels, PIXELS)
    folder = job.folder / STEP / f"{question.norm}-{question.eps!r}"
    about = {
        "format": FORMAT,
        "weights": weights,
        "norm": question.norm,
        "eps": question.eps,
        "domain": list(PIXELS),
        "data": dict(work.parts.source.digests),
    }
    title = f"{job.title}, {question.norm}-norm eps {question.eps:g}"
    ledger = Ledger(folder, about, part=shard.rank, again=choice.again)
    if shard.leads:
        ledger.prepare()
    shard.wait()
    decide(subject, question, ledger, title=title, console=work.console, shard=shard)
    if choice.certificates:
        file_mine(subject, question, ledger, shard)
    shard.wait()
    if not shard.leads:
        return None
    found = ledger.read()
    lines = [found[i] for i in range(count)]
    content = entry(question, lines, clean_share(subject))
    if choice.certificates:
        content["certificates"] = asdict(filed(folder / CERTIFICATES, shard.world))
    content["gallery"] = gallery(subject, question, lines)
    _store(job, content, weights)
    work.say(report_line(title, content))
    return content


def decide(
    subject: Subject,
    question: Question,
    ledger: Ledger,
    *,
    title: str,
    console: Console,
    shard: Shard,
) -> None:
    """Let this process decide its inputs, with a bar for the user and Ctrl-C between steps.

    Raises:
        ConfigError: A label is no class of the network.
        InterruptedRunError: The user asked to stop.
    """
    classes = subject.classifier.classes
    if len(subject) and int(subject.y.max()) >= classes:
        raise ConfigError(
            f"The label {int(subject.y.max())} is no class of a network with {classes} logits."
        )
    ledger.repair()
    places = shard.mine(range(len(subject)))
    known = ledger.read()
    mine = [known[i] for i in places if i in known]
    shown = console if shard.leads else Console(quiet=True)
    with first_interrupt() as stop, Watch(title, len(places), mine, shown) as watch:
        Decider(subject, question, ledger).run(places, watch, stop)


def file_mine(subject: Subject, question: Question, ledger: Ledger, shard: Shard) -> Filed:
    """Write the certificate files of this process's inputs; see `file_certificates`."""
    found = ledger.read()
    lines = [found[i] for i in shard.mine(range(len(subject)))]
    return file_certificates(subject, question, lines, ledger.folder / CERTIFICATES, shard.rank)


def clean_share(subject: Subject) -> float:
    """Accuracy on the inputs themselves, as computed."""
    if isinstance(subject.model, Network):
        net = subject.model
        x = subject.x.double()
        z = equilibrium(net, x, subject.classifier.wellposed).z
        margin = margins(net.output(z, x), subject.y)
    else:
        margin = clean_margins(subject.model, Sample(subject.x, subject.y))
    return float((margin > 0).double().mean())


def report_line(title: str, content: dict[str, Any]) -> str:
    """One line about an entry, for the user."""
    count = max(content["samples"], 1)
    shares = {name: 100 * number / count for name, number in content["counts"].items()}
    parts = ", ".join(f"{share:.2f} % {name}" for name, share in shares.items())
    seconds = content["seconds"]["mean"] if content["seconds"] else 0.0
    text = f"{title}: {parts} of {content['samples']:,} inputs, {seconds:.3g} CPU s each"
    if (files := content.get("certificates")) is not None:
        text += "; {filed} of {decided} decided have a file, {accepted} are accepted".format(
            **files
        )
    return text


def _store(job: Job, content: dict[str, Any], weights: str) -> None:
    """Put an entry in its place; entries of other weights go."""
    old = job.read(STEP)
    kept: list[Any] = []
    if isinstance(old, dict) and old.get("weights") == weights:
        kept = [e for e in old["entries"] if (e["norm"], e["eps"]) != _key(content)]
    entries = sorted([*kept, content], key=_key)
    job.write(STEP, {"format": FORMAT, "weights": weights, "entries": entries}, weights)


def _key(content: dict[str, Any]) -> tuple[str, float]:
    return content["norm"], content["eps"]
