"""Adjoint equations of operator splitting, by the same splitting with the transposed inverse.

The adjoint equation of ``z = phi(A z + q)`` at slopes ``d`` is ``w = [d] (A^T w + g)``, which is
``0 in F(w) + G(w)`` with ``F(w) = (I - A^T) w`` and ``G(w) = ((1 - d)/d) w - g``. Where ``d = 0``
the division is not one: the proximal map of ``G`` at step ``alpha`` is

    u -> d (u + alpha g) / (d + alpha (1 - d)),

whose denominator is at least ``min(1, alpha)``. The inverse of the forward solve serves again:
``(I + [alpha] (I - A^T))^-1 = [alpha] R^T [1/alpha]`` for ``R = (I + [alpha] (I - A))^-1``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.inverse import Inverse
from wellposed.core.linear_maps import LinearMap
from wellposed.core.maps import Map
from wellposed.solvers.base import Shared, Solution, Solver, Stopping, solve
from wellposed.solvers.krylov import GMRES, LinearSolver
from wellposed.solvers.splitting import PeacemanRachford, Reflected


@final
@dataclass(frozen=True)
class Transposed(LinearSolver):
    """The splitting of the forward solve on ``A^T``; it converges whenever that one does.

    Args:
        splitting: Of the forward solve: its inverse is used again.
        otherwise: Solves linear equations that are not the adjoint of an affine map: those of
            general cells, and those of second derivatives.
    """

    splitting: Reflected = field(default_factory=PeacemanRachford)
    otherwise: LinearSolver = field(default_factory=GMRES)

    @override
    def solve(self, map_: LinearMap, stopping: Stopping) -> Solution:
        if map_.form is None:
            return self.otherwise.solve(map_, stopping)
        return solve(map_, map_.rhs, _Transposed(self.splitting), _later(stopping))


@cache
def _later(stopping: Stopping) -> Stopping:
    # monotone cells were measured to need one step more than the forward solve
    first = stopping.first_look
    return replace(stopping, first_look=first + 1) if first > 1 else stopping


class Pulling(NamedTuple):
    """Memory of the transposed splitting.

    Args:
        point: The governing iterate ``u``, one row a sample, in the space of the inverse.
        value: Its proximal map ``gain u + shift``.
        gain: ``d / (d + alpha (1 - d))``.
        shift: ``alpha d g / (d + alpha (1 - d))``.
        inverse: Of the forward solve.
    """

    point: Tensor
    value: Tensor
    gain: Tensor
    shift: Tensor
    inverse: Shared


@final
@dataclass(frozen=True)
class _Transposed(Solver):
    splitting: Reflected
    stride: ClassVar[int] = Reflected.stride

    @override
    def init(self, map_: Map, z: Tensor) -> Pulling:
        assert isinstance(map_, LinearMap)
        assert map_.form is not None
        operator = map_.form.operator.with_weight(map_.arguments[0])
        inverse = self.splitting.inverse(operator, map_.form.memo)
        alpha, slopes = inverse.steps, map_.arguments[1]
        if map_.form.binary:
            # the slopes are their own gain, and the first value is the right side
            shift, value = inverse.enter(alpha * z), inverse.enter(z)
            return Pulling(value - shift, value, inverse.enter(slopes), shift, Shared(inverse))
        whole = torch.addcmul(slopes, alpha, 1 - slopes)
        # both are zero on the border, and so is every value
        gain, shift = inverse.enter(slopes / whole), inverse.enter(alpha * map_.rhs / whole)
        # the first value is then the right side itself where the slope is 0 or 1
        point = inverse.enter((1 - alpha) * z)
        return Pulling(point, torch.addcmul(shift, gain, point), gain, shift, Shared(inverse))

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Pulling) -> tuple[Tensor, Pulling]:
        inverse: Inverse = state.inverse.value
        point = inverse.reflect_adjoint(torch.lerp(state.point, state.value, 2.0))
        if self.splitting.weight != 1:
            point = torch.lerp(state.point, point, self.splitting.weight)
        value = torch.addcmul(state.shift, state.gain, point)
        return inverse.leave(value), state._replace(point=point, value=value)
