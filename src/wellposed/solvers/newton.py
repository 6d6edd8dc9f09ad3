"""Semismooth Newton for ReLU: active sets, one factorisation for all samples that share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap, Map
from wellposed.core.operators import Dense
from wellposed.core.peel import wrapped
from wellposed.core.spectra import perron
from wellposed.errors import ConfigError
from wellposed.solvers.base import Shared, Solver


class Active(NamedTuple):
    """What Newton's method remembers, one row a sample.

    Args:
        level: Weighted residual that the next iterate must not exceed.
        image: The Jacobi step that was open before, taken if the Newton step fails.
        free: Whether the iterate at hand is a Jacobi step, which is not judged.
        weights: ``1 / eta`` of the max norm in which Jacobi contracts.
        factor: The factor by which a Newton step must reduce the residual to be accepted.
    """

    level: Tensor
    image: Tensor
    free: Tensor
    weights: Shared
    factor: float


@final
@dataclass(frozen=True)
class Newton(Solver):
    """Primal-dual active set method on the canonical form ``z = relu(A z + q)``; dense A.

    With ``S = {A z + q > 0}`` the candidate solves ``(I - A)_SS z_S = q_S``, zero elsewhere. It is
    kept only if its residual in the Perron-weighted max norm is at most Jacobi's factor times the
    one before; otherwise the Jacobi step is taken, whose residual is. The method is finite and
    never slower than Jacobi at two evaluations a step (docs/mathematics.md).

    One solve costs a factorisation of order ``n^3`` for each *distinct* active set of the batch:
    for small states, warm starts and verification.
    """

    @override
    def prepare(self, map_: Map) -> Map:
        if not (
            isinstance(map_, AffineMap)
            and isinstance(map_.activation, ReLU)
            and isinstance(map_.operator, Dense)
        ):
            raise ConfigError(
                f"Newton needs a dense affine map with ReLU, got {_describe(map_)}.",
                hint="use `Jacobi()` or `Auto()`.",
            )
        if any(map(wrapped, map_.tensors)):
            raise ConfigError(
                "Newton groups samples by their active sets, which function transforms hide.",
                hint="use `Jacobi()` or `Auto()` under `torch.func`.",
            )
        return map_.canonical()

    @override
    def init(self, map_: Map, z: Tensor) -> Active:
        assert isinstance(map_, AffineMap)
        contraction = perron(map_.operator)
        level = z.new_full(z.shape[:1], float("inf"))
        weights = Shared((1 / contraction.eta).to(z))
        free = torch.ones_like(level, dtype=torch.bool)
        return Active(level, z, free, weights, min(contraction.factor, 1.0))

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Active) -> tuple[Tensor, Active]:
        assert isinstance(map_, AffineMap)
        size = ((fz - z) * state.weights.value).abs().amax(1)
        failed = ~(size <= state.factor * state.level) & ~state.free
        candidate = solve_active(map_, fz > 0)
        unusable = ~torch.isfinite(candidate).all(1)
        out = torch.where(unusable[:, None], fz, candidate)
        out = torch.where(failed[:, None], state.image, out)
        # after a refusal the iterate before is still the one to improve on
        kept = Active(
            torch.where(failed, state.level, size),
            torch.where(failed[:, None], state.image, fz),
            failed | unusable,
            state.weights,
            state.factor,
        )
        return out, kept


def solve_active(map_: AffineMap, active: Tensor) -> Tensor:
    """The solution of ``z_S = (A z + q)_S``, ``z = 0`` outside ``S``, a sample.

    Args:
        map_: Dense canonical map with ReLU.
        active: ``S``, one row a sample.
    """
    assert isinstance(map_.operator, Dense)
    A, q = map_.operator.matrix, map_.offset
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    out = torch.zeros_like(q)
    sets, member = torch.unique(active, dim=0, return_inverse=True)
    for k, chosen in enumerate(sets):
        rows = (member == k).nonzero().squeeze(1)
        index = chosen.nonzero().squeeze(1)
        if not len(index):
            continue
        matrix = (eye - A)[index][:, index]
        right = q[rows][:, index].mT
        part, _ = torch.linalg.solve_ex(matrix, right)
        out[rows[:, None], index] = part.mT
    return out


def _describe(map_: Map) -> str:
    if not isinstance(map_, AffineMap):
        return type(map_).__name__
    return f"{type(map_.operator).__name__} with {map_.activation.name}"
