"""Functions that capture tensors: right first derivatives, refused second ones, nothing silent."""

import functools

import pytest
import torch
from torch import nn
from torch.func import grad

from wellposed.errors import ConfigError, HigherOrderError, NonConvergenceWarning
from wellposed.gradients.implicit import Implicit
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Stopping

EXACT = Stopping(rtol=1e-14, atol=1e-15, max_evaluations=2000)
SHARP = Implicit(rtol=1e-14)


def tensors():
    generator = torch.Generator().manual_seed(0)
    w = 0.3 * torch.randn(4, 4, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    return w.requires_grad_(), x.requires_grad_()


def f(z, w, x):
    return torch.tanh(z @ w.mT + x)


def solve(g, *args):
    start = torch.zeros(2, 4, dtype=torch.float64)
    return fixed_point(g, start, *args, stopping=EXACT, gradient=SHARP)


class Holder:
    def __init__(self, w):
        self.w = w

    def __call__(self, z, x):
        return f(z, self.w, x)

    def method(self, z, x):
        return f(z, self.w, x)


def ways(w):
    yield "cell variable", lambda z, x: f(z, w, x)
    yield "partial", functools.partial(lambda w, z, x: f(z, w, x), w)
    yield "default", lambda z, x, w=w: f(z, w, x)
    yield "callable object", Holder(w)
    yield "bound method", Holder(w).method


def test_captured_and_listed_tensors_get_first_derivatives():
    w, x = tensors()
    reference = torch.autograd.grad(solve(f, w, x).value.pow(2).sum(), (w, x))
    for name, g in ways(w):
        solution = solve(g, x)
        ours = torch.autograd.grad(solution.value.pow(2).sum(), (w, x))
        for a, b in zip(ours, reference, strict=True):
            assert torch.allclose(a, b, atol=1e-12), name
        assert solution.adjoint is not None
        assert solution.adjoint.converged


def test_a_captured_module_is_trained():
    linear = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.mul_(0.3)
    _, x = tensors()
    solve(lambda z: torch.tanh(linear(z) + x.detach())).value.sum().backward()
    reference = solve(f_module(linear), x.detach()).value.sum()
    expected = torch.autograd.grad(reference, tuple(linear.parameters()))
    for p, e in zip(linear.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, e, atol=1e-12)


def f_module(linear):
    class F(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x)

    return F()


@pytest.mark.parametrize("cotangent_wants_grad", [False, True])
def test_second_derivatives_are_refused(cotangent_wants_grad):
    w, x = tensors()
    z = solve(lambda z, x: f(z, w, x), x).value
    loss = z.pow(2).sum() if cotangent_wants_grad else z.sum()
    gw, gx = torch.autograd.grad(loss, (w, x), create_graph=True)
    for first in (gw, gx):
        for t in (w, x):
            with pytest.raises(HigherOrderError, match="captures tensors"):
                torch.autograd.grad(first.sum(), t, retain_graph=True)


def test_an_unused_graph_costs_nothing_but_is_allowed():
    w, x = tensors()
    z = solve(lambda z, x: f(z, w, x), x).value
    (kept,) = torch.autograd.grad(z.sum(), w, create_graph=True)
    z = solve(lambda z, x: f(z, w, x), x).value
    (plain,) = torch.autograd.grad(z.sum(), w)
    assert torch.allclose(kept, plain, atol=1e-14)


def test_a_function_that_captures_only_constants_has_all_derivatives():
    w, x = tensors()
    constant = w.detach()

    def hessian(g):
        return torch.autograd.functional.hessian(lambda x: solve(g, x).value.pow(3).sum(), x)

    reference = torch.autograd.functional.hessian(
        lambda x: solve(f, constant, x).value.pow(3).sum(), x
    )
    assert torch.allclose(hessian(lambda z, x: f(z, constant, x)), reference, atol=1e-12)


def test_a_capture_inside_a_function_transform_is_refused():
    w, x = tensors()
    w, x = w.detach(), x.detach()

    def loss(w):
        return solve(lambda z, x: f(z, w, x), x).value.sum()

    with pytest.raises(ConfigError, match="captures a tensor"):
        grad(loss)(w)
    both = grad(lambda w, x: solve(lambda z, x: f(z, w, x), x).value.sum(), argnums=(0, 1))
    with pytest.raises(ConfigError, match="captures a tensor"):
        both(w, x)
    listed = grad(lambda w: solve(f, w, x).value.sum())(w)
    wanted = w.clone().requires_grad_()
    (reference,) = torch.autograd.grad(solve(f, wanted, x).value.sum(), wanted)
    assert torch.allclose(listed, reference, atol=1e-12)


def test_a_missed_adjoint_tolerance_is_flagged():
    w, x = tensors()
    start = torch.zeros(2, 4, dtype=torch.float64)
    blunt = Implicit(rtol=1e-12, max_evaluations=2)
    solution = fixed_point(lambda z, x: f(z, w, x), start, x, gradient=blunt, stopping=EXACT)
    with pytest.warns(NonConvergenceWarning, match="Adjoint"):
        solution.value.sum().backward()
    assert solution.adjoint.converged is False
