"""Operator splitting: forward-backward, Peaceman-Rachford and Douglas-Rachford.

They solve ``0 in F(z) + G(z)`` with ``F(z) = (I - A) z - q`` and ``phi`` the proximal map of ``G``
at step 1, which is ``z = phi(A z + q)``. At another step ``alpha`` the proximal map of ``G`` solves
the scalar equation ``z = phi( ((alpha - 1)/alpha) z + s/alpha )`` in every component.

With slopes in [0, 1], logarithmic norm ``mu < 1`` of ``A`` in a weighted max norm and
``alpha <= 1 / (1 - min_i a_ii)`` each of them contracts in that norm [1]; so do diagonal steps
``alpha_i <= 1 / (1 - a_ii)``. Larger steps may expand and have to be asked for.

References:
    [1] Davydov, Jafarpour, Proskurnikov, Bullo. Non-Euclidean monotone operator theory and
    applications. JMLR 25, 2024.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core import fourier as fourier  # registers inverses of convolutions
from wellposed.core.activations import ReLU, resolvent
from wellposed.core.inverse import Inverse, Memo, inverse_of
from wellposed.core.maps import AffineMap, Map
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.errors import ConfigError
from wellposed.solvers.base import Shared, Solver
from wellposed.solvers.steps import balanced_steps


@final
@dataclass(frozen=True)
class ForwardBackward(Solver):
    """Forward-backward splitting ``z <- prox( (1 - alpha) z + alpha (A z + q) )``.

    Its factor is ``1 - alpha (1 - mu)``. It runs as a fixed-point map of its own, with operator
    ``A - a I`` and feedback ``a = (alpha - 1)/alpha``; reported residuals are divided by `alpha`.

    Args:
        alpha: Step; `None` takes the largest certified one, ``1 / (1 - min_i a_ii)``.
        per_neuron: Use ``alpha_i = 1 / (1 - a_ii)``: the nonlinear Jacobi iteration.
        certified: Whether a step above the bound is refused.
    """

    alpha: float | None = None
    per_neuron: bool = False
    certified: bool = True

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if self.alpha is not None and self.per_neuron:
            raise ConfigError("`alpha` and `per_neuron` exclude each other.")

    @override
    def prepare(self, map_: Map) -> Map:
        if self.per_neuron:
            return map_.canonical()
        raw = _without_feedback(map_)
        alpha = _step(raw.operator, self.alpha, certified=self.certified)
        return forward_backward_map(raw, raw.offset.new_tensor((alpha - 1) / alpha))

    @override
    def damping(self, map_: Map) -> float:
        if self.per_neuron:
            return 1.0
        return min(
            _step(_without_feedback(map_).operator, self.alpha, certified=self.certified), 1.0
        )

    @override
    def propose(self, map_: Map, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
        return fz, state


class Splitting(NamedTuple):
    """Memory of the reflected methods.

    Args:
        point: The governing iterate less `push`, ``v = u - p``, one row a sample, in the space of
            the inverse.
        value: ``z = prox(u)``, there as well.
        push: What the other operator contributes: ``p = [alpha] q``.
        inverse: ``(I + [alpha] (I - A))^-1``.
    """

    point: Tensor
    value: Tensor
    push: Tensor
    inverse: Shared


@dataclass(frozen=True)
class Reflected(Solver):
    """Both reflected resolvents in turn; the inverse is computed once for each weights, in float64.

    With ``R = (I + [alpha](I - A))^-1``, ``p = [alpha] q`` and ``h = 2 z - u``: ``y = R (h + p)``,
    ``u <- u + weight (2 y - h - u)``, ``z <- prox(u)``. Kept is ``v = u - p``, for which this is
    ``v <- v + weight ((2 R - I) (2 z - v) - v)``, ``z <- prox(v + p)``: one product and three sums.

    Args:
        alpha: Step; `None` takes certified diagonal steps (`balanced_steps`).
        certified: Whether a step above ``1 / (1 - min_i a_ii)`` is refused.
    """

    alpha: float | None = None
    certified: bool = True
    # the map costs as much as a step does, and a step does not need it
    stride: ClassVar[int] = 3

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    @property
    @abstractmethod
    def weight(self) -> float:
        """How far the governing iterate moves: 1 is the whole reflected step."""

    @override
    def prepare(self, map_: Map) -> Map:
        return _without_feedback(map_)

    @override
    def init(self, map_: Map, z: Tensor) -> Splitting:
        assert isinstance(map_, AffineMap)
        inverse = self.inverse(map_.operator, map_.memo)
        # the point whose proximal map is z if z is the solution: a warm start is kept
        point = inverse.enter(torch.lerp(z, map_.operator.apply(z), inverse.steps))
        push = inverse.enter(inverse.steps * map_.offset)
        return Splitting(point, _prox(map_, point + push, inverse), push, Shared(inverse))

    @override
    def propose(
        self, map_: Map, z: Tensor, fz: Tensor, state: Splitting
    ) -> tuple[Tensor, Splitting]:
        assert isinstance(map_, AffineMap)
        inverse: Inverse = state.inverse.value
        point = inverse.reflect(torch.lerp(state.point, state.value, 2.0))
        if self.weight != 1:
            point = torch.lerp(state.point, point, self.weight)
        value = _prox(map_, point + state.push, inverse)
        return inverse.leave(value), Splitting(point, value, state.push, state.inverse)

    def inverse(self, operator: Operator, memo: Memo) -> Inverse:
        """``(I + [alpha] (I - A))^-1`` with the steps in force.

        Raises:
            ConfigError: No step is certified, or the operator has no inverse here.
        """

        def make() -> Inverse:
            if self.alpha is None:
                return inverse_of(operator, balanced_steps(operator))
            step = _step(operator, self.alpha, certified=self.certified)
            return inverse_of(operator, torch.full_like(operator.diagonal(), step))

        return memo.get(operator, (self.alpha, self.certified), make)


@final
class PeacemanRachford(Reflected):
    """Peaceman-Rachford splitting: the whole reflected step.

    With ``h = 2 z - u``: ``y = (I + [alpha](I - A))^-1 (h + [alpha] q)``, ``u <- 2 y - h``,
    ``z <- prox(u)``. In a max norm in which ``A`` has logarithmic norm ``mu < 1`` the factor is
    ``(1 - alpha c)/(1 + alpha c)``, ``c = 1 - mu``; with steps ``1 / (1 - a_ii)`` it is
    ``g / (2 - g)`` where ``g`` is Jacobi's. If ``I - A`` is ``m``-strongly monotone in the 2-norm
    and ``L`` is its norm, every positive step converges, a single one with factor
    ``sqrt(1 - 4 alpha m / (1 + alpha L)^2)``, diagonal ones in the 2-norm weighted by
    ``1 / alpha_i`` [2].

    Args:
        alpha: Step; `None` takes certified diagonal steps (`balanced_steps`).
        certified: Whether a step above ``1 / (1 - min_i a_ii)`` is refused.

    References:
        [2] Lions, Mercier. Splitting algorithms for the sum of two nonlinear operators. SIAM J.
        Numer. Anal. 16(6), 1979.
    """

    @property
    @override
    def weight(self) -> float:
        return 1.0


@final
class DouglasRachford(Reflected):
    """Douglas-Rachford splitting: Peaceman-Rachford averaged with the identity by one half.

    Factor ``1 / (1 + alpha c)``; slower, but it converges without strong monotonicity.

    Args:
        alpha: Step; `None` takes certified diagonal steps (`balanced_steps`).
        certified: Whether a step above ``1 / (1 - min_i a_ii)`` is refused.
    """

    @property
    @override
    def weight(self) -> float:
        return 0.5


def forward_backward_map(map_: AffineMap, a: Tensor) -> AffineMap:
    """The map ``z -> psi((A - [a]) z + q)`` with ``psi(s)`` solving ``z = phi(a z + s)``."""
    return AffineMap(shift_diagonal(map_.operator, -a), map_.offset, map_.activation, a)


def shift_diagonal(operator: Operator, value: Tensor) -> Operator:
    """``M + [value]``; `value` broadcasts against the operator's diagonal."""
    diagonal = torch.diag_embed((torch.zeros_like(operator.diagonal()) + value).flatten())
    if isinstance(operator, Dense):
        return Dense(operator.matrix + diagonal)
    if isinstance(operator, Convolution):
        height, width = operator.kernel.shape[2:]
        centre = torch.zeros_like(operator.kernel[0, 0])
        centre[height // 2, width // 2] = 1
        return replace(operator, kernel=operator.kernel + diagonal[:, :, None, None] * centre)
    raise ConfigError(f"The diagonal of a {type(operator).__name__} operator cannot be shifted.")


def _check_alpha(alpha: float | None) -> None:
    if alpha is not None and not 0 < alpha < float("inf"):
        raise ConfigError(f"`alpha` must be positive and finite, got {alpha}.")


def _without_feedback(map_: Map) -> AffineMap:
    if not isinstance(map_, AffineMap):
        raise ConfigError(
            f"Operator splitting needs an affine map, got {type(map_).__name__}.",
            hint="use `Anderson()` or `Auto()` for a general cell.",
        )
    low, high = map_.activation.slopes
    if low < 0 or high > 1:
        raise ConfigError(
            f"{map_.activation.name} has slopes in [{low}, {high}] and is no proximal map; "
            "splitting needs slopes in [0, 1].",
            hint="use `Jacobi()` or `Anderson()`.",
        )
    if map_.feedback is None:
        return map_
    operator = shift_diagonal(map_.operator, map_.feedback)
    return AffineMap(operator, map_.offset, map_.activation)


def _step(operator: Operator, alpha: float | None, *, certified: bool) -> float:
    """The step in force: the certified bound, or the one asked for if it respects it."""
    bound = 1 / (1 - float(operator.diagonal().detach().min()))
    if not 0 < bound < float("inf"):
        raise ConfigError("Splitting needs diagonal entries of A below 1.")
    if alpha is None:
        return bound
    if certified and alpha > bound * (1 + 1e-6):
        raise ConfigError(
            f"The step alpha = {alpha:.6g} exceeds {bound:.6g} = 1/(1 - min a_ii), above which "
            "nothing proves that the iteration contracts in a max norm.",
            hint="leave `alpha` out for the largest certified step, or pass `certified=False`.",
        )
    return alpha


def _prox(map_: AffineMap, u: Tensor, inverse: Inverse) -> Tensor:
    """The proximal map of ``[alpha] G``, and zero on the border."""
    steps, mask = inverse.steps, inverse.mask
    if isinstance(map_.activation, ReLU):
        value = torch.relu(u)  # at every step
    else:
        value = resolvent(map_.activation, (steps - 1) / steps, u / steps)
    return value if mask is None else value * mask
