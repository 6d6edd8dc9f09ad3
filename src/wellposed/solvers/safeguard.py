"""The safeguard of the accelerated solvers: never lose what plain steps had reached.

An accelerated iterate is accepted if its residual is at most `GROWTH` times the smallest one since
the last plain step. Otherwise the sample goes back to the plain step that was open to it before
(the image of the iterate before, which is kept), forgets its history and takes plain steps only for
a while that doubles with every rejection. No evaluation is made for this beyond those of the
iterates, so that a contraction in any norm still converges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wellposed.core.peel import plain

GROWTH = 2.0
"""Residuals of accepted iterates may grow by this factor: methods of this kind are not monotone."""
PATIENCE = 40
"""Progress is judged over this many evaluations."""
PROGRESS = 0.5
"""Acceleration that reduces the residual by less than this within `PATIENCE` is not worth it."""
REST = 1000
"""After such a stretch the sample takes plain steps for this many times its length: in practice to
the end, since a second attempt would undo what plain steps gain where residuals grow first."""


class Guard(NamedTuple):
    """What the safeguard remembers: one number a sample, and two of the batch."""

    level: Tensor
    mark: Tensor
    resume: Tensor
    penalty: Tensor
    busy: int
    seen: int

    @staticmethod
    def start(residual: Tensor) -> Guard:
        """A guard after the first evaluation."""
        zero = torch.zeros_like(residual)
        return Guard(residual, residual, zero, zero + 1, 0, 0)


class Verdict(NamedTuple):
    """Which samples were refused and which take plain steps; `None` stands for none of them."""

    refused: Tensor | None
    resting: Tensor | None


def judge(
    guard: Guard, residual: Tensor, *, patient: bool = False, growth: float = GROWTH
) -> tuple[Verdict, Guard]:
    """Judge the iterates that have these residuals.

    Args:
        guard: What is remembered.
        residual: Norm of ``f(z) - z``, a sample.
        patient: Whether to go on although progress is slow (the history is still to grow).
        growth: Factor by which accepted residuals may exceed the smallest.
    """
    level, mark, resume, penalty, busy, seen = guard
    refused = residual > growth * level
    resting = None
    lower = torch.minimum(level, residual)
    if seen < busy:
        # plain steps may well raise a residual on their way: they set the level anew
        resting = resume > seen
        refused = refused & ~resting
        lower = torch.where(resting, residual, lower)
    if bool(plain(refused).any()):
        resume = torch.where(refused, penalty + (seen + 1), resume)
        penalty = torch.where(refused, 2 * penalty, penalty)
        lower = torch.where(refused, level, lower)
        busy = int(plain(resume).max())
    else:
        refused = None
    if seen % PATIENCE == PATIENCE - 1:
        slow = (lower > PROGRESS * mark) & (resume <= seen)
        if not patient and bool(plain(slow).any()):
            resume = torch.where(slow, float(seen + REST * PATIENCE), resume)
            busy = int(plain(resume).max())
        mark = lower
    return Verdict(refused, resting), Guard(lower, mark, resume, penalty, busy, seen + 1)
