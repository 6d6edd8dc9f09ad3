"""Brackets of 2-norms: against the materialised matrix, at ugly weights, and with rounding."""

from fractions import Fraction

import pytest
import torch

from wellposed.core.matrix_norm import matrix_bracket, stretched
from wellposed.core.operators import Convolution, Dense
from wellposed.core.spectral import two_norm, two_norm_bracket
from wellposed.errors import NotCertifiableError

UGLY = {
    "plain": lambda w: w,
    "x10": lambda w: 10 * w,
    "x1e3": lambda w: 1e3 * w,
    "x1e-3": lambda w: 1e-3 * w,
    "huge": lambda w: 1e150 * w.double(),
    "tiny": lambda w: 1e-150 * w.double(),
    "signs": lambda w: w * (1 - 2 * (torch.rand(w.shape) < 0.5).to(w)),
    "positive": lambda w: w.abs(),
    "bfloat16": lambda w: w.bfloat16().float(),
    "one row": lambda w: torch.cat([1e4 * w[:1], w[1:]]),
    "rank one": lambda w: w[:1].expand_as(w).clone(),
}


def exact(operator):
    return float(torch.linalg.matrix_norm(operator.to(torch.float64).materialise(), 2))


@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_bracketed(ugly, padding, stride):
    torch.manual_seed(0)
    kernel = UGLY[ugly](torch.randn(3, 2, 3, 5))
    operator = Convolution(kernel, (6, 8), padding, stride)
    found, norm = two_norm_bracket(operator), exact(operator)
    # the reference is itself rounded
    assert found.lower <= norm * (1 + 1e-13)
    assert norm <= found.upper * (1 + 1e-13)
    if padding == "circular":
        assert found.upper - found.lower <= 1e-10 * norm
    assert float(two_norm(operator)) == pytest.approx(found.upper, rel=1e-9)


@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("shape", [(7, 7), (3, 9), (9, 3), (1, 1)])
def test_a_matrix_is_bracketed(ugly, shape):
    torch.manual_seed(1)
    operator = Dense(UGLY[ugly](torch.randn(*shape)))
    found, norm = two_norm_bracket(operator), exact(operator)
    assert found.lower <= norm * (1 + 1e-13)
    assert norm <= found.upper * (1 + 1e-13)
    assert found.upper - found.lower <= 1e-11 * norm
    assert float(two_norm(operator)) == pytest.approx(norm, rel=1e-12)


def test_an_exact_norm_is_attained_from_above():
    # 3 / 5 and 4 / 5 are rounded; the norm of [[3, 4], [4, -3]] is 5 exactly
    found = matrix_bracket(torch.tensor([[3.0, 4.0], [4.0, -3.0]]))
    assert found.lower <= 5 <= found.upper <= 5 * (1 + 1e-12)


def test_orthogonal_zero_and_complex_matrices():
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.complex128))[0]
    found = matrix_bracket(torch.stack([q, 0.5 * q]))
    assert found.lower == pytest.approx(1, abs=1e-12)
    assert 1 <= found.upper <= 1 + 1e-11
    zero = two_norm_bracket(Dense(torch.zeros(3, 3)))
    assert (zero.lower, zero.upper, zero.exact) == (0.0, 0.0, True)


def test_zero_padding_costs_little_on_images_of_common_size():
    torch.manual_seed(2)
    operator = Convolution(torch.randn(4, 4, 3, 3), (14, 14))
    found, norm = two_norm_bracket(operator), exact(operator)
    assert norm <= found.upper <= 1.03 * norm
    assert 0.9 * norm <= found.lower <= norm


def test_a_kernel_larger_than_the_image():
    operator = Convolution(torch.randn(2, 2, 7, 7, dtype=torch.float64), (3, 4))
    found, norm = two_norm_bracket(operator), exact(operator)
    assert found.lower <= norm <= found.upper
    assert 0.9 * norm <= stretched(operator) <= norm * (1 + 1e-13)
    assert found.lower >= 0.9 * norm


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(NotCertifiableError, match="NaN"):
        two_norm_bracket(Dense(torch.full((2, 2), float("nan"))))


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_norm_is_differentiable(padding):
    torch.manual_seed(3)
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda k: two_norm(Convolution(k, (5, 5), padding)), kernel)
    torch.autograd.gradgradcheck(lambda k: two_norm(Convolution(k, (5, 5), padding)), kernel)


def test_brackets_hold_in_rational_arithmetic():
    # of a 2 x 2 matrix: t^2 I - M^T M is semidefinite if and only if its trace and determinant are
    generator = torch.Generator().manual_seed(0)
    for draw in range(300):
        M = torch.randn(2, 2, dtype=torch.float64, generator=generator)
        M = M * 10.0 ** (draw % 13 - 6)
        if draw % 3 == 0:
            M = torch.outer(M[0], M[1])
        found = matrix_bracket(M)
        (a, b), (c, d) = ([Fraction(float(v)) for v in row] for row in M)
        gram = (a * a + c * c, a * b + c * d, b * b + d * d)

        def excess(t, gram=gram):
            left, right = Fraction(t) ** 2 - gram[0], Fraction(t) ** 2 - gram[2]
            return left + right, left * right - gram[1] ** 2

        trace, determinant = excess(found.upper)
        assert trace >= 0
        assert determinant >= 0
        trace, determinant = excess(found.lower)
        assert trace <= 0 or determinant <= 0


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_the_norm_of_a_matrix_is_differentiable(shape):
    torch.manual_seed(4)
    matrix = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda m: two_norm(Dense(m)), matrix)
    torch.autograd.gradgradcheck(lambda m: two_norm(Dense(m)), matrix)
    direct = torch.func.grad(lambda m: two_norm(Dense(m)))(matrix.detach())
    (grad,) = torch.autograd.grad(two_norm(Dense(matrix)), matrix)
    assert torch.allclose(direct, grad, rtol=1e-10)


def test_the_norm_of_zero_is_zero():
    zero = torch.zeros(3, 3, requires_grad=True)
    two_norm(Dense(zero)).backward()
    assert bool(torch.isfinite(zero.grad).all())
