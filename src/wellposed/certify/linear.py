"""Linear layers of `torch.nn`: what they do, what their absolute weights do, and their 2-norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, singledispatch
from math import frexp, inf, nextafter, sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellposed.certify.guard import check_eval, refuse
from wellposed.core.layers import from_module
from wellposed.core.operators import Operator
from wellposed.core.opnorm import operator_norm
from wellposed.core.spectra import UNIT, rounding


@final
@dataclass(frozen=True, eq=False)
class LinearPart:
    """``x -> W x + b`` in float64.

    Args:
        signed: ``x -> W x``.
        absolute: ``v -> |W| v``.
        offset: ``b``, broadcastable against a batch of outputs.
        terms: At least as many as the products in any component of ``W x`` or ``W^T y``.
        spectral: Computes an upper bound of ``||W||_2``, where there is a cheap one.
        error: Bound of the error of `offset`, where that was computed.
        sized: Computes an upper bound of ``||W||_2`` on inputs of a shape, where it depends on it.
    """

    signed: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    offset: Tensor
    terms: int
    spectral: Callable[[], float] | None = None
    error: Tensor | None = None
    sized: Callable[[tuple[int, ...]], float] | None = None

    def spectral_on(self, shape: tuple[int, ...]) -> Callable[[], float] | None:
        """Computes an upper bound of ``||W||_2`` on inputs of a shape, once."""
        sized = self.sized
        return self.spectral if sized is None else cache(lambda: sized(shape))


@singledispatch
def linear_part(module: nn.Module, path: str) -> LinearPart:
    """The weights of a linear layer, as it stands.

    Raises:
        NotCertifiableError: The module is not linear, or its weights are not finite.
    """
    raise refuse(module, path, "it is not a linear layer")


LINEAR_TYPES = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d,
                nn.AdaptiveAvgPool2d)  # fmt: skip

# with bounds and enclosures, but without lowering to equations
GENERAL_TYPES = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@linear_part.register
def _dense(module: nn.Linear, path: str) -> LinearPart:
    weight = _double(module.weight, module, path)
    size = weight.abs()
    return LinearPart(
        lambda x: x @ weight.mT,
        lambda v: v @ size.mT,
        _offset(module.bias, module, path),
        max(weight.shape),
        lambda: spectral_norm(weight),
    )


@linear_part.register
def _convolution(module: nn.Conv2d, path: str) -> LinearPart:
    weight = _double(module.weight, module, path)
    size = weight.abs()
    # reflecting and replicating paddings use an argument several times
    terms = weight.numel() * (1 if module.padding_mode in ("zeros", "circular") else 64)
    return LinearPart(
        lambda x: _convolve(module, x, weight),
        lambda v: _convolve(module, v, size),
        _offset(module.bias, module, path)[:, None, None] if module.bias is not None else _ZERO,
        terms,
        sized=lambda shape: operator_norm(_operator(module, weight, shape)).upper,
    )


@linear_part.register(nn.Conv1d)
@linear_part.register(nn.Conv3d)
@linear_part.register(nn.ConvTranspose1d)
@linear_part.register(nn.ConvTranspose2d)
@linear_part.register(nn.ConvTranspose3d)
def _general(module: Any, path: str) -> LinearPart:
    weight = _double(module.weight, module, path)
    size = weight.abs()
    copies = 1 if module.padding_mode in ("zeros", "circular") else 1 << 12

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        _need(x, weight.ndim, module)
        return _operator(module, weight, tuple(x.shape[1:])).apply(x)

    offset = _offset(module.bias, module, path)
    return LinearPart(
        lambda x: apply(x, weight),
        lambda v: apply(v, size),
        offset if module.bias is None else offset.reshape(-1, *[1] * (weight.ndim - 2)),
        weight.numel() * copies,
        sized=lambda shape: operator_norm(_operator(module, weight, shape)).upper,
    )


def _operator(module: nn.Module, weight: Tensor, shape: tuple[int, ...]) -> Operator:
    return from_module(module, shape).with_weight(weight)


def _convolve(module: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    _need(x, 4, module)
    return module._conv_forward(x, weight, None)  # pyright: ignore[reportPrivateUsage]


@linear_part.register(nn.BatchNorm1d)
@linear_part.register(nn.BatchNorm2d)
def _batch_norm(module: Any, path: str) -> LinearPart:
    check_eval(module, path)
    mean, var = module.running_mean, module.running_var
    if mean is None or var is None:
        raise refuse(module, path, "it keeps no running statistics and normalises by the batch",
                     "construct it with `track_running_stats=True`.")  # fmt: skip
    mean, var = _double(mean, module, path), _double(var, module, path)
    gain = torch.ones_like(mean) if module.weight is None else _double(module.weight, module, path)
    scale = gain / torch.sqrt(var + module.eps)
    bias, shift = _offset(module.bias, module, path), mean * scale
    offset, error = bias - shift, 16 * UNIT * (bias.abs() + shift.abs())
    flat = module.__class__.__name__

    def times(scale: Tensor) -> Callable[[Tensor], Tensor]:
        def multiply(x: Tensor) -> Tensor:
            _need(x, 4 if isinstance(module, nn.BatchNorm2d) else (2, 3), flat)
            return x * scale.reshape(-1, *[1] * (x.ndim - 2))

        return multiply

    tail = (1, 1) if isinstance(module, nn.BatchNorm2d) else ()
    top = float(scale.abs().max()) * (1 + 32 * UNIT)
    return LinearPart(
        times(scale),
        times(scale.abs()),
        offset.reshape(-1, *tail),
        16,
        lambda: top,
        error.reshape(-1, *tail),
    )


@linear_part.register
def _average(module: nn.AvgPool2d, path: str) -> LinearPart:
    def pool(x: Tensor) -> Tensor:
        _need(x, 4, module)
        return nn.AvgPool2d.forward(module, x)

    sides = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,)
    return LinearPart(pool, pool, _ZERO, max(sides) ** 2)


@linear_part.register
def _adaptive(module: nn.AdaptiveAvgPool2d, path: str) -> LinearPart:
    def pool(x: Tensor) -> Tensor:
        _need(x, 4, module)
        return F.adaptive_avg_pool2d(x, module.output_size)  # type: ignore[arg-type]

    return LinearPart(pool, pool, _ZERO, 1 << 20)


_ZERO = torch.zeros((), dtype=torch.float64)


def spectral_norm(weight: Tensor) -> float:
    """Upper bound of the largest singular value of a float64 matrix.

    ``s >= ||W||_2`` if ``s^2 I - W^T W`` is positive semidefinite; a Cholesky factorisation that
    runs to its end proves it up to ``gamma_{n+2} trace`` [1], which is added, as is the rounding of
    ``W^T W``.

    References:
        [1] Rump, Verification of positive definiteness, BIT 2006.
    """
    if weight.shape[0] < weight.shape[1]:
        weight = weight.mT
    frobenius = float(weight.square().sum()) * (1 + 2 * rounding(weight.numel()))
    if not 1e-200 < frobenius < 1e200:
        top = float(weight.abs().max())
        if not 0 < top < inf:
            return 0.0 if top == 0 else inf
        # a power of two changes no digits; what it may push below the smallest number is nothing
        # beside the largest entry
        exponent = frexp(top)[1]
        half = exponent // 2
        size = spectral_norm(weight * 2.0**-half * 2.0 ** (half - exponent))
        return nextafter(size * 2.0**half * 2.0 ** (exponent - half) * (1 + 4 * UNIT), inf)
    m, n = weight.shape
    gram = weight.mT @ weight
    size = float(torch.linalg.matrix_norm(weight, ord=2))
    for inflation in (1e-10, 1e-7, 1e-4):
        square = (size * (1 + inflation)) ** 2
        shifted = square * torch.eye(n, dtype=torch.float64) - gram
        if int(torch.linalg.cholesky_ex(shifted)[1]) == 0:
            error = rounding(m + 2) * frobenius + 4 * rounding(n + 4) * n * square
            return min(sqrt(square + error), sqrt(frobenius)) * (1 + 8 * UNIT)
    return sqrt(frobenius) * (1 + 4 * UNIT)


def _double(value: Tensor, module: nn.Module, path: str) -> Tensor:
    value = value.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(value).all()):
        raise refuse(module, path, "a weight is NaN or infinite", "training diverged here.")
    return value


def _offset(bias: Tensor | None, module: nn.Module, path: str) -> Tensor:
    return _ZERO if bias is None else _double(bias, module, path)


def _need(x: Tensor, ndim: int | tuple[int, ...], module: Any) -> None:
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if x.ndim not in allowed:
        raise ValueError(f"{module} needs {allowed} dimensions with the batch, got {x.ndim}")
