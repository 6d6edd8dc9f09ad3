"""Lipschitz regularisation by adversarial pairs of inputs: a lower bound that is driven down."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError
from wellposed.training.regulariser import Term

Function = Callable[[Tensor], Tensor]

_GROWTH = 1.3
_REACH = 1e4
"""Step lengths stay within this factor of the first one, so that none over- or underflows."""

_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
           nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # fmt: skip


@final
class PairQuotient(Term):
    """``max ||f(u) - f(v)||_2 / ||u - v||_2`` over pairs ``(u, v)`` that seek its maximum [1].

    A step of training first moves pairs uphill, ``u <- P(u + rate L grad_u L)`` and alike for
    ``v``, with ``L`` the quotient of the pair and ``P`` the projection onto the region; a pair only
    moves if its quotient grows, its own rate grows by 1.3 then, and shrinks by 1.3 if not. The
    largest quotient is then the term of the loss. Only `active` pairs move in a step, in turn: the
    quotients of the others are those of their last visit, and say which pair is the worst.

    It is a lower bound of the Lipschitz constant of any function that can be differentiated,
    equilibrium layers included (through their implicit gradient): a term to train with, never a
    certificate. Layers whose training mode is random or looks at batch mates run in evaluation
    mode here.

    A pair closer than the square root of the rounding unit says nothing but rounding: its quotient
    counts as 0, and no pair moves there.

    Args:
        first: The points ``u``, shape (pairs, ...); none at all is a term of 0.
        second: The points ``v``, of the same shape.
        rate: First step size ``tau``; positive.
        active: Pairs that move in a step; 0 for all.
        squared: Whether the value is the square of the quotient, whose gradient is larger the
            steeper the network.
        region: Box of one input that the points stay in, such as that of pixels; `None` for none.

    Raises:
        ShapeError: The points do not match each other or the region.
        ConfigError: A point is not finite, or a number is out of range.

    References:
        [1] Bungert, Raab, Roith, Schwinn, Tenbrinck. CLIP: cheap Lipschitz training of neural
        networks. SSVM 2021, arXiv 2103.12531, algorithms 1 and 2.
    """

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        *,
        rate: float = 1.0,
        active: int = 0,
        squared: bool = True,
        region: Box | None = None,
    ) -> None:
        super().__init__()
        _check(first, second, rate, active)
        self.rate, self.active, self.squared = rate, active, squared
        self.points: Tensor
        self.rates: Tensor
        self.quotients: Tensor
        self.cursor: Tensor
        self.lower: Tensor | None
        self.upper: Tensor | None
        low = high = None
        if region is not None:
            if region.shape != first.shape[1:]:
                raise ShapeError(
                    f"The region has shape {region.shape} and a point {tuple(first.shape[1:])}, "
                    "expected the box of one input."
                )
            low, high = region.lower.to(first), region.upper.to(first)
        self.register_buffer("lower", low, persistent=False)
        self.register_buffer("upper", high, persistent=False)
        pairs = torch.stack((first.detach(), second.detach()), 1)
        self.register_buffer("points", self._inside(pairs))
        self.register_buffer("rates", torch.full((len(first),), rate, dtype=first.dtype))
        self.register_buffer("quotients", torch.zeros(len(first), dtype=first.dtype))
        self.register_buffer("cursor", torch.tensor(0))

    def __len__(self) -> int:
        return len(self.rates)

    @override
    def value(self, model: nn.Module) -> Tensor:
        if not len(self):
            return self.rates.new_zeros(())
        with _deterministic(model):
            self.ascend(model)
            return self.worst(model)

    @override
    def figures(self, model: nn.Module) -> dict[str, float]:
        if not len(self):
            return {}
        with _deterministic(model):
            self.refresh(model)
        return {"pair_quotient": self.largest}

    @property
    def largest(self) -> float:
        """The largest quotient of the last visits; 0 before the first."""
        return float(self.quotients.nan_to_num().amax().sqrt()) if len(self) else 0.0

    def ascend(self, function: Function) -> None:
        """Move the pairs whose turn it is uphill, and note their quotients.

        Args:
            function: From points to outputs; its parameters get no gradient.
        """
        rows = self._turn()
        points, rates = self.points[rows], self.rates[rows]
        apart, nearness = self._distances(points)
        leaf = points.flatten(0, 1).detach().requires_grad_()
        with torch.enable_grad():
            values = function(leaf)
        change = _differences(values.detach(), len(points))
        before = change.square().sum(1) * nearness
        # tau L grad L by hand: through the function, and through the distance of the two points
        pull = (rates * nearness)[:, None] * change
        weights = torch.stack((pull, -pull), 1).reshape(values.shape)
        (uphill,) = torch.autograd.grad(values, leaf, weights)
        moved = points + uphill.reshape(points.shape)
        narrow = (rates * nearness * before).reshape(-1, *[1] * (apart.ndim - 1)) * apart
        moved[:, 0] -= narrow
        moved[:, 1] += narrow
        moved = self._inside(moved)
        after = self._squares(function, moved)
        grew = after > before
        torch.where(grew.reshape(-1, *[1] * (points.ndim - 1)), moved, points, out=points)
        self.quotients[rows] = torch.where(grew, after, before)
        faster = torch.where(grew, rates * _GROWTH, rates / _GROWTH)
        self.rates[rows] = faster.clamp(self.rate / _REACH, self.rate * _REACH)

    def refresh(self, function: Function) -> None:
        """Measure all pairs where they are: quotients of earlier visits belong to older weights."""
        self.quotients.copy_(self._squares(function, self.points))

    def worst(self, function: Function) -> Tensor:
        """The (squared) quotient of the worst pair, differentiable in the parameters."""
        row = self.quotients.nan_to_num().argmax(0, keepdim=True)
        points = self.points[row]
        change = _differences(function(points.flatten(0, 1)), 1)
        square = (change.square().sum(1) * self._distances(points)[1])[0]
        self.quotients[row] = square.detach()
        if self.squared:
            return square
        # the root has no derivative at 0, where there is nothing to drive down either
        flat = square <= torch.finfo(square.dtype).tiny
        return torch.where(flat, square, torch.where(flat, 1.0, square).sqrt())

    def _turn(self) -> slice:
        """The pairs that move in this step."""
        start = int(self.cursor)
        end = min(start + (self.active or len(self)), len(self))
        self.cursor.fill_(end % len(self))
        return slice(start, end)

    def _inside(self, points: Tensor) -> Tensor:
        if self.lower is None:
            return points
        return points.clamp(self.lower, self.upper)

    @torch.no_grad()
    def _squares(self, function: Function, points: Tensor) -> Tensor:
        change = _differences(function(points.flatten(0, 1)), len(points))
        return change.square().sum(1) * self._distances(points)[1]

    def _distances(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """``u - v``, and ``1 / ||u - v||^2`` or 0 where the two are too close to tell."""
        apart = points[:, 0] - points[:, 1]
        square = torch.linalg.vector_norm(apart.flatten(1), dim=1).square()
        low, high = points.aminmax()
        size = 1 + torch.maximum(-low, high)
        close = square <= torch.finfo(points.dtype).eps * size * size
        return apart, torch.where(close, 0.0, 1 / square)

    @override
    def extra_repr(self) -> str:
        return f"{len(self)} pairs, rate={self.rate}, active={self.active}, squared={self.squared}"


def noisy_pairs(
    points: Tensor, count: int, *, noise: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Points of a data set and copies with uniform noise in ``[0, noise]`` on every component.

    Args:
        points: Shape (samples, ...); labels are not needed.
        count: Pairs to draw, without putting back; all points if there are no more.
        noise: Amplitude, positive.
        seed: Of the choice and of the noise.
    """
    if count < 0 or not 0 < noise < torch.inf:
        raise ConfigError(
            f"`count` must not be negative and `noise` must be positive, got {count} and {noise}."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(points), generator=generator)[:count]
    first = points[rows.to(points.device)]
    shift = torch.rand(first.shape, generator=generator, dtype=first.dtype).to(first.device)
    return first, first + noise * shift


