"""Contractive cells: affine cells with a 2-norm below 1, as fixed point networks have them."""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_sizes
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.leading import Leading
from wellposed.core.operators import Dense, Operator
from wellposed.core.peel import Outside, on_tape
from wellposed.core.spectral import largest_singular, two_norm
from wellposed.errors import ConfigError
from wellposed.solvers.base import Solver
from wellposed.solvers.picard import Picard


@final
class ContractiveCell(AffineCell):
    """Dense cell with ``||A||_2 <= bound`` for any parameters [1].

    ``A = W min(1, bound / ||W||_2)`` with the exact norm. Plain iteration contracts in the 2-norm
    by `bound` times the steepest slope of the activation, which may leave [0, 1] as long as that
    product stays below 1; one step then is a descent direction far more often than not, so that
    `OneStep` (Jacobian-free backpropagation) is the usual gradient. In training mode the norm is
    found from that of the last step (`core.leading`): the same number up to rounding, and proved to
    be large enough. The published networks divide by what one random vector is stretched, which
    bounds nothing.

    Args:
        n_in: Length of the input.
        n_state: Length of the state.
        bound: Upper bound of the norm.
        activation: ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: `bound` times the steepest slope is not below 1.

    References:
        [1] Fung, Heaton, Li, McKenzie, Osher, Yin. JFB: Jacobian-free backpropagation for implicit
        networks. AAAI 2022. arXiv 2103.12803.
    """

    preferred: ClassVar[Solver | None] = Picard()

    def __init__(
        self,
        n_in: int,
        n_state: int,
        *,
        bound: float = 0.9,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_in=n_in, n_state=n_state)
        self.activation = activation or ReLU()
        self.n_in, self.n_state = n_in, n_state
        self.bound = check_factor(bound, self.activation)
        self.inject = nn.Linear(n_in, n_state, dtype=dtype)
        self.W = nn.Parameter(torch.empty(n_state, n_state, dtype=dtype))
        self.leading = Leading()
        nn.init.uniform_(self.W, -1 / sqrt(n_state), 1 / sqrt(n_state))

    @override
    def explicit(self) -> Affine:
        A = Dense(shrunk(self.W, self.bound, self.leading if self.training else None))
        return Affine(A, Dense(self.inject.weight), self.inject.bias, self.activation)

    @override
    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_state}, bound={self.bound}, {self.activation.name}"


def check_factor(bound: float, activation: Activation) -> float:
    """A bound of the norm for which the iteration contracts.

    Raises:
        ConfigError: It is not positive, or too large for the activation.
    """
    steepest = activation.steepest
    if not (bound > 0 and bound * steepest < 1):
        raise ConfigError(
            f"`bound` must lie in (0, {1 / steepest:.4g}) for {activation.name}, whose slopes "
            f"reach {steepest:.4g} in absolute value; got {bound}.",
            hint="bound times slope is the contraction factor and must stay below 1.",
        )
    return float(bound)


def shrunk(W: Tensor, bound: float, leading: Leading | None = None) -> Tensor:
    """``W min(1, bound / ||W||_2)``, a matrix as computed of norm at most `bound`.

    With a backward pass written by hand outside function transforms; differentiable to any order.

    Args:
        W: Shape (n, n).
        bound: Of the norm.
        leading: Finds the norm within training, faster and within `ROOM`.
    """
    if on_tape():
        return _Shrunk.call(W, bound, leading)
    return W * shrink(Dense(W), bound)


class _Shrunk(Outside):
    @staticmethod
    def forward(ctx: Any, W: Tensor, bound: float, leading: Leading | None) -> Tensor:  # pyright: ignore
        with torch.autocast(W.device.type, enabled=False):
            wide = W.double()
            # in double precision nothing but rounding may be off
            if leading is None or W.dtype == torch.float64:
                norm, left, right = largest_singular(wide)
            else:
                norm, left, right = leading.find(wide)
        # the room that the search leaves is a third of what `_limit` leaves in single precision
        limit = _limit(W, bound)
        scale = (limit / norm.clamp(min=limit)).to(W.dtype)
        ctx.bound, ctx.size, ctx.active = bound, float(norm), not float(norm) <= limit
        ctx.save_for_backward(W, left.to(W), right.to(W), scale)
        return W * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        W, left, right, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            # whoever differentiates this needs more than one pair of vectors
            A = W * shrink(Dense(W), ctx.bound)
            return torch.autograd.grad(A, W, g, create_graph=True)[0], None, None
        own = g * scale
        if ctx.active:
            share = (own * W).sum() / -ctx.size
            own.addr_(left * share, right)
        return own, None, None


def shrink(operator: Operator, bound: float) -> Tensor:
    """``min(1, bound / ||M||_2)``, a little less: the scaled weights are rounded once more.

    Rounding moves each weight by half a unit; the 2-norm of that change is at most
    ``sqrt(rows) taps u ||M||_2`` with `taps` the pixels of a kernel.
    """
    weight = operator.weight
    limit = _limit(weight, bound)
    # mixed precision would lower the products behind the norm, and with them the bound
    with torch.autocast(weight.device.type, enabled=False):
        norm = two_norm(operator)
    return (limit / norm.clamp(min=limit)).to(weight.dtype)


def _limit(weight: Tensor, bound: float) -> float:
    taps = weight[0, 0].numel() if weight.ndim == 4 else 1
    return bound / (1 + 4 * (sqrt(weight.shape[0]) * taps + 8) * torch.finfo(weight.dtype).eps)
