"""Gram iteration: brackets that never miss, how fast they close, and its smooth gradient."""

from itertools import product

import pytest
import torch

from wellposed.core.convolutions import convolution
from wellposed.core.gram import gram_bracket, gram_norm_bracket
from wellposed.core.operators import Convolution, Dense
from wellposed.core.opnorm import operator_norm
from wellposed.core.schatten import (
    gradient_distance,
    schatten,
    schatten_excess,
    schatten_norm,
)
from wellposed.core.transposed import Adjoint
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

SIZES = [(4, 4), (9, 5), (5, 9), (30, 2), (1, 17), (41, 40), (64, 24), (200, 6)]
KINDS = ["plain", "rank one", "orthogonal", "zero row", "ties", "huge", "tiny"]


def draw(kind, shape, dtype):
    G = torch.randn(*shape, dtype=dtype)
    if kind == "rank one":
        return G[:1] * torch.randn(shape[0], 1, dtype=dtype)
    if kind in ("orthogonal", "ties"):
        Q = torch.linalg.qr(G if shape[0] >= shape[1] else G.mT)[0]
        if kind == "ties":
            sizes = torch.rand(Q.shape[1], dtype=torch.float64)
            sizes[: len(sizes) // 2 + 1] = 1.0
            Q = Q * sizes
        return Q if shape[0] >= shape[1] else Q.mT
    if kind == "zero row":
        G[0] = 0
    return G * {"huge": 1e200, "tiny": 1e-200}.get(kind, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_it_never_misses(kind, dtype):
    torch.manual_seed(0)
    for shape, steps in product(SIZES, (1, 3, 24)):
        G = draw(kind, shape, dtype)
        sigma = float(torch.linalg.matrix_norm(G, 2))
        found = gram_bracket(G, steps)
        assert found.lower <= sigma * (1 + 1e-12)
        assert found.upper >= sigma * (1 - 1e-12)
        if steps == 24:
            assert found.upper <= found.lower * (1 + 1.1e-6)


def test_single_precision_is_never_below():
    torch.manual_seed(1)
    plain = 0
    for k in range(50):
        G = torch.randn(50, 6 + k % 20, 5 + k % 7)
        sigma = torch.linalg.matrix_norm(G.double(), 2)
        plain += int((schatten_norm(G, 12) < sigma).sum())
        for one, norm in zip(G[:4], sigma, strict=False):
            assert gram_bracket(one, 12).upper >= float(norm) * (1 - 1e-15)
    assert plain > 250  # what is rounded to the nearest does fall below; of 2,500


def test_a_batch_is_the_largest_of_it():
    torch.manual_seed(2)
    G = torch.randn(2, 7, 6, 5, dtype=torch.float64) * torch.logspace(-3, 3, 7)[:, None, None]
    found = gram_bracket(G)
    sigma = float(torch.linalg.matrix_norm(G, 2).amax())
    assert found.lower <= sigma <= found.upper <= sigma * (1 + 1.1e-6)


def test_orthogonal_matrices_take_two_steps():
    torch.manual_seed(3)
    Q = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0]
    found = gram_bracket(Q, 2)
    assert found.exact
    assert abs(found.upper - 1) <= 1e-9
    # the Frobenius norm alone is far off
    assert float(schatten_norm(Q, 2)) > 1.6


def test_it_converges_as_the_gap_says():
    torch.manual_seed(4)
    G = torch.randn(64, 64, dtype=torch.float64)
    sigma = float(torch.linalg.matrix_norm(G, 2))
    U, _, V = torch.linalg.svd(G)
    gap = (
        U @ torch.cat([torch.tensor([1.0]), torch.linspace(1 / 1.01, 0.2, 63)]).double().diag() @ V
    )
    found = gram_bracket(gap, 10, 1e-6)
    assert found.upper <= found.lower * (1 + 1e-6)
    least = [gram_bracket(G, steps, 0.0).upper for steps in range(1, 9)]
    assert least == sorted(least, reverse=True)
    assert least[-1] <= sigma * (1 + 1e-5)


def spectra():
    """Singular values of 200 Gaussian matrices, then gaps from a tie to a factor of two."""
    yield torch.linalg.svdvals(torch.randn(200, 24, 16, dtype=torch.float64))
    q = torch.tensor([1.0, 0.9999, 0.999, 0.99, 0.9, 0.5], dtype=torch.float64)
    for others in (1, 15):
        yield torch.cat([torch.ones(6, 1).double(), q[:, None].expand(6, others)], 1)
    yield torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 3, 6, 8])