def _differences(values: Tensor, count: int) -> Tensor:
    """``f(u) - f(v)`` from the outputs of ``u_1, v_1, u_2, ...``; shape (pairs, outputs)."""
    both = values.reshape(count, 2, -1)
    return both[:, 0] - both[:, 1]


@contextmanager
def _deterministic(model: nn.Module) -> Generator[None]:
    """Layers that are random or look at batch mates in training run in evaluation mode."""
    changed = [part for part in model.modules() if isinstance(part, _RANDOM) and part.training]
    for part in changed:
        part.training = False
    try:
        yield
    finally:
        for part in changed:
            part.training = True


def _check(first: Tensor, second: Tensor, rate: float, active: int) -> None:
    if first.shape != second.shape or first.ndim < 2 or not first.is_floating_point():
        raise ShapeError(
            f"The points have shapes {tuple(first.shape)} and {tuple(second.shape)} "
            f"({first.dtype}), expected floating-point pairs of shape (pairs, ...)."
        )
    if not bool(first.isfinite().all() & second.isfinite().all()):
        raise ConfigError("A point of the pairs is NaN or infinite, expected finite numbers.")
    if not 0 < rate < torch.inf or active < 0:
        raise ConfigError(
            f"`rate` must be positive and finite and `active` not negative, got {rate} and "
            f"{active}."
        )
