"""Implicit gradients of stiff equations against a dense solve: exact to 1e-8, or flagged."""

import warnings

import pytest
import torch

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.errors import NonConvergenceWarning
from wellposed.gradients.implicit import Implicit
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Stopping

n = 24


def matrix(kind, rho, *, hidden):
    generator = torch.Generator().manual_seed(5)
    draw = torch.randn(n, n, dtype=torch.float64, generator=generator)
    if kind == "symmetric":
        basis = torch.linalg.qr(draw).Q
        values = torch.linspace(-rho, rho, n, dtype=torch.float64)
        return basis @ torch.diag(values) @ basis.mT
    if kind == "orthogonal":
        return rho * torch.linalg.qr(draw).Q
    # Jordan blocks of two: the inverse grows like (1 - rho)^-2. The basis that hides them may lift
    # the diagonal above 1, where an affine map has no canonical form
    blocks = rho * torch.eye(n, dtype=torch.float64)
    blocks[torch.arange(0, n, 2), torch.arange(1, n, 2)] = 0.3
    basis = torch.linalg.qr(draw).Q if hidden else torch.eye(n, dtype=torch.float64)
    return basis @ blocks @ basis.mT


@pytest.mark.parametrize("kind", ["symmetric", "orthogonal", "non-normal"])
@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("form", ["affine", "function"])
def test_gradient_is_exact_or_flagged(kind, rho, form):
    a = matrix(kind, rho, hidden=form == "function")
    generator = torch.Generator().manual_seed(6)
    # offsets that keep every neuron active: all is then linear algebra
    z = 1 + torch.rand(3, n, dtype=torch.float64, generator=generator)
    g = torch.randn(3, n, dtype=torch.float64, generator=generator)
    q = (z - z @ a.mT).requires_grad_()
    w = a.clone().requires_grad_()
    gradient = Implicit(rtol=1e-13, max_evaluations=600)
    stopping = Stopping(rtol=1e-13, max_evaluations=40000)
    if form == "affine":
        solution = fixed_point(
            AffineMap(Dense(w), q, ReLU()), z, gradient=gradient, stopping=stopping
        )
    else:
        solution = fixed_point(
            lambda z, w, q: torch.relu(z @ w.mT + q),
            z,
            w,
            q,
            gradient=gradient,
            stopping=stopping,
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gw, gq = torch.autograd.grad((solution.value * g).sum(), (w, q))
    exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a.mT, g.mT).mT
    error = (gq - exact).norm() / exact.norm()
    error_w = (gw - exact.mT @ z).norm() / (exact.mT @ z).norm()
    if solution.adjoint.converged:
        assert error <= 1e-8
        assert error_w <= 1e-8
        assert not caught
    else:
        assert any(issubclass(w.category, NonConvergenceWarning) for w in caught)
