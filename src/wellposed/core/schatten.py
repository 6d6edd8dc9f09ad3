"""Schatten norms of order ``2^(T+1)``: smooth upper bounds of 2-norms, with their gradients.

``B_T(G) = ||A_T||_F^(2^-T) = (sum_i sigma_i^(2^(T+1)))^(2^-(T+1))`` after ``T`` products
``A_(t+1) = A_t^H A_t``. It is at least ``sigma_1``, and its gradient a weighted sum of all
``u_i v_i^H`` that tends to ``u_1 v_1^H``: smooth where singular values cross. No certificate:
`gram` has that.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from wellposed.core.convolution_norm import grams
from wellposed.core.convolutions import GeneralConvolution, general
from wellposed.core.gram import check_steps
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.peel import forward_mode, transforming
from wellposed.core.symbols import symbols
from wellposed.core.tori import torus
from wellposed.core.transposed import Adjoint
from wellposed.errors import NotCertifiableError, ShapeError


def schatten_norm(matrices: Tensor, steps: int = 6) -> Tensor:
    """``B_T`` of each matrix, differentiable twice.

    ``dB/dG = (G / B) prod_(j < T) (H / B^2)^(2^j)`` with ``H = G^H G``: the squares are those of
    the forward pass, so that a gradient costs ``T`` products more. It converges more slowly than
    the value: as a regulariser take six steps or more. The gradient of a zero matrix is zero.

    Args:
        matrices: Shape (..., p, q), real or complex; half precisions are computed in float32.
        steps: ``T``, at least one.

    Returns:
        Shape (...), real.

    Raises:
        ConfigError: `steps` is not positive.
        ShapeError: There are fewer than two dimensions.
    """
    check_steps(steps)
    if matrices.ndim < 2:
        raise ShapeError(f"A Schatten norm needs matrices, got shape {tuple(matrices.shape)}.")
    if matrices.dtype in (torch.float16, torch.bfloat16):
        matrices = matrices.float()
    tall = matrices.mH if matrices.shape[-1] > matrices.shape[-2] else matrices
    if transforming() or forward_mode():
        return _recursion(tall, steps)[0]
    return _Schatten.apply(tall, steps)  # pyright: ignore


@singledispatch
def schatten(operator: Operator, steps: int = 6) -> Tensor:
    """`schatten_norm` of an operator: for a convolution at the frequency where it is largest.

    It bounds what `two_norm` gives, from above.

    Raises:
        NotCertifiableError: The operator is neither a matrix nor a convolution.
    """
    del steps
    raise NotCertifiableError(
        f"{type(operator).__name__} has no Schatten norm here.",
        hint="register one with `@wellposed.core.schatten.schatten.register`.",
    )


@schatten.register
def _dense(operator: Dense, steps: int = 6) -> Tensor:
    return schatten_norm(operator.matrix, steps)


@schatten.register
def _general(operator: GeneralConvolution, steps: int = 6) -> Tensor:
    check_steps(steps)
    kernel = operator.kernel
    if kernel.dtype in (torch.float16, torch.bfloat16):
        kernel = kernel.float()
    on = torus(operator.with_weight(kernel))
    row, group = _largest(on.kernels.detach(), on.grid, steps)
    matrix = symbols(on.kernels[group], on.grid, rows=torch.tensor([row]))[0]
    return on.factor * schatten_norm(matrix, steps)


@schatten.register
def _convolution(operator: Convolution, steps: int = 6) -> Tensor:
    return schatten(general(operator), steps)


@schatten.register
def _adjoint(operator: Adjoint, steps: int = 6) -> Tensor:
    return schatten(operator.of, steps)


@torch.no_grad()
def _largest(kernels: Tensor, grid: tuple[int, ...], steps: int) -> tuple[int, int]:
    """The frequency and the group with the largest Schatten norm."""
    size = kernels.abs().amax()
    best, place = -torch.inf, (0, 0)
    for gram in grams(kernels / torch.where(size > 0, size, 1), grid):
        H = gram.matrices
        # the first product is there: half of the exponents
        log = _logarithm(H, steps - 1)
        at = int(log.flatten().argmax())
        if float(log.flatten()[at]) > best:
            best = float(log.flatten()[at])
            place = int(gram.rows[at // H.shape[1]]), at % H.shape[1]
    return place


def _logarithm(power: Tensor, steps: int) -> Tensor:
    log = power.new_zeros(power.shape[:-2]).real.double()
    for _ in range(steps):
        size = torch.linalg.matrix_norm(power)
        size = torch.where(size > 0, size, 1)
        power, log = power / size[..., None, None], 2 * (log + size.double().log())
        power = power.mH @ power
    return (log + torch.linalg.matrix_norm(power).double().log()) / 2**steps


def _recursion(G: Tensor, steps: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """``B_T``, its logarithm relative to the largest entry, and the squares with their scales.

    The scales are constants: the value does not depend on them, nor does any derivative.
    """
    top = G.detach().abs().amax((-2, -1))
    top = torch.where(top > 0, top, 1)
    power = G / top[..., None, None]
    log = torch.zeros_like(top, dtype=torch.float64)
    squares: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        size = torch.linalg.matrix_norm(power.detach())
        size = torch.where(size > 0, size, 1)
        power, log = power / size[..., None, None], 2 * (log + size.double().log())
        power = power.mH @ power
        squares.append((power, log))
    size = torch.linalg.matrix_norm(power)
    zero = size.detach() == 0
    root = (torch.where(zero, 1, size).double().log() + log) / 2**steps
    value = torch.where(zero, 0, top * root.exp().to(top))
    return value, root, squares


def schatten_excess(singular: Tensor, steps: int = 6) -> Tensor:
    """Bound of ``B_T / sigma_1 - 1``, which only the gap of the largest singular value makes small.

    ``(1 + (r - 1) q^(2^(T+1)))^(2^-(T+1)) - 1`` with ``q = sigma_2 / sigma_1`` and ``r`` values:
    at most ``r^(2^-(T+1)) - 1``, which all singular values equal attain. Between the two a step
    only halves the error; it falls at a double exponential rate once ``(r - 1) q^(2^(T+1)) < 1``.

    Args:
        singular: Singular values, decreasing along the last axis, shape (..., r), ``sigma_1 > 0``.
        steps: ``T``.

    Returns:
        Shape (...).
    """
    r, q = _gap(singular)
    order = 2.0 ** (steps + 1)
    return torch.expm1(torch.log1p((r - 1) * q**order) / order)


def gradient_distance(singular: Tensor, steps: int = 6) -> Tensor:
    """Bound of ``||dB_T / dG - u_1 v_1^H||_F``: ``q^(m-1) sqrt((r - 1)(1 + (r - 1) q^2))``.

    With ``m = 2^(T+1)`` and ``q = sigma_2 / sigma_1``: the gradient is the sum of all
    ``w_i u_i v_i^H`` with ``w_i = (sigma_i / B_T)^(m-1)``. Each but the first weight is at most
    ``q^(m-1)``; the first, ``(1 + sum_i>1 (sigma_i / sigma_1)^m)^(-(m-1)/m)``, at least
    ``1 - (r - 1) q^m``. It is never above ``sqrt(2)``, as both are matrices in the unit ball with a
    nonnegative inner product.

    Args:
        singular: Singular values, decreasing along the last axis, shape (..., r), ``sigma_1 > 0``.
        steps: ``T``.

    Returns:
        Shape (...).
    """
    r, q = _gap(singular)
    power = q ** (2.0 ** (steps + 1) - 1)
    return (power * ((r - 1) * (1 + (r - 1) * q.square())).sqrt()).clamp(max=2**0.5)


def _gap(singular: Tensor) -> tuple[int, Tensor]:
    r, top = singular.shape[-1], singular[..., 0]
    return r, singular[..., 1] / top if r > 1 else torch.zeros_like(top)


class _Schatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, steps: int) -> Tensor:  # pyright: ignore
        value, root, squares = _recursion(G, steps)
        ctx.steps = steps
        ctx.save_for_backward(G, value, root, *(part for pair in squares for part in pair))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        G, value, root, *rest = ctx.saved_tensors
        if torch.is_grad_enabled():
            # whoever differentiates this needs the graph of the recursion itself
            with torch.enable_grad():
                again = _recursion(G, ctx.steps)[0]
                (row,) = torch.autograd.grad(again, G, g, create_graph=True)
            return row, None
        product = G / torch.where(value > 0, value, 1)[..., None, None]
        for t, (A, log) in enumerate(zip(rest[::2], rest[1::2], strict=True), 1):
            scale = (log - 2**t * root).exp().to(value)
            product = product @ (A * scale[..., None, None])
        return g[..., None, None] * product, None
