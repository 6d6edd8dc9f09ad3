"""The sign with a stand-in for its derivative: straight-through estimators as values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.errors import ConfigError


class Estimator(ABC):
    """A frozen value: what training takes for the derivative of the sign.

    The derivative of the sign is zero where there is one, so that nothing would be learnt; every
    estimator is the derivative of a function that is close to the sign, and says nothing about how
    the network itself reacts to its input.
    """

    @abstractmethod
    def slope(self, x: Tensor, done: float) -> Tensor:
        """The stand-in at each entry of `x`, of the shape of `x`.

        Args:
            x: Arguments of the sign.
            done: Part of the training run that is over, in [0, 1].
        """


@final
@dataclass(frozen=True)
class STE(Estimator):
    """``1{ |x| <= reach }``: that of the clamp [1].

    Args:
        reach: Positive; 1 as published.

    Raises:
        ConfigError: `reach` is not positive and finite.

    References:
        [1] Hubara, Courbariaux, Soudry, El-Yaniv, Bengio. Binarized neural networks. NeurIPS 2016.
    """

    reach: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(reach=self.reach)

    @override
    def slope(self, x: Tensor, done: float) -> Tensor:
        return (x.abs() <= self.reach).to(x.dtype)


@final
@dataclass(frozen=True)
class EDE(Estimator):
    """``k t (1 - tanh(t x)^2)`` with ``k = max(1/t, 1)``, ``t`` log-linear over the run [1].

    The derivative of ``k tanh(t x)``: close to that of the identity at first and to that of the
    sign at the end.

    Args:
        first: ``t`` at the start of the run, positive.
        last: ``t`` at its end, positive.

    Raises:
        ConfigError: An argument is not positive and finite.

    References:
        [1] Qin, Gong, Liu, Shen, Wei, Yu, Song. Forward and backward information retention for
        accurate binary neural networks. CVPR 2020.
    """

    first: float = 1e-3
    last: float = 10.0

    def __post_init__(self) -> None:
        _check_positive(first=self.first, last=self.last)

    @override
    def slope(self, x: Tensor, done: float) -> Tensor:
        t = self.first ** (1 - done) * self.last**done
        return max(1.0, t) * (1 - torch.tanh(t * x).square())


@final
@dataclass(frozen=True)
class ReSTE(Estimator):
    """``f'`` of ``f(x) = sign(x) |x|^(1/o)``, cut off on both sides, ``o`` linear over the run [1].

    ``f'(x) = |x|^((1 - o)/o) / o`` for ``near < |x| <= reach``, its secant ``f(near) / near`` for
    ``|x| <= near``, where the derivative grows without bound, and zero beyond `reach`.

    Args:
        first: ``o`` at the start of the run; 1 is the identity.
        last: ``o`` at its end, not below `first`.
        reach: Where the stand-in ends, above `near`.
        near: Half of the interval around zero that has the secant, positive.

    Raises:
        ConfigError: ``1 <= first <= last`` or ``0 < near < reach`` is violated.

    References:
        [1] Wu, Zheng, Liu, Zheng. Estimator meets equilibrium perspective: a rectified straight
        through estimator for binary neural networks training. ICCV 2023.
    """

    first: float = 1.0
    last: float = 3.0
    reach: float = 1.5
    near: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(first=self.first, last=self.last, reach=self.reach, near=self.near)
        if not 1 <= self.first <= self.last or not self.near < self.reach:
            raise ConfigError(
                f"ReSTE needs 1 <= first <= last and near < reach, got first = {self.first}, "
                f"last = {self.last}, near = {self.near}, reach = {self.reach}."
            )

    @override
    def slope(self, x: Tensor, done: float) -> Tensor:
        o = self.first + (self.last - self.first) * done
        size = x.abs()
        # never raised to its negative power at zero: the branch that is not taken has a tape too
        steep = size.clamp(min=self.near) ** ((1 - o) / o) / o
        secant = self.near ** ((1 - o) / o)
        inner = torch.where(size <= self.near, secant, steep)
        return torch.where(size <= self.reach, inner, torch.zeros_like(inner))


def sign(x: Tensor, estimator: Estimator, done: float = 1.0) -> Tensor:
    """``+1`` where ``x >= 0``, ``-1`` where ``x < 0``; NaN stays NaN.

    Zero, of either sign, has the sign +1: there is no third level. The gradient is
    ``g * estimator.slope(x, done)``; derivatives of higher order are those of the stand-in.

    Args:
        x: Floats of any shape.
        estimator: Stands for the derivative.
        done: Part of the training run that is over, in [0, 1].
    """
    return _Sign.apply(x, estimator, done)  # pyright: ignore


class _Sign(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, estimator: Estimator, done: float) -> Tensor:  # pyright: ignore
        # a comparison would turn NaN into a number and hide that training has diverged
        return torch.where(x.isnan(), x, (x >= 0).to(x.dtype) * 2 - 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore
        x, ctx.estimator, ctx.done = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.estimator.slope(x, ctx.done), None, None


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and isfinite(value)):
            raise ConfigError(f"`{name}` must be positive and finite, got {value}.")
