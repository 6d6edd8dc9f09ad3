"""Broyden's method with a short memory of steps and a safeguard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.maps import Map
from wellposed.solvers.anderson import check_window
from wellposed.solvers.base import Solver
from wellposed.solvers.rows import put_rows
from wellposed.solvers.safeguard import Guard, judge

GROWTH = 1e4
"""Quasi-Newton steps overshoot far more than least-squares steps before they settle, and taking
such steps back was measured to cost more than it saves: only divergence is stopped."""
SINGULAR = 1e-6
"""Smallest denominator of an update: steps are extrapolated by at most its inverse."""


class Steps(NamedTuple):
    """What Broyden's method remembers, one row a sample.

    Args:
        steps: The latest steps, oldest first.
        inverse: ``1 / |s_j|^2`` for each; zero where a sample has forgotten the step.
        last_residual: ``f(z) - z`` of the iterate before.
        last_image: ``f(z)`` of the iterate before.
        guard: The safeguard's memory.
    """

    steps: tuple[Tensor, ...]
    inverse: tuple[Tensor, ...]
    last_residual: Tensor
    last_image: Tensor
    guard: Guard


@final
@dataclass(frozen=True)
class Broyden(Solver):
    """Good Broyden on ``z - f(z) = 0`` from the inverse Jacobian ``I``, on the canonical form [1].

    Every rank-one update is recovered from the steps alone, so that one state an iteration is
    stored [2, section 7.3]; after `memory` steps the method starts again from a plain step. Where
    one slow mode spoils plain iteration (a Perron vector), this needs fewer evaluations than
    Anderson's method; where many do, more.

    Each sample has its own history; a step that fails is taken back (`solvers.safeguard`).

    Args:
        memory: How many steps are remembered before the restart.
        safeguard: Whether failed steps are taken back.

    References:
        [1] Broyden. A class of methods for solving nonlinear simultaneous equations. Math. Comp.
        19, 1965.
        [2] Kelley. Iterative Methods for Linear and Nonlinear Equations. SIAM, 1995.
    """

    memory: int = 10
    safeguard: bool = True

    def __post_init__(self) -> None:
        check_window("memory", self.memory)

    @override
    def prepare(self, map_: Map) -> Map:
        return map_.canonical()

    @override
    def propose(
        self, map_: Map, z: Tensor, fz: Tensor, state: Steps | None
    ) -> tuple[Tensor, Steps]:
        return quasi_newton(z, fz, state, self.memory, safeguard=self.safeguard)


def quasi_newton(
    z: Tensor,
    fz: Tensor,
    memory: Steps | None,
    length: int,
    *,
    safeguard: bool = True,
    plainly: Tensor | None = None,
) -> tuple[Tensor, Steps]:
    """One Broyden step: the next iterate and the memory.

    With ``w = H_k g`` built from the steps before, the next step is
    ``w / (1 - s_k^T w / |s_k|^2)``.

    Args:
        z: Iterates, batch first.
        fz: Their images.
        memory: Of the steps before; `None` at the first.
        length: How many steps are remembered.
        safeguard: See `Broyden`.
        plainly: Samples that take a plain step all the same; `None` stands for none.
    """
    dtype = z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float32
    image = fz.flatten(1).to(dtype)
    point = z.flatten(1).to(dtype)
    residual = image - point
    square = torch.linalg.vecdot(residual, residual)
    tiny = torch.finfo(dtype).tiny
    if memory is None:
        inverse = square.clamp_min(tiny).reciprocal()
        return fz, Steps((residual,), (inverse,), residual, image, Guard.start(square.sqrt()))
    steps, inverses, last_residual, last_image, guard = memory
    refused = resting = None
    if safeguard:
        (refused, resting), guard = judge(guard, square.sqrt(), growth=GROWTH)

    if len(steps) > length:
        steps, inverses, step, out = (), (), residual, image
    else:
        step = residual
        for s, following, inverse in zip(steps, steps[1:], inverses, strict=False):
            weight = torch.linalg.vecdot(s, step).mul_(inverse)
            step = torch.addcmul(step, following, weight[:, None])
        lost = torch.linalg.vecdot(steps[-1], step).mul_(inverses[-1])
        rest = 1 - lost
        rest = torch.where(rest.abs() < SINGULAR, SINGULAR, rest)
        step = step / rest[:, None]
        out = point + step
    resting = _either(resting, plainly)
    if refused is not None and plainly is not None:
        refused = refused & ~plainly
    forgetful = _either(resting, refused)
    if resting is not None:
        step = put_rows(step, resting, residual)
        out = put_rows(out, resting, image)
    if refused is not None:
        step = put_rows(step, refused, last_residual)
        out = put_rows(out, refused, last_image)
        residual = put_rows(residual, refused, last_residual)
        image = put_rows(image, refused, last_image)
    if forgetful is not None:
        inverses = tuple(torch.where(forgetful, 0.0, inverse) for inverse in inverses)
    inverse = torch.linalg.vecdot(step, step).clamp_min(tiny).reciprocal()
    kept = Steps((*steps, step), (*inverses, inverse), residual, image, guard)
    return out.reshape(z.shape).to(z.dtype), kept


def _either(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second
