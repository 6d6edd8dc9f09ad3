"""Gradients through maps that keep their diagonal: the same as through the canonical form."""

import pytest
import torch

import wellposed as wp
from wellposed.core.activations import ReLU, Tanh
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution, Dense
from wellposed.errors import ConfigError
from wellposed.solvers.base import Stopping
from wellposed.solvers.picard import Jacobi, Picard


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense():
    W = rand(6, 6)
    return Dense, 0.6 * W / torch.linalg.matrix_norm(W, 2), rand(5, 6, seed=1)


def conv():
    K = rand(2, 2, 3, 3)
    return lambda K: Convolution(K, (4, 5)), 0.5 * K / K.abs().sum(), rand(3, 2, 4, 5, seed=1)


def gradients(make, activation, gradient, solver):
    operator, weight, offset = make()
    weight, offset = weight.requires_grad_(), offset.requires_grad_()
    map_ = AffineMap(operator(weight), offset, activation)
    start = torch.zeros_like(offset)
    found = wp.fixed_point(map_, start, solver=solver, gradient=gradient, stopping=Stopping(1e-14))
    g = rand(*offset.shape, seed=2)
    return torch.autograd.grad((found.value * g).sum(), (weight, offset))


@pytest.mark.parametrize("make", [dense, conv])
@pytest.mark.parametrize("activation", [ReLU(), Tanh()])
@pytest.mark.parametrize(
    "gradient", [wp.Implicit(rtol=1e-14), wp.OneStep(), wp.Neumann(3)], ids=lambda g: str(g)[:8]
)
def test_plain_iteration_and_jacobi_have_the_same_gradient(make, activation, gradient):
    one = gradients(make, activation, gradient, Picard())
    other = gradients(make, activation, gradient, Jacobi())
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_diagonal_without_equilibrium_is_refused():
    A = torch.eye(3, dtype=torch.float64).mul_(1.5).requires_grad_()
    map_ = AffineMap(Dense(A), torch.full((2, 3), -1.0, dtype=torch.float64), ReLU())
    start = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match="diagonal of A"):
        wp.fixed_point(map_, start, solver=Picard()).value.sum().backward()