def test_the_error_of_value_and_gradient_is_that_of_the_gap(steps):
    """Acceptance checks 2 and 3: what six steps reach depends on the gap, and on nothing else."""
    torch.manual_seed(10)
    for s in spectra():
        U, V = (torch.linalg.qr(torch.randn(len(s), n, s.shape[1]).double())[0] for n in (24, 16))
        G = ((U * s[:, None]) @ V.mT).requires_grad_()
        value = schatten_norm(G, steps)
        (gradient,) = torch.autograd.grad(value.sum(), G)
        over = value.detach() / s[:, 0] - 1
        off = torch.linalg.matrix_norm(gradient - U[:, :, :1] * V[:, None, :, 0])
        rank = s.shape[1] ** (2.0 ** -(steps + 1)) - 1
        assert bool((over <= schatten_excess(s, steps) + 1e-13).all())
        assert bool((schatten_excess(s, steps) <= rank + 1e-13).all())
        assert bool((off <= gradient_distance(s, steps) + 1e-12).all())
        if len(s) == 6:
            # all but the largest are equal: nothing is given away, and at a tie not a bit of rank
            assert torch.allclose(over, schatten_excess(s, steps), rtol=1e-9, atol=1e-13)
            assert float(over[0]) == pytest.approx(rank, rel=1e-9)
            assert float(off[0]) > 0.4


def test_six_steps_of_the_norm_alone_are_not_enough_for_every_gaussian():
    """Neither an error of 1e-4 nor a gradient within 1e-3 is what a random matrix gets."""
    torch.manual_seed(11)
    s = torch.linalg.svdvals(torch.randn(100, 64, 48, dtype=torch.float64))
    q = s / s[:, :1]
    over = (q**128).sum(1) ** (1 / 128) - 1
    first = (1 + over) ** -127.0
    off = ((1 - first).square() + ((q[:, 1:] / (1 + over[:, None])) ** 254).sum(1)).sqrt()
    assert 0.2 < float((over <= 1e-4).double().mean()) < 0.9
    assert 0.1 < float((off <= 1e-3).double().mean()) < 0.7
    # but an adaptive number of steps is: the bracket says when
    worst = torch.linalg.qr(torch.randn(64, 48, dtype=torch.float64))[0] * s[int(over.argmax())]
    found = gram_bracket(worst, tol=1e-4)
    assert found.upper <= (1 + 1e-4) * found.lower


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_six_steps_and_a_few_vectors_are_enough_for_every_gaussian(dtype):
    """Acceptance check 2 of the bracket, whatever the gap of the draw: 1e-4 is asked."""
    torch.manual_seed(12)
    for G in torch.randn(200, 64, 64, dtype=dtype):
        sigma = float(torch.linalg.matrix_norm(G, 2))
        found = gram_bracket(G, 6, 0.0)
        assert sigma * (1 - 1e-13) <= found.upper <= sigma * (1 + 1e-8)
        assert sigma * (1 - 1e-7) <= found.lower <= sigma * (1 + 1e-13)


@pytest.mark.parametrize(("ties", "worst"), [(1, 1e-10), (3, 1e-10), (7, 1e-10), (30, 7e-3)])
def test_near_ties_cost_nothing_while_they_fit_into_the_block(ties, worst):
    torch.manual_seed(13)
    U, _, Vh = torch.linalg.svd(torch.randn(64, 64, dtype=torch.float64))
    near = 1 - 1e-4 * torch.rand(ties - 1, dtype=torch.float64)
    s = torch.cat([torch.ones(1), near, torch.rand(64 - ties) * 0.9]).double()
    found = gram_bracket((U * s) @ Vh, 8, 0.0)
    assert 1 - 1e-12 <= found.upper <= 1 + worst
    assert found.lower <= 1 + 1e-12


def test_convolutions_of_common_size():
    torch.manual_seed(0)
    operator = Convolution(torch.randn(16, 16, 3, 3), (32, 32), "circular")
    exact = operator_norm(operator, method="exact")
    found = gram_norm_bracket(operator, steps=6)
    assert exact.exact
    assert exact.lower <= found.upper <= exact.upper * (1 + 1e-5)
    assert found.lower <= exact.upper


