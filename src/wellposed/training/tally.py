"""Counting the evaluations of equilibrium layers during training."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.hooks import watching
from wellposed.solvers.base import AdjointReport


@dataclass(eq=False)
class Tally:
    """Evaluations of every solve since the last `clear`.

    Args:
        forward: Evaluations a sample, one tensor a solve.
        adjoint: Reports that a backward pass fills.
    """

    forward: list[Tensor] = field(default_factory=list[Tensor])
    adjoint: list[AdjointReport] = field(default_factory=list[AdjointReport])

    def clear(self) -> None:
        """Forget everything."""
        self.forward.clear()
        self.adjoint.clear()


@contextmanager
def counted(model: nn.Module) -> Generator[Tally]:
    """Inside this block every equilibrium layer of `model` reports to the tally."""
    tally = Tally()

    def note(layer: Equilibrium, inputs: object, output: object) -> None:
        if layer.last is None:
            return
        tally.forward.append(layer.last.evaluations)
        if layer.last.adjoint is not None:
            tally.adjoint.append(layer.last.adjoint)

    with watching(model, note):
        yield tally
