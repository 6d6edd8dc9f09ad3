"""The hand-written backward pass of NEMON's parametrisation."""

import gc

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, jacrev, jvp

import wellposed as wp
from wellposed.cells.skewed import skewed
from wellposed.core.activations import LeakyReLU, Tanh


def inputs(n=5, seed=0):
    make = torch.Generator().manual_seed(seed)
    shapes = ((n, n), (n,), (n,))
    return [torch.randn(s, generator=make, dtype=torch.float64).requires_grad_() for s in shapes]


def weights(*given):
    mask = 1 - torch.eye(len(given[0]), dtype=torch.float64)
    return skewed(*given, mask, 0.3)


def by_hand(T, log_eta, damping):
    off = T * (1 - torch.eye(len(T), dtype=T.dtype))
    eta = torch.asinh(log_eta).exp()
    diagonal = 0.3 - nn.functional.softplus(damping) - off.abs().sum(1)
    return eta[:, None] * off / eta, diagonal, eta


def test_it_is_the_formula():
    given = inputs()
    for found, expected in zip(weights(*given), by_hand(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_derivatives_are_right_whichever_results_are_used(used):
    def some(*given):
        parts = weights(*given)
        return tuple(parts[i] for i in used)

    given = inputs()
    assert gradcheck(some, given)
    assert gradgradcheck(some, given)


def test_the_third_derivative_is_right():
    def second(*given):
        value = sum(
            (p.sin() * (1 + torch.arange(p.numel()).view_as(p))).sum() for p in weights(*given)
        )
        first = torch.autograd.grad(value, given, create_graph=True)
        return torch.autograd.grad(sum((g**3).sum() for g in first), given, create_graph=True)

    assert gradcheck(second, inputs(4))


# PyTorch scripts the decompositions that forward mode uses
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_every_mode_of_differentiation_agrees():
    given = inputs()
    tangents = [torch.ones_like(t) for t in given]
    rows = [
        torch.autograd.functional.jacobian(lambda *g, i=i: weights(*g)[i], tuple(given))
        for i in range(3)
    ]
    for i in range(3):
        inside = jacrev(lambda *g, i=i: weights(*g)[i], (0, 1, 2))(*given)
        for mine, theirs in zip(rows[i], inside, strict=True):
            torch.testing.assert_close(mine, theirs)
    _, pushed = jvp(weights, tuple(given), tuple(tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.detach(), d) for t, d in zip(given, tangents, strict=True)]
        outside = [forward_ad.unpack_dual(p).tangent for p in weights(*duals)]
    for inside, other in zip(pushed, outside, strict=True):
        torch.testing.assert_close(inside, other)


def test_the_diagonal_kept_apart_is_that_of_the_matrix():
    A = wp.NemonCell(4, 6).explicit().A
    assert torch.equal(A.diagonal(), torch.diagonal(A.weight))
    rest = A.off_diagonal().weight
    assert torch.equal(rest + torch.diag(A.diagonal()), A.weight)
    # other numbers know nothing of it
    twice = A.with_weight(2 * A.weight)
    assert torch.equal(twice.diagonal(), 2 * A.diagonal())
    assert torch.equal(A.scale_rows(torch.full((6,), 3.0)).diagonal(), 3 * A.diagonal())


@pytest.mark.parametrize("activation", [None, LeakyReLU(0.2), Tanh()], ids=repr)
def test_gradients_of_the_layer_are_those_of_the_matrix_as_a_whole(activation):
    torch.manual_seed(0)
    cell = wp.NemonCell(4, 6, activation=activation, dtype=torch.float64)
    stopping = wp.Stopping(1e-13, 0.0, 500)
    x = torch.randn(7, 4, dtype=torch.float64)
    found = wp.Equilibrium(cell, stopping=stopping)(x)
    mine = torch.autograd.grad(found.square().sum(), list(cell.parameters()))

    # Newton's method on the tape of plain tensor operations, one dense system a sample
    affine = cell.explicit()
    A, q = affine.A.weight.clone(), affine.B.apply(x, affine.bias)
    z = found.detach()
    slope = affine.activation.slope(z @ A.mT + q).detach()
    J = torch.eye(6, dtype=torch.float64) - slope[:, :, None] * A.detach()
    step = affine.activation(z @ A.mT + q) - z
    exact = z + torch.linalg.solve(J, step)
    theirs = torch.autograd.grad(exact.square().sum(), list(cell.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_training_step_leaves_nothing_to_the_garbage_collector():
    torch.manual_seed(0)
    model = nn.Sequential(wp.Equilibrium(wp.NemonCell(4, 6)), nn.Linear(6, 2))
    x = torch.randn(8, 4)
    model(x).square().sum().backward()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            model(x).square().sum().backward()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [o for o in gc.garbage if isinstance(o, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def test_functional_calls_reach_the_parameters():
    torch.manual_seed(0)
    cell = wp.NemonCell(3, 4, dtype=torch.float64)
    layer = wp.Equilibrium(cell, stopping=wp.Stopping(1e-12, 0.0, 500))
    x = torch.randn(2, 3, dtype=torch.float64)
    values = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p):
        return functional_call(layer, p, (x,)).square().sum()

    inside = torch.func.grad(loss)(values)
    outside = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for a, b in zip(inside.values(), outside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
