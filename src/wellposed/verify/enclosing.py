"""Preactivation bounds: a box guessed near the reachable set, proved by branch and bound.

Linear bounds amplify: where unstable neurons couple strongly, no box is contained in its image
under them, however it is grown. Containment is also a set of yes-no questions, one a neuron and
side, and those branch and bound decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import Rows, Scope
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.system import System
from wellposed.core.sets import Box
from wellposed.core.spectra import TINY, outward, rounding
from wellposed.errors import ShapeError
from wellposed.verify.bounding import Ascent
from wellposed.verify.branch import Answer, Budget, Problem, branch
from wellposed.verify.extreme import Inputs
from wellposed.verify.reduced import Reduced
from wellposed.verify.witness import Probe

SURE = 1e-10
"""What is proved is proved with this to spare, as a part of its size."""
_GROWTH = 1.6  # a side that was not proved moves by this factor


@final
@dataclass(frozen=True, eq=False)
class Guess:
    """A box that was tried.

    Args:
        lower: Shape (n,).
        upper: Shape (n,).
        neuron: Of each question, shape (Q,).
        side: 1 where ``v_i > lower_i`` was asked, -1 where ``v_i < upper_i``, shape (Q,).
        proved: Whether all were answered with yes.
        nodes: Spent on it.
        answers: One a question, with the tree that proves it.
    """

    lower: Tensor
    upper: Tensor
    neuron: Tensor
    side: Tensor
    proved: bool
    nodes: int
    answers: tuple[Answer, ...]


@torch.no_grad()
def guessed_bounds(
    problem: Problem,
    budget: Budget | None = None,
    *,
    slack: float = 0.5,
    tries: int = 6,
) -> tuple[Scope, list[Guess]]:
    """Narrower bounds of the preactivations, by assume and guarantee with branch and bound.

    **Theorem.** Let ``x -> v*(x)`` be continuous (the network is well posed), ``X`` connected,
    ``v*`` in ``B`` on ``X``, ``G`` a box with ``G_i = B_i`` for ``i`` outside of a set of neurons
    ``Q``, and ``v*_i(x0)`` in the interior of ``G_i`` for ``i`` in ``Q`` and some ``x0`` in ``X``.
    If for every ``x`` with ``v*(x)`` in ``G`` and every ``i`` in ``Q`` also ``v*_i(x)`` lies in the
    interior of ``G_i``, then ``v*`` lies in ``G`` on all of ``X``. *Proof.* The inputs with ``v*``
    in ``G`` are closed, and open as ``v*_i`` stays in the interior near each of them; they contain
    ``x0``, so they are all of the connected ``X``. QED.

    The guess is the hull of what descent reaches, moved outward; each side that is narrower than
    ``B`` and matters is one question of `branch` on the region with bounds ``G``.

    Args:
        problem: Network and region with proved bounds ``B``.
        budget: For everything.
        slack: The first guess is wider than the hull by this fraction of its width.
        tries: Guesses at most; sides that were not proved move outward in between.

    Returns:
        The scope with the bounds that are proved, ``B`` if no guess was; and the guesses.

    Raises:
        ShapeError: The scope is not a batch of one.
    """
    scope = problem.scope
    if len(scope.lower) != 1:
        raise ShapeError(f"The scope holds {len(scope.lower)} regions, expected 1.")
    start = perf_counter()
    anchor = _anchor(problem)
    is_open = (scope.lower < 0) & (scope.upper > 0) & (problem.network.slope != 1)
    work = replace(budget or Budget(), probes=2)
    if anchor is None or min(work.seconds, work.nodes) <= 0 or not bool(is_open.any()):
        return scope, []
    hull = _hull(problem, anchor)
    reach = (hull.upper - hull.lower) * (slack / 2) + 1e-9 * (1 + hull.upper.abs())
    lower, upper = hull.lower - reach, hull.upper + reach
    guesses: list[Guess] = []
    for _ in range(tries):
        left = work.seconds - (perf_counter() - start)
        nodes = work.nodes - sum(guess.nodes for guess in guesses)
        if min(left, nodes) <= 0:
            break
        guess, failed, beyond = _ask(
            problem, lower, upper, replace(work, seconds=left, nodes=nodes)
        )
        guesses.append(guess)
        if guess.proved:
            box = Box(guess.lower[None], guess.upper[None])
            return Scope.of(problem.system, scope.region, box), guesses
        wide = (upper - lower) * (_GROWTH - 1) / 2
        low = failed[(guess.side > 0)[failed]]
        high = failed[(guess.side < 0)[failed]]
        lower[guess.neuron[low]] -= wide[guess.neuron[low]] + beyond[low]
        upper[guess.neuron[high]] += wide[guess.neuron[high]] + beyond[high]
    return scope, guesses


def _ask(
    problem: Problem, lower: Tensor, upper: Tensor, budget: Budget
) -> tuple[Guess, Tensor, Tensor]:
    """One guess: what was proved, the questions that were not, and how far each was exceeded."""
    base = problem.scope
    is_open = (base.lower[0] < 0) & (base.upper[0] > 0) & (problem.network.slope != 1)
    # of a neuron that the guess makes stable only the end next to zero matters
    below = is_open & (lower > base.lower[0]) & (upper > 0)
    above = is_open & (upper < base.upper[0]) & (lower < 0)
    G = Box(
        torch.where(below, lower, base.lower[0])[None],
        torch.where(above, upper, base.upper[0])[None],
    )
    neuron = torch.cat([below.nonzero()[:, 0], above.nonzero()[:, 0]])
    side = torch.cat([torch.ones(int(below.sum())), -torch.ones(int(above.sum()))]).double()
    rows = _rows(problem.system, G, neuron, side)
    inside = replace(problem, scope=Scope.of(problem.system, base.region, G))
    answers = branch(inside, rows, budget)
    good = torch.tensor([a.status == "verified" for a in answers], dtype=torch.bool)
    beyond = torch.tensor([max(0.0, -min(a.upper, 0.0)) for a in answers], dtype=torch.float64)
    nodes = sum(a.nodes for a in answers)
    guess = Guess(G.lower[0], G.upper[0], neuron, side, bool(good.all()), nodes, answers)
    return guess, (~good).nonzero()[:, 0], beyond


def questions(system: System, guess: Guess) -> Rows:
    """What was asked about a guess: rows that are positive where ``v_i`` keeps to its side."""
    return _rows(system, Box(guess.lower[None], guess.upper[None]), guess.neuron, guess.side)


def _rows(system: System, G: Box, neuron: Tensor, side: Tensor) -> Rows:
    W, U = system.rows(neuron)
    own, sign = system.bias[neuron], side[:, None]
    ends = torch.where(side > 0, -G.lower[0, neuron], G.upper[0, neuron])
    # the offset is rounded, and another program has to come to the same answer
    return Rows(sign * W, sign * U, side * own + ends - SURE * (1 + own.abs() + ends.abs()))


def _anchor(problem: Problem) -> Box | None:
    """Proved bounds of the preactivations at the centre of the region, shape (n,)."""
    network, region = problem.network, problem.scope.region
    x = Inputs(region).clip(region.centre)
    if not bool(region.contains(x).all()):
        return None
    z, error = equilibrium(network, x, problem.wellposed)
    v = network.preactivation(z, x)
    size = z.abs() @ network.W.abs().mT + x.abs() @ network.U.abs().mT + network.b.abs()
    slack = outward(error @ network.W.abs().mT, network.n + 4)
    slack = slack + outward(3 * rounding(network.n + network.d + 8) * size, 4) + TINY
    if not bool(torch.isfinite(slack).all()):
        return None
    return Box((v - slack)[0], (v + slack)[0])


def _hull(problem: Problem, anchor: Box) -> Box:
    """What descent on every preactivation reaches from the centre; a guess."""
    network, scope = problem.network, problem.scope
    inputs = Inputs(scope.region)
    reduced = Reduced.of(network, Box(scope.lower[0], scope.upper[0]))
    sides = (network.W, network.U, network.b)
    W, U, b = (torch.cat([t, -t]) for t in sides)
    probe = Probe(Ascent(reduced, inputs, reduced.rows(Rows(W, U, b))))
    centre = scope.region.centre.expand(2 * network.n, -1)
    _, value = probe.improve(torch.arange(2 * network.n), centre, rounds=4)
    low, high = value[: network.n], -value[network.n :]
    return Box(torch.minimum(low, anchor.lower), torch.maximum(high, anchor.upper))
