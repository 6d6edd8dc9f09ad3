"""Anderson, Broyden and Auto: never much worse than plain iteration, often far better."""

import pytest
import torch

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap, FunctionMap
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Stopping, rms, solve
from wellposed.solvers.broyden import Broyden
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.testing.solvers import contractive_map

N = 100


def matrix(kind, rho):
    make = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=make, dtype=torch.float64))
    if kind in ("symmetric", "relu"):
        return Q @ torch.diag(torch.linspace(-rho, rho, N, dtype=torch.float64)) @ Q.mT
    if kind == "orthogonal":
        return rho * Q
    shift = torch.diag(torch.ones(N - 1, dtype=torch.float64), 1)
    return Q @ (rho * torch.eye(N, dtype=torch.float64) + 0.5 * (1 - rho) * shift) @ Q.mT


def problem(kind, rho, dtype, samples=4):
    make = torch.Generator().manual_seed(1)
    M = matrix(kind, rho).to(dtype)
    q = torch.randn(samples, N, generator=make, dtype=torch.float64).to(dtype)
    if kind == "relu":
        return AffineMap(Dense(M), q, ReLU(), canonical_form=True), q
    return FunctionMap(lambda z, q, M: z @ M.mT + q, (q, M), (True, False)), q


def evaluations(map_, q, solver, tolerance, budget):
    found = solve(map_, torch.zeros_like(q), solver, Stopping(tolerance, 0.0, budget))
    return int(found.evaluations.max()), bool(found.converged.all())


GRID = [
    (kind, rho, dtype, tolerance)
    for kind in ("symmetric", "orthogonal", "jordan", "relu")
    for rho in (0.5, 0.9, 0.99, 0.999)
    for dtype, tolerances in (
        (torch.float32, (1e-3, 1e-6)),
        (torch.float64, (1e-3, 1e-6, 1e-9)),
    )
    for tolerance in tolerances
]


@pytest.mark.parametrize(("kind", "rho", "dtype", "tolerance"), GRID)
def test_anderson_needs_at_most_a_fifth_more_than_picard(kind, rho, dtype, tolerance):
    map_, q = problem(kind, rho, dtype)
    cap = 1200
    plain, reached = evaluations(map_, q, Picard(), tolerance, cap)
    fast, done = evaluations(map_, q, Anderson(), tolerance, cap)
    assert done or not reached
    assert fast <= 1.2 * plain


@pytest.mark.parametrize(
    ("kind", "rho", "targets"),
    [
        ("symmetric", 0.9, (28, 57, 88)),
        ("symmetric", 0.99, (183, 377, 570)),
        ("relu", 0.9, (12, 20, 29)),
        ("relu", 0.99, (14, 22, 34)),
    ],
)
def test_anderson_reaches_the_known_counts(kind, rho, targets):
    map_, q = problem(kind, rho, torch.float64, samples=8)
    for tolerance, target in zip((1e-3, 1e-6, 1e-9), targets, strict=True):
        count, done = evaluations(map_, q, Anderson(), tolerance, 2000)
        assert done
        assert count <= target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["symmetric", "relu", "orthogonal"])
def test_anderson_does_not_stall_above_the_rounding_level(kind, dtype):
    map_, q = problem(kind, 0.9, dtype)
    tolerance = 50 * torch.finfo(dtype).eps
    assert evaluations(map_, q, Anderson(), tolerance, 2000)[1]


@pytest.mark.parametrize("solver", [Anderson(), Anderson(safeguard=False), Broyden(), Auto()])
def test_degenerate_histories_make_no_nan(solver):
    # constant map (exact at step 1), identical iterates, a rank-one history, zero right-hand side
    q = torch.ones(3, 5, dtype=torch.float64)
    constant = FunctionMap(lambda z, q: q, (q,), (True,))
    found = solve(constant, 0 * q, solver, Stopping(1e-12, 0.0, 50))
    assert found.evaluations.tolist() == [2, 2, 2]
    assert torch.equal(found.value, q)
    scalar = FunctionMap(lambda z, q: 0.5 * z + q, (q,), (True,))
    found = solve(scalar, 0 * q, solver, Stopping(1e-12, 0.0, 100))
    torch.testing.assert_close(found.value, 2 * q)
    # tolerance 0: the iteration goes on although nothing changes any more
    found = solve(scalar, 2 * q, solver, Stopping(0.0, 0.0, 50))
    assert torch.isfinite(found.value).all()
    never = solve(scalar, 0 * q, solver, Stopping(1e-300, 0.0, 80))
    assert torch.isfinite(never.value).all()
    torch.testing.assert_close(never.value, 2 * q)