@pytest.mark.parametrize("outside", ["zeros", "circular", "replicate"])
def test_convolutions_of_all_kinds(outside):
    torch.manual_seed(5)
    for stride, groups, turned in product((1, 2), (1, 2), (False, True)):
        kernel = torch.randn(4, 6 // groups, 3, 2, dtype=torch.float64)
        operator = convolution(
            kernel, (6, 4), padding=1, outside=outside, stride=stride, groups=groups
        )
        operator = Adjoint(operator) if turned else operator
        sigma = float(torch.linalg.matrix_norm(operator.materialise(), 2))
        found = operator_norm(operator, method="gram")
        assert found.lower <= sigma * (1 + 1e-13)
        assert found.upper >= sigma * (1 - 1e-13)
        assert float(schatten(operator, 5)) >= sigma * (1 - 1e-13)


def test_zero_and_scale():
    zero = gram_bracket(torch.zeros(3, 4))
    assert (zero.lower, zero.upper) == (0.0, 0.0)
    for matrix in (torch.zeros(3, 4), torch.zeros(3, 4).double()):
        matrix.requires_grad_()
        schatten_norm(matrix).backward()
        assert torch.equal(matrix.grad, torch.zeros_like(matrix))
    torch.manual_seed(6)
    K = torch.randn(4, 4, 3, 3)
    one = schatten(Convolution(K, (8, 8), "circular"))
    for c in (1e-30, 1e30):
        scaled = K * c
        assert float(schatten(Convolution(scaled, (8, 8), "circular")) / c) == pytest.approx(
            float(one), rel=1e-6
        )
        for method in ("gram", "exact"):
            bounds = [
                operator_norm(Convolution(k, (8, 8), "circular"), method=method)
                for k in (K, scaled)
            ]
            assert bounds[1].upper / c == pytest.approx(bounds[0].upper, rel=1e-6)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_gradient(steps):
    torch.manual_seed(7)
    G = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: schatten_norm(g, steps), G)
    C = torch.randn(2, 3, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: schatten_norm(g, steps), C, fast_mode=True)
    K = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def of(kernel, stride):
        operator = convolution(kernel, (6, 4), outside="circular", stride=stride, groups=2)
        return schatten(operator, steps)

    assert torch.autograd.gradcheck(lambda k: of(k, 1 + steps % 2), K, fast_mode=True)


def test_the_closed_form_is_the_gradient_of_the_recursion():
    torch.manual_seed(8)
    G = torch.randn(64, 48, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    G = U * torch.cat([s[:1] * 1.1, s[1:]]) @ Vh
    G.requires_grad_()
    (closed,) = torch.autograd.grad(schatten_norm(G, 6), G)
    (graph,) = torch.autograd.grad(schatten_norm(G, 6), G, create_graph=True)
    assert torch.allclose(closed, graph, rtol=1e-10, atol=1e-12)
    assert float((closed - torch.outer(U[:, 0], Vh[0])).norm()) <= 1e-3
    direct = torch.func.grad(lambda g: schatten_norm(g, 6))(G.detach())
    assert torch.allclose(direct, closed, rtol=1e-10)
    assert torch.autograd.gradgradcheck(
        lambda g: schatten_norm(g, 3), G.detach()[:3, :4].clone().requires_grad_()
    )


def test_single_precision_gradients():
    torch.manual_seed(9)
    G = torch.randn(40, 30)
    rows = []
    for dtype in (torch.float32, torch.float64):
        H = G.to(dtype).clone().requires_grad_()
        schatten_norm(H, 8).backward()
        rows.append(H.grad.double())
    assert float((rows[0] - rows[1]).norm()) <= 1e-4
    assert schatten_norm(G.bfloat16()).dtype is torch.float32


def test_refusals():
    with pytest.raises(ConfigError, match="steps"):
        gram_bracket(torch.eye(2), 0)
    with pytest.raises(ConfigError, match="tol"):
        gram_bracket(torch.eye(2), 2, float("nan"))
    with pytest.raises(ShapeError, match="matrices"):
        gram_bracket(torch.ones(3))
    with pytest.raises(ShapeError, match="matrices"):
        schatten_norm(torch.ones(3))
    with pytest.raises(NotCertifiableError, match="NaN"):
        gram_norm_bracket(Dense(torch.full((2, 2), float("inf"))))
