"""Linear solvers: true residuals, known counts, own status, samples on their own."""

import pytest
import torch
from torch.func import vmap

from wellposed.core.linear_maps import LinearMap
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.base import Status, Stopping, rms
from wellposed.solvers.bicgstab import BiCGSTAB
from wellposed.solvers.krylov import GMRES, Iterate, Stationary

N = 100
SOLVERS = [Stationary(), GMRES(), BiCGSTAB(), Iterate(), Iterate(Anderson())]


def equation(kind, rho, samples=6, dtype=torch.float64):
    make = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=make, dtype=torch.float64))
    if kind == "symmetric":
        M = Q @ torch.diag(torch.linspace(-rho, rho, N, dtype=torch.float64)) @ Q.mT
    elif kind == "orthogonal":
        M = rho * Q
    else:
        M = torch.randn(N, N, generator=make, dtype=torch.float64)
        M = rho * M / torch.linalg.eigvals(M).abs().max()
    g = torch.randn(samples, N, generator=make, dtype=torch.float64)
    map_ = LinearMap(lambda W: lambda u: u @ W.mT, g.to(dtype), (M.to(dtype),), (False,))
    return map_, torch.linalg.solve(torch.eye(N, dtype=torch.float64) - M, g.mT).mT


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("kind", ["symmetric", "orthogonal", "random"])
@pytest.mark.parametrize("rho", [0.3, 0.9, 0.999])
def test_converged_means_a_true_small_residual_and_the_rest_is_flagged(solver, kind, rho):
    map_, exact = equation(kind, rho)
    found = solver.solve(map_, Stopping(1e-11, 0.0, 400))
    residual = rms(map_(found.value) - found.value)
    torch.testing.assert_close(found.residual, residual, rtol=1e-6, atol=1e-12)
    done = found.converged
    assert (residual[done] <= 1.01e-11 * rms(map_(found.value))[done]).all()
    assert (found.status[~done] == Status.BUDGET).all()
    error = torch.linalg.vector_norm(found.value - exact, dim=1)
    size = torch.linalg.vector_norm(exact, dim=1)
    assert (error[done] <= 1e-8 * size[done]).all()
    if isinstance(solver, Stationary | GMRES | BiCGSTAB):
        assert done.all()


@pytest.mark.parametrize(
    ("solver", "counts"),
    [(Stationary(), (40, 62, 68)), (GMRES(), (38, 58, 64)), (BiCGSTAB(), (64, 104, 124))],
    ids=repr,
)
def test_products_to_1e_8(solver, counts):
    for rho, count in zip((0.9, 0.99, 0.999), counts, strict=True):
        map_, _ = equation("symmetric", rho)
        found = solver.solve(map_, Stopping(1e-8, 0.0, 1000))
        assert found.converged.all()
        assert int(found.evaluations.max()) <= count


def test_fast_equations_are_bitwise_plain_iteration():
    map_, _ = equation("random", 0.3)
    stopping = Stopping(1e-8, 0.0, 100)
    fast, plain = Stationary().solve(map_, stopping), Iterate().solve(map_, stopping)
    assert torch.equal(fast.value, plain.value)
    assert torch.equal(fast.evaluations, plain.evaluations)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_budgets_empty_batches_and_nan(solver):
    map_, _ = equation("symmetric", 0.99)
    short = solver.solve(map_, Stopping(1e-8, 0.0, 7))
    assert (short.status == Status.BUDGET).all()
    assert int(short.evaluations.max()) <= 7
    none = solver.solve(map_.select(torch.zeros(0, dtype=torch.long)), Stopping())
    assert none.value.shape == (0, N)
    rhs = map_.rhs.clone()
    whole = solver.solve(map_, Stopping(1e-8, 0.0, 2000))
    rhs[1, 3] = float("nan")
    bad = solver.solve(map_.with_tensors((rhs, *map_.tensors[1:])), Stopping(1e-8, 0.0, 2000))
    assert int(bad.status[1]) == Status.NONFINITE
    others = [0, 2, 3, 4, 5]
    assert torch.equal(bad.value[others], whole.value[others])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_zero_right_hand_side(solver):
    map_, _ = equation("symmetric", 0.9)
    zero = map_.with_tensors((torch.zeros_like(map_.rhs), *map_.tensors[1:]))
    found = solver.solve(zero, Stopping(1e-8, 0.0, 100))
    assert found.converged.all()
    assert torch.equal(found.value, torch.zeros_like(map_.rhs))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("which", ["rhs", "matrix"])
def test_vmap_gives_what_a_loop_gives(solver, which):
    map_, _ = equation("random", 0.8, samples=3)
    rhs, M = map_.tensors
    factors = torch.tensor([0.4, 1.0], dtype=torch.float64)

    def run(factor):
        tensors = (factor * rhs, M) if which == "rhs" else (rhs, factor * M)
        inner = LinearMap(lambda W: lambda u: u @ W.mT, tensors[0], tensors[1:], None)
        return solver.solve(inner, Stopping(1e-10, 0.0, 500)).value

    torch.testing.assert_close(
        vmap(run)(factors), torch.stack([run(f) for f in factors]), rtol=0, atol=1e-7
    )


def test_images_as_states():
    make = torch.Generator().manual_seed(0)
    g = torch.randn(3, 2, 4, 4, generator=make, dtype=torch.float64)
    map_ = LinearMap(lambda: lambda u: 0.95 * u.roll(1, 3), g, (), ())
    for solver in SOLVERS:
        found = solver.solve(map_, Stopping(1e-10, 0.0, 1000))
        assert found.value.shape == g.shape
        assert found.converged.all()
        torch.testing.assert_close(map_(found.value), found.value, rtol=0, atol=1e-7)
