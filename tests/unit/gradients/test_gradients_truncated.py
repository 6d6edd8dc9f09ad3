"""The inexact gradients equal their formulas, computed densely."""

import pytest
import torch
from torch.autograd import gradcheck

from wellposed.cells.nemon import NemonCell
from wellposed.core.activations import ReLU, Tanh
from wellposed.errors import ConfigError
from wellposed.gradients.truncated import Neumann, OneStep, Phantom, Unrolled
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Status, Stopping

EXACT = Stopping(rtol=1e-14, atol=1e-15, max_evaluations=5000)
n = 6


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    w = 0.35 * torch.randn(n, n, dtype=torch.float64, generator=generator)
    x = torch.randn(1, n, dtype=torch.float64, generator=generator)
    g = torch.randn(n, dtype=torch.float64, generator=generator)
    return w.requires_grad_(), x.requires_grad_(), g


def f(z, w, x):
    return torch.tanh(z @ w.mT + x)


def series(jacobian, g, gradient):
    """The weights that multiply the cotangent, term by term."""
    if isinstance(gradient, Phantom):
        step = gradient.tau * jacobian.mT + (1 - gradient.tau) * torch.eye(n, dtype=torch.float64)
        terms = [gradient.tau * torch.linalg.matrix_power(step, i) for i in range(gradient.k)]
    else:
        k = 1 if isinstance(gradient, OneStep) else gradient.k
        terms = [torch.linalg.matrix_power(jacobian.mT, i) for i in range(k)]
    return sum(terms) @ g


CHOICES = [OneStep(), Neumann(1), Neumann(2), Neumann(7), Phantom(1, 1.0), Phantom(5, 0.5)]


@pytest.mark.parametrize("gradient", CHOICES, ids=repr)
def test_formula_of_a_function(setting, gradient):
    w, x, g = setting
    z0 = torch.zeros_like(x)
    solution = fixed_point(f, z0, w, x, gradient=gradient, stopping=EXACT)
    z = solution.value.detach()
    slope = 1 - torch.tanh(z @ w.mT + x).detach()[0] ** 2
    u = series((slope[:, None] * w).detach(), g, gradient)
    gw, gx = torch.autograd.grad(solution.value[0] @ g, (w, x))
    assert torch.allclose(gx[0], slope * u, atol=1e-12)
    assert torch.allclose(gw, (slope * u)[:, None] * z, atol=1e-12)
    plain = fixed_point(f, z0, w, x, stopping=EXACT)
    assert torch.equal(solution.value, plain.value)


@pytest.mark.parametrize("gradient", CHOICES, ids=repr)
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: a.name)
def test_formula_of_an_affine_cell_in_canonical_form(gradient, activation):
    torch.manual_seed(0)
    cell = NemonCell(3, n, activation=activation, dtype=torch.float64)
    layer = Equilibrium(cell, gradient=gradient, stopping=EXACT)
    x = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(n, dtype=torch.float64)
    map_ = cell.bind(x).canonical()
    z = layer(x)
    jacobian = torch.autograd.functional.jacobian(lambda s: map_(s[None])[0], z[0].detach())
    u = series(jacobian, g, gradient)
    (ours,) = torch.autograd.grad(z[0] @ g, x)
    (theirs,) = torch.autograd.grad(map_(z.detach())[0] @ u, x)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_unrolled_is_the_plain_iteration_from_the_start(setting):
    w, x, g = setting
    z = torch.zeros_like(x)
    for _ in range(4):
        z = f(z, w, x)
    solution = fixed_point(f, torch.zeros_like(x), w, x, gradient=Unrolled(4))
    assert torch.equal(solution.value, z)
    ours = torch.autograd.grad(solution.value[0] @ g, (w, x))
    theirs = torch.autograd.grad(z[0] @ g, (w, x))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert solution.status.tolist() == [Status.BUDGET]
    assert solution.evaluations.tolist() == [5]
    gap = (f(z, w, x) - z).detach().square().mean().sqrt()
    assert torch.allclose(solution.residual, gap)


def test_unrolled_states_its_status():
    x = torch.tensor([[0.1, 0.2], [float("nan"), 0.0]], dtype=torch.float64)
    done = fixed_point(lambda z, x: 0.1 * z + x, torch.zeros_like(x), x, gradient=Unrolled(40))
    assert done.status.tolist() == [Status.CONVERGED, Status.NONFINITE]


@pytest.mark.parametrize("gradient", [Neumann(60), Phantom(120, 0.7), Unrolled(120)], ids=repr)
def test_many_terms_give_the_exact_gradient(setting, gradient):
    w, x, _ = setting
    with torch.no_grad():
        w.mul_(0.5)
    assert gradcheck(
        lambda w, x: (
            fixed_point(f, torch.zeros_like(x), w, x, gradient=gradient, stopping=EXACT).value
        ),
        (w, x),
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "gradient", [OneStep(), Neumann(3), Phantom(3, 0.5), Unrolled(9)], ids=repr
)
def test_captured_tensors_get_the_same_gradient(setting, gradient):
    w, x, g = setting
    z0 = torch.zeros_like(x)
    listed = fixed_point(f, z0, w, x, gradient=gradient, stopping=EXACT).value[0] @ g
    closed = fixed_point(lambda z: f(z, w, x), z0, gradient=gradient, stopping=EXACT).value[0] @ g
    theirs = torch.autograd.grad(listed, (w, x))
    ours = torch.autograd.grad(closed, (w, x))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(3), Phantom(3), Unrolled(9)], ids=repr)
def test_no_grad_leaves_no_tape(setting, gradient):
    w, x, _ = setting
    with torch.no_grad():
        z = fixed_point(f, torch.zeros_like(x), w, x, gradient=gradient).value
    assert not z.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neumann(0), "`k` must be at least 1, got 0"),
        (lambda: Phantom(0), "`k` must be at least 1"),
        (lambda: Phantom(3, 0.0), r"`tau` must lie in \(0, 1\], got 0.0"),
        (lambda: Unrolled(0), "`steps` must be at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