def test_the_safeguard_survives_transient_growth():
    # residuals of plain iteration grow a hundredfold before they fall
    n = 30
    M = 0.5 * torch.eye(n, dtype=torch.float64)
    M = M + 0.75 * torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    q = torch.ones(4, n, dtype=torch.float64)
    map_ = FunctionMap(lambda z, q: z @ M.mT + q, (q,), (True,))
    plain, reached = evaluations(map_, q, Picard(), 1e-9, 5000)
    assert reached
    for solver in (Anderson(), Broyden(), Auto()):
        count, done = evaluations(map_, q, solver, 1e-9, 5000)
        assert done
        assert count <= 1.5 * plain + 50


def test_acceleration_solves_where_plain_iteration_diverges():
    make = torch.Generator().manual_seed(0)
    eigenvalues = torch.linspace(-1.3, 0.5, N, dtype=torch.float64)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=make, dtype=torch.float64))
    M = Q @ torch.diag(eigenvalues) @ Q.mT
    q = torch.randn(3, N, generator=make, dtype=torch.float64)
    map_ = FunctionMap(lambda z, q: z @ M.mT + q, (q,), (True,))
    exact = torch.linalg.solve(torch.eye(N, dtype=torch.float64) - M, q.mT).mT
    assert not evaluations(map_, q, Picard(), 1e-9, 500)[1]
    for solver in (Anderson(), Broyden()):
        found = solve(map_, torch.zeros_like(q), solver, Stopping(1e-10, 0.0, 500))
        assert found.converged.all()
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-7)


def metzler(dtype, samples=24, n=80, mu=0.9):
    """Nonnegative off-diagonal, slow in the direction of its Perron vector alone."""
    make = torch.Generator().manual_seed(0)
    T = torch.rand(n, n, generator=make, dtype=torch.float64) / n**0.5
    A = mu * torch.eye(n, dtype=torch.float64) + T - torch.diag(T.sum(1))
    q = torch.randn(samples, n, generator=make, dtype=torch.float64)
    return AffineMap(Dense(A.to(dtype)), q.to(dtype), ReLU())


@pytest.mark.parametrize(
    ("dtype", "tolerance", "gain"), [(torch.float32, 1e-3, 2), (torch.float64, 1e-9, 8)]
)
def test_auto_saves_most_evaluations_of_slow_samples(dtype, tolerance, gain):
    map_ = metzler(dtype)
    stopping = Stopping(tolerance, 0.0, 5000)
    plain = solve(map_, map_.start(), Jacobi(), stopping)
    fast = solve(map_, map_.start(), Auto(), stopping)
    assert plain.converged.all()
    assert fast.converged.all()
    assert int(fast.evaluations.sum()) * gain <= int(plain.evaluations.sum())


def test_auto_is_bitwise_jacobi_for_fast_samples_next_to_slow_ones():
    easy = contractive_map(8, 10, seed=3)
    hard = metzler(torch.float64, samples=8, n=10, mu=0.99)
    A = torch.block_diag(easy.operator.weight, hard.operator.weight)
    zero = torch.full((8, 10), -1.0, dtype=torch.float64)
    q = torch.cat(
        [torch.cat([easy.offset, zero], 1), torch.cat([easy.offset, hard.offset.abs()], 1)]
    )
    map_ = AffineMap(Dense(A), q, ReLU())
    stopping = Stopping(1e-8, 0.0, 5000)
    plain = solve(map_, map_.start(), Jacobi(), stopping)
    fast = solve(map_, map_.start(), Auto(), stopping)
    quick = plain.evaluations <= 24
    assert int(quick[:8].sum()) >= 6
    assert torch.equal(plain.value[quick], fast.value[quick])
    assert torch.equal(plain.evaluations[quick], fast.evaluations[quick])
    assert int(fast.evaluations.max()) < int(plain.evaluations.max()) / 5
    assert fast.converged.all()


def test_results_are_fixed_points_of_the_given_map():
    map_ = contractive_map(9, 20)
    for solver in (Anderson(), Broyden(), Auto()):
        found = solve(map_, map_.start(), solver, Stopping(1e-12, 0.0, 500))
        assert rms(map_(found.value) - found.value).max() < 1e-10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Anderson(window=0), "window.*0"),
        (lambda: Anderson(ridge=-1.0), "ridge.*-1"),
        (lambda: Broyden(memory=0), "memory.*0"),
        (lambda: Auto(rate=1.0), "rate.*1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
