"""Branch and bound that looks for better preactivation bounds when the given ones do not do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from time import perf_counter
from typing import final

import torch

from wellposed.certify.dual import Rows
from wellposed.verify.branch import branch
from wellposed.verify.enclosing import Guess, guessed_bounds
from wellposed.verify.problem import Answer, Budget, Problem

_FIRST = 0.15  # share of the budget for the bounds as they are
_SECOND = 0.6  # share of what is left for better ones


@final
@dataclass(frozen=True, eq=False)
class Decided:
    """Answers, and the bounds that some of them need.

    Args:
        answers: One a row. Their trees hold on `problem`.
        problem: With the better bounds, if some were looked for and found.
        guess: The box that was proved for that, if one was.
    """

    answers: tuple[Answer, ...]
    problem: Problem
    guess: Guess | None = None


def decide(
    problem: Problem, rows: Rows, budget: Budget | None = None, *, every: bool = True
) -> tuple[tuple[Answer, ...], Problem]:
    """The answers of `decided`, and the problem that their trees are about."""
    found = decided(problem, rows, budget, every=every)
    return found.answers, found.problem


def decided(
    problem: Problem, rows: Rows, budget: Budget | None = None, *, every: bool = True
) -> Decided:
    """`branch` on the bounds that are given, then on those of `guessed_bounds`.

    Wide bounds leave many neurons open and cost most of the work; a box near the reachable set
    that branch and bound proves by itself is often found in a fraction of it.

    Args:
        problem: The network on its region.
        rows: What is asked.
        budget: For everything together.
        every: As for `branch`.
    """
    budget = budget or Budget()
    start = perf_counter()
    share = replace(budget, seconds=_FIRST * budget.seconds, nodes=math.ceil(_FIRST * budget.nodes))
    first = branch(problem, rows, share, every=every)
    left = torch.tensor([a.status == "unknown" for a in first]).nonzero()[:, 0]
    found = any(a.status == "falsified" for a in first)
    over = not len(left) or any(a.interrupted for a in first) or (found and not every)
    spent = sum(a.nodes for a in first)
    if over or budget.seconds <= 0 or spent >= budget.nodes:
        return Decided(first, problem)
    rest = max(0.0, budget.seconds - (perf_counter() - start))
    share = replace(
        budget, seconds=_SECOND * rest, nodes=math.ceil(_SECOND * (budget.nodes - spent))
    )
    scope, guesses = guessed_bounds(problem, share)
    spent += sum(guess.nodes for guess in guesses)
    better = replace(problem, scope=scope)
    rest = max(0.0, budget.seconds - (perf_counter() - start))
    again = replace(budget, seconds=rest, nodes=max(0, budget.nodes - spent))
    second = branch(better, rows.select(left), again, every=every)
    answers = list(first)
    for k, answer in zip(left.tolist(), second, strict=True):
        before = first[k]
        lower = max(before.lower, answer.lower)
        answers[k] = replace(answer, lower=lower, nodes=before.nodes + answer.nodes)
    proved = guesses[-1] if guesses and guesses[-1].proved else None
    return Decided(tuple(answers), better, proved)
