"""From a question to verdicts on disk: quick methods on many inputs, then one search at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from wellposed.core.records import Verdict
from wellposed.experiments.ledger import Effort, Ledger, Line
from wellposed.experiments.question import Question, Subject
from wellposed.experiments.watch import Watch
from wellposed.training.interrupt import InterruptedRunError, StopFlag
from wellposed.verify import cascade
from wellposed.verify.verdicts import Tier

CHUNK = 50  # inputs that the quick methods see at a time


@final
class Decider:
    """Asks one question about some inputs and writes every answer down as soon as it is there.

    The quick methods go over all inputs first; the search over phases then takes one input at a
    time, so that a run that is stopped loses one input at most.

    Args:
        subject: Network and inputs.
        question: What is asked.
        ledger: Where answers go.
    """

    def __init__(self, subject: Subject, question: Question, ledger: Ledger) -> None:
        self.subject, self.question, self.ledger = subject, question, ledger

    def run(self, places: Sequence[int], watch: Watch, stop: StopFlag) -> None:
        """Decide what is not decided yet.

        Args:
            places: Of the inputs.
            watch: Gets the news.
            stop: Asked after every step.

        Raises:
            InterruptedRunError: The user asked to stop; what was decided is on disk.
        """
        known = self.ledger.read()
        wanted = self.question.effort
        left = [i for i in places if i not in known or not known[i].settles(wanted)]
        quick = self.question.quick
        new = [i for i in left if i not in known or not known[i].settles(quick.effort)]
        for first in range(0, len(new), CHUNK):
            lines = self._ask(new[first : first + CHUNK], quick)
            self._keep(lines, watch, stop)
            known |= {line.index: line for line in lines}
        if self.question.last is not Tier.BRANCHING:
            return
        for index in left:
            before = known[index]
            if not before.settles(wanted):
                # the attack has had its turn
                (line,) = self._ask([index], self.question.unattacked)
                self._keep([_joined(before, line, wanted)], watch, stop)

    def _ask(self, places: Sequence[int], question: Question) -> list[Line]:
        x, y = self.subject.part(places)
        subject, attack = self.subject, question.attack
        found = cascade.verify(
            # what was prepared before is not attacked: the cascade has no gradients of it
            subject.classifier if attack is None else subject.model,
            x,
            y,
            question.region(x, subject.domain),
            budget=question.budget,
            attack=attack,
            until=question.last,
            domain=subject.domain,
        )
        return [
            Line(index, int(label), verdict, question.effort)
            for index, label, verdict in zip(places, y, found.verdicts, strict=True)
        ]

    def _keep(self, lines: Sequence[Line], watch: Watch, stop: StopFlag) -> None:
        # a search that was cut short says less than its budget promises
        whole = [line for line in lines if line.decided or not stop.asked]
        self.ledger.write(whole)
        watch.note(whole)
        if stop.asked:
            raise InterruptedRunError(
                f"Stopped; what was decided is in `{self.ledger.folder}`.",
                hint="the same command goes on from there.",
            )


def _joined(before: Line, after: Line, effort: Effort) -> Line:
    """The later verdict with what the earlier methods have found and cost."""
    old, new = before.verdict, after.verdict
    verdict: Verdict = replace(
        new, seconds=old.seconds + new.seconds, bounds={**old.bounds, **new.bounds}
    )
    return replace(after, verdict=verdict, effort=effort)
