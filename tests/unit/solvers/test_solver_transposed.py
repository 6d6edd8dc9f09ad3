"""The adjoint by the transposed splitting: exact, division-safe, one inverse for both solves."""

import pytest
import torch

from wellposed.core import inverse as inverse_module
from wellposed.core.activations import ReLU, Tanh
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution, Dense
from wellposed.gradients.base import Problem
from wellposed.gradients.firstorder import pull_back
from wellposed.gradients.implicit import Implicit
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.krylov import GMRES
from wellposed.solvers.splitting import DouglasRachford, PeacemanRachford
from wellposed.solvers.transposed import Transposed
from wellposed.testing import check_gradient, check_solver

TIGHT = Stopping(1e-12, 0.0, 5000)


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def monotone(n=12, samples=5, activation=None, margin=0.1):
    F, S = rand(n, n) / n**0.5, rand(n, n, seed=1) / n**0.5
    A = (1 - margin) * torch.eye(n, dtype=torch.float64) - F.mT @ F + S - S.mT
    return AffineMap(Dense(A), rand(samples, n, seed=2), activation or ReLU())


def convolution():
    kernel = 0.05 * rand(3, 3, 3, 3)
    return AffineMap(Convolution(kernel, (5, 4)), rand(4, 3, 5, 4, seed=1), ReLU())


@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: a.name)
@pytest.mark.parametrize("splitting", [PeacemanRachford(), DouglasRachford()], ids=str)
def test_it_solves_the_adjoint_equation(activation, splitting):
    map_ = monotone(activation=activation)
    z = solve(map_, map_.start(), PeacemanRachford(), TIGHT).require().value
    g = rand(*z.shape, seed=3)
    found, (dA, dq) = pull_back(
        map_, z, g, (True, True), solver=Transposed(splitting), stopping=TIGHT
    )
    assert bool(found.converged.all())
    d, eye = map_.slopes(z), torch.eye(z.shape[1], dtype=z.dtype)
    flow = torch.stack(
        [torch.linalg.solve(eye - (di[:, None] * map_.operator.matrix.mT), di * gi)
         for di, gi in zip(d, g, strict=True)]
    )  # fmt: skip
    assert torch.allclose(dq, flow, atol=1e-9)
    assert torch.allclose(dA, flow.mT @ z, atol=1e-8)


def test_flat_pieces_and_slopes_of_all_sizes_divide_by_nothing():
    map_ = monotone(activation=Tanh())
    # saturated neurons have slopes of 1e-80 and of exactly zero
    map_ = map_.with_tensors((map_.operator.weight, 200 * map_.offset))
    z = solve(map_, map_.start(), PeacemanRachford(), TIGHT).value
    g = rand(*z.shape, seed=3)
    _, (dA, dq) = pull_back(map_, z, g, (True, True), solver=Transposed(), stopping=TIGHT)
    assert bool(torch.isfinite(dA).all() & torch.isfinite(dq).all())


def test_the_inverse_is_computed_once_for_both_solves(monkeypatch):
    calls = []
    real = inverse_module.inverse_of.dispatch(Convolution)

    def counted(operator, steps):
        calls.append(operator)
        return real(operator, steps)

    from wellposed.solvers import splitting

    monkeypatch.setattr(splitting, "inverse_of", counted)
    map_ = convolution()
    weight = map_.operator.weight.requires_grad_()
    problem = Problem(
        map_.with_tensors((weight * 1.0, map_.offset)), map_.start(), PeacemanRachford(), TIGHT
    )
    found = Implicit().attach(problem)
    found.value.square().sum().backward()
    assert found.adjoint.converged
    assert len(calls) == 1
    assert weight.grad is not None


def test_it_agrees_with_krylov_on_convolutions():
    map_ = convolution()
    z = solve(map_, map_.start(), PeacemanRachford(), TIGHT).value
    g = rand(*z.shape, seed=3)
    ours, theirs = (
        pull_back(map_, z, g, (True, True), solver=s, stopping=TIGHT)[1]
        for s in (Transposed(), GMRES())
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_general_cells_are_handed_to_a_krylov_method():
    check_gradient(Implicit(adjoint=Transposed()))


def test_second_derivatives_are_those_of_the_dense_solution():
    # all neurons active: z = (I - A)^-1 q, and the Hessian of |z|^2 is 2 R^T R
    map_ = monotone(4, 1, margin=0.5)
    A, stopping = map_.operator.weight, Stopping(1e-11, 0.0, 2000)
    q = (torch.eye(4, dtype=A.dtype) - A) @ torch.ones(4, dtype=A.dtype)

    def value(q):
        problem = Problem(AffineMap(Dense(A), q, ReLU()), q.detach(), PeacemanRachford(), stopping)
        return Implicit().attach(problem).value

    q = q[None].requires_grad_()
    (slope,) = torch.autograd.grad(value(q).square().sum(), q, create_graph=True)
    v = rand(1, 4, seed=7)
    (second,) = torch.autograd.grad((slope * v).sum(), q)
    R = torch.linalg.inv(torch.eye(4, dtype=A.dtype) - A)
    assert torch.allclose(slope, 2 * torch.ones(1, 4, dtype=A.dtype) @ R, atol=1e-8)
    assert torch.allclose(second, 2 * v @ R.mT @ R, atol=1e-7)


@pytest.mark.parametrize("solver", [PeacemanRachford(), DouglasRachford()], ids=str)
def test_splittings_keep_the_contract_on_convolutions(solver):
    check_solver(solver, maps=[convolution(), monotone(margin=0.5)])
