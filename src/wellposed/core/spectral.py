"""2-norms of operators: proved brackets for certificates, a differentiable value for cells.

Open functions: an operator of another kind registers its own. Matrices and convolutions have
norms up to rounding, every other operator Schur's bound.
"""

from __future__ import annotations

from functools import singledispatch
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket
from wellposed.core.convolution_norm import convolution_bracket, convolution_norm
from wellposed.core.convolutions import GeneralConvolution, general
from wellposed.core.matrix_norm import matrix_bracket, stretched
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.peel import forward_mode, transforming
from wellposed.core.spectra import UNIT, outward
from wellposed.core.transposed import Adjoint
from wellposed.errors import NotCertifiableError


@singledispatch
def two_norm_bracket(operator: Operator) -> NormBracket:
    """Bounds of the 2-norm of a linear operator, from both sides.

    Matrices and circular convolutions: both within 1e-9 of the norm. A convolution padded with
    zeros is a compression of the circular one on every grid of at least ``n + k // 2`` pixels a
    side [1]: that is its upper bound, usually a few parts in a thousand above; its lower bound
    comes from a few steps of the power method. `wellposed.core.tori` says how other paddings,
    strides, dilations and groups are reduced to circular ones. Any other operator: Schur's bound
    ``sqrt(||M||_1 ||M||_inf)``.

    Raises:
        NotCertifiableError: A weight is not finite.

    References:
        [1] Sedghi, Gupta, Long. The singular values of convolutional layers. ICLR 2019, for the
        circular case; the compression follows from extending images by zeros.
    """
    exact = operator.detach().to(torch.float64)
    size = exact.absolute()
    ones = torch.ones(1, *size.in_shape, dtype=torch.float64, device=size.weight.device)
    rows = outward(size.apply(ones), prod(size.in_shape))
    ones = torch.ones(1, *size.out_shape, dtype=torch.float64, device=size.weight.device)
    columns = outward(size.adjoint(ones), prod(size.out_shape))
    upper = sqrt(float(rows.amax()) * float(columns.amax())) * (1 + 8 * UNIT)
    return bracket(stretched(exact), upper, "square root of largest row and column sum")


@two_norm_bracket.register
def _dense(operator: Dense) -> NormBracket:
    return matrix_bracket(operator.matrix.detach().double())


@two_norm_bracket.register
def _convolution(operator: Convolution) -> NormBracket:
    return convolution_bracket(general(operator))


@two_norm_bracket.register
def _general(operator: GeneralConvolution) -> NormBracket:
    return convolution_bracket(operator)


@two_norm_bracket.register
def _adjoint(operator: Adjoint) -> NormBracket:
    return two_norm_bracket(operator.of)


@singledispatch
def two_norm(operator: Operator) -> Tensor:
    """The 2-norm as a differentiable number in float64, for a parametrisation; no certificate.

    Exact up to rounding for matrices and circular convolutions, and otherwise the upper bound of
    `two_norm_bracket`. Derivatives of every order are those of the largest singular value, where
    it is simple.

    Raises:
        NotCertifiableError: The operator is of another kind.
    """
    raise NotCertifiableError(
        f"{type(operator).__name__} has no differentiable 2-norm here.",
        hint="register one with `@wellposed.core.spectral.two_norm.register`.",
    )


@two_norm.register
def _dense_norm(operator: Dense) -> Tensor:
    matrix = operator.matrix.double()
    if transforming() or forward_mode():
        return torch.linalg.svdvals(matrix)[0]
    return _Largest.apply(matrix)  # pyright: ignore


class _Largest(torch.autograd.Function):
    """The largest singular value of a matrix, at less than half the cost of a decomposition."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:  # pyright: ignore
        norm, left, right = largest_singular(matrix)
        ctx.save_for_backward(matrix, left, right)
        return norm

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        matrix, left, right = ctx.saved_tensors
        if torch.is_grad_enabled():
            # whoever differentiates this needs more than one pair of vectors
            norm = torch.linalg.svdvals(matrix)[0]
            (row,) = torch.autograd.grad(norm, matrix, g, create_graph=True)
            return row
        return g * torch.outer(left, right)


@torch.no_grad()
def largest_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value of a float64 matrix up to rounding, and its two vectors.

    From all eigenvalues of the smaller Gram matrix and inverse iteration for the one vector: half
    the cost of all vectors. Two steps leave of a singular value that is smaller by a fraction `d`
    at most the fraction ``1e-16 / d^2`` of the vector.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    gram = matrix.mT @ matrix if tall else matrix @ matrix.mT
    top = torch.linalg.eigvalsh(gram)[-1]
    if len(gram) >= _MANY and 1e-20 < float(top) < 1e20:
        start = torch.arange(1, len(gram) + 1, dtype=gram.dtype, device=gram.device).square().cos()
        gram.neg_().diagonal().add_(top * (1 + _OFF))
        factors, pivots, _ = torch.linalg.lu_factor_ex(gram)
        one = torch.linalg.lu_solve(factors, pivots, start[:, None])
        one = torch.linalg.lu_solve(factors, pivots, one / torch.linalg.vector_norm(one))[:, 0]
        one = one / torch.linalg.vector_norm(one)
    else:
        one = torch.linalg.eigh(gram)[1][:, -1]
    other = matrix @ one if tall else one @ matrix
    # an error of the vector counts twice only
    norm = torch.linalg.vector_norm(other)
    other = other / norm.clamp(min=1e-300)
    return norm, *((other, one) if tall else (one, other))


_MANY, _OFF = 32, 1e-8


@two_norm.register
def _convolution_norm(operator: Convolution) -> Tensor:
    return convolution_norm(general(operator))


@two_norm.register
def _general_norm(operator: GeneralConvolution) -> Tensor:
    return convolution_norm(operator)


@two_norm.register
def _adjoint_norm(operator: Adjoint) -> Tensor:
    return two_norm(operator.of)
