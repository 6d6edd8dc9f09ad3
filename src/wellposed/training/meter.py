"""What an epoch adds up to; sums survive a checkpoint in its middle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.training.tally import Tally


@dataclass
class Sums:
    """Totals of an epoch, plain numbers."""

    examples: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    right: int = 0
    evaluations: float = 0.0
    solves: int = 0
    evaluations_max: float = 0.0
    adjoint: float = 0.0
    adjoint_solves: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """The totals by name."""
        return asdict(self)


@final
class Meter:
    """Collects tensors in a step and adds them up rarely: a step never waits for a number.

    Args:
        tally: Counts evaluations.
        sums: Totals of the part of the epoch that an earlier process has done.
    """

    def __init__(self, tally: Tally, sums: Sums | None = None) -> None:
        self.tally = tally
        self.sums = sums or Sums()
        self._steps: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []

    def add(self, loss: Tensor, penalty: Tensor | None, logits: Tensor, labels: Tensor) -> None:
        """One step: its mean loss, weighted penalty, logits and labels."""
        kept = None if penalty is None else penalty.detach()
        self._steps.append((loss.detach(), kept, logits.detach(), labels))

    def fold(self) -> Sums:
        """Add up what has been collected."""
        s = self.sums
        if self._steps:
            losses, penalties, logits, labels = zip(*self._steps, strict=True)
            sizes = torch.tensor([len(part) for part in labels], dtype=torch.float64)
            s.examples += int(sizes.sum())
            s.loss += float((torch.stack(losses).double().cpu() * sizes).sum())
            known = [part for part in penalties if part is not None]
            if known:
                s.penalty += float((torch.stack(known).double().cpu() * sizes).sum())
            s.right += int((torch.cat(logits).argmax(1) == torch.cat(labels)).sum())
            self._steps.clear()
        for counts in self.tally.forward:
            s.evaluations += float(counts.sum())
            s.solves += counts.numel()
            s.evaluations_max = max(s.evaluations_max, float(counts.max()))
        for report in self.tally.adjoint:
            if report.evaluations is not None:
                s.adjoint += float(report.evaluations.sum())
                s.adjoint_solves += report.evaluations.numel()
        self.tally.clear()
        return s

    def row(self) -> dict[str, float]:
        """The metrics of the epoch."""
        s = self.fold()
        row = {"train_loss": s.loss / s.examples, "train_accuracy": s.right / s.examples}
        if s.penalty:
            row["penalty"] = s.penalty / s.examples
        if s.solves:
            row["evaluations_mean"] = s.evaluations / s.solves
            row["evaluations_max"] = s.evaluations_max
        if s.adjoint_solves:
            row["adjoint_evaluations_mean"] = s.adjoint / s.adjoint_solves
        return row | {"cpu_seconds": s.cpu_seconds, "seconds": s.seconds}
