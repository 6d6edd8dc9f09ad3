"""Picard iteration, plain and averaged, and nonlinear Jacobi: Picard on the canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.maps import AffineMap, Map
from wellposed.errors import ConfigError
from wellposed.solvers.base import Shared, Solver


@final
@dataclass(frozen=True)
class Picard(Solver):
    """Plain iteration ``z <- f(z)``; converges if ``f`` is a contraction in some norm."""

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Any) -> tuple[Tensor, Any]:
        return fz, state

    @override
    def advance(self, map_: Map, z: Tensor, state: Any, times: int) -> tuple[Tensor, Any]:
        return map_.repeated(z, times), state


@final
@dataclass(frozen=True)
class Jacobi(Solver):
    """Plain iteration on the zero-diagonal form: each neuron solves its scalar equation exactly.

    ``z_i <- psi_i( sum_{j != i} a_ij z_j + q_i )`` with ``psi_i(s)`` solving
    ``z = phi(a_ii z + s)``. In any weighted max norm its factor
    ``max_i (mu_i - a_ii) / (1 - a_ii)`` is at most that of averaging; it is below 1 for some
    weights exactly if the logarithmic norm of ``A`` is (docs/mathematics.md).
    """

    @override
    def prepare(self, map_: Map) -> Map:
        return map_.canonical()

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Any) -> tuple[Tensor, Any]:
        return fz, state

    @override
    def advance(self, map_: Map, z: Tensor, state: Any, times: int) -> tuple[Tensor, Any]:
        return map_.repeated(z, times), state


@final
@dataclass(frozen=True)
class Averaged(Solver):
    """Averaged iteration ``z <- (1 - alpha) z + alpha f(z)`` [1].

    For an affine map whose ``A`` has logarithmic norm ``mu < 1`` in a weighted max norm and slopes
    in [0, 1] it contracts for ``0 < alpha <= 1 / (1 - min_i min(a_ii, 0))``; plain iteration may
    diverge there.

    Args:
        alpha: Step in (0, 1]; `None` takes that upper limit, read off ``A``.
        per_neuron: Use ``alpha_i = 1 / (1 - min(a_ii, 0))`` for each neuron.

    References:
        [1] Jafarpour et al., Robust implicit networks via non-Euclidean contractions, 2021.
    """

    alpha: float | None = None
    per_neuron: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha <= 1:
            raise ConfigError(f"`alpha` must lie in (0, 1], got {self.alpha}.")
        if self.alpha is not None and self.per_neuron:
            raise ConfigError("`alpha` and `per_neuron` exclude each other.")

    @override
    def init(self, map_: Map, z: Tensor) -> Shared:
        if self.alpha is not None:
            return Shared(self.alpha)
        return Shared(averaging_limit(map_, uniform=not self.per_neuron))

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: Shared) -> tuple[Tensor, Shared]:
        return torch.lerp(z, fz, state.value), state


def averaging_limit(map_: Map, *, uniform: bool) -> Any:
    """``1 / (1 - min(a_ii, 0))``, a neuron or the smallest of them."""
    if not isinstance(map_, AffineMap):
        raise ConfigError(
            "The averaging step of a general map is not known.",
            hint="give `alpha`, or use `Picard()` or `Anderson()`.",
        )
    steps = 1 / (1 - map_.operator.diagonal().clamp(max=0))
    return float(steps.amin()) if uniform else steps
