"""Splitting and Newton: right steps, refused steps, safeguards."""

import pytest
import torch

from wellposed.core.activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, Softplus, Tanh
from wellposed.core.fourier import torus
from wellposed.core.maps import AffineMap, FunctionMap
from wellposed.core.operators import Convolution, Dense
from wellposed.errors import ConfigError
from wellposed.solvers import newton
from wellposed.solvers.base import Status, Stopping, solve
from wellposed.solvers.newton import Newton, solve_active
from wellposed.solvers.picard import Jacobi
from wellposed.solvers.splitting import (
    DouglasRachford,
    ForwardBackward,
    PeacemanRachford,
    shift_diagonal,
)
from wellposed.testing.solvers import contractive_map

TIGHT = Stopping(1e-13, 1e-14, 5000)


@pytest.mark.parametrize("phi", [ReLU(), LeakyReLU(0.2), Tanh(), Sigmoid(), Softplus(), ELU()])
@pytest.mark.parametrize(
    "solver",
    [
        ForwardBackward(),
        ForwardBackward(alpha=0.05),
        ForwardBackward(per_neuron=True),
        PeacemanRachford(),
        PeacemanRachford(alpha=0.1),
        DouglasRachford(),
    ],
    ids=repr,
)
def test_all_reach_the_fixed_point_of_jacobi(phi, solver):
    base = contractive_map(4, 7)
    map_ = AffineMap(base.operator, base.offset, phi)
    exact = solve(map_, map_.start(), Jacobi(), TIGHT).value
    found = solve(map_, map_.start(), solver, Stopping(1e-11, 0.0, 5000))
    assert found.converged.all()
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [ForwardBackward, PeacemanRachford, DouglasRachford])
def test_steps_above_the_certified_bound_are_refused(kind):
    map_ = contractive_map()
    bound = 1 / (1 - float(map_.operator.diagonal().min()))
    solve(map_, map_.start(), kind(alpha=bound), Stopping(1e-3))
    with pytest.raises(ConfigError, match="exceeds"):
        solve(map_, map_.start(), kind(alpha=1.5 * bound))
    solve(map_, map_.start(), kind(alpha=1.5 * bound, certified=False), Stopping(1e-3, None, 5))
    for alpha in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="alpha"):
            kind(alpha=alpha)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 3.0])
def test_peaceman_rachford_on_monotone_non_normal_operators(alpha):
    # strongly monotone in the 2-norm: any step converges there, whatever the max norm says
    make = torch.Generator().manual_seed(0)
    S = torch.randn(10, 10, generator=make, dtype=torch.float64)
    A = torch.eye(10, dtype=torch.float64) * 0.5 - S @ S.mT / 10 + (S - S.mT)
    map_ = AffineMap(Dense(A), torch.ones(3, 10, dtype=torch.float64), ReLU())
    found = solve(
        map_, map_.start(), PeacemanRachford(alpha, certified=False), Stopping(1e-10, 0.0, 3000)
    )
    assert found.converged.all()


def test_what_splitting_cannot_do_is_refused_by_name():
    base = contractive_map()
    with pytest.raises(ConfigError, match="gelu"):
        solve(AffineMap(base.operator, base.offset, GELU()), base.offset, ForwardBackward())
    free = FunctionMap(lambda z: 0.5 * z)
    for solver in (ForwardBackward(), PeacemanRachford(), DouglasRachford(), Newton()):
        with pytest.raises(ConfigError, match="FunctionMap"):
            solve(free, torch.zeros(2, 3), solver)
    kernel = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    conv = AffineMap(Convolution(kernel, (4, 4)), torch.zeros(2, 2, 4, 4).double(), ReLU())
    with pytest.raises(ConfigError, match="Convolution"):
        solve(conv, conv.start(), Newton())
    strided = Convolution(kernel, (4, 4), stride=2)
    with pytest.raises(ConfigError, match="stride 2"):
        torus(strided)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_shifted_diagonals(padding):
    make = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, 2, 3, 3, generator=make, dtype=torch.float64)
    operator = Convolution(kernel, (4, 5), padding)
    value = torch.tensor([1.0, -2.0], dtype=torch.float64)[:, None, None]
    shifted = shift_diagonal(operator, value).materialise()
    expected = operator.materialise() + torch.diag(value.expand(2, 4, 5).flatten())
    torch.testing.assert_close(shifted, expected)


def test_newton_ends_after_a_few_steps_at_the_jacobi_solution():
    map_ = contractive_map(40, 30)
    exact = solve(map_, map_.start(), Jacobi(), Stopping(1e-15, 1e-15, 5000)).value
    found = solve(map_, map_.start(), Newton(), Stopping(1e-14, 1e-15, 20))
    assert found.converged.all()
    assert int(found.evaluations.max()) <= 8
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-13)


def test_one_factorisation_serves_all_samples_with_one_active_set(monkeypatch):
    calls = []
    genuine = torch.linalg.solve_ex
    monkeypatch.setattr(
        torch.linalg, "solve_ex", lambda *a, **k: (calls.append(1), genuine(*a, **k))[1]
    )
    map_ = contractive_map(6, 8).canonical()
    active = torch.zeros(6, 8, dtype=torch.bool)
    active[:3, :4], active[3:, 2:] = True, True
    found = solve_active(map_, active)
    assert len(calls) == 2
    gap = (map_.operator.apply(found, map_.offset) - found)[active]
    assert gap.abs().max() < 1e-12
    assert found[~active].abs().max() == 0


def test_a_cycle_of_newton_falls_back_to_jacobi():
    # I - A is a P-matrix on which active sets run in a circle for ever
    A = torch.tensor([[0, 0, -1.4], [-1.4, 0, 0], [0, -1.4, 0]], dtype=torch.float64)
    q = torch.ones(1, 3, dtype=torch.float64)
    map_ = AffineMap(Dense(A), q, ReLU(), canonical_form=True)
    for k in range(1, 4):
        minors = [
            float(torch.det((torch.eye(3, dtype=torch.float64) - A)[s][:, s]))
            for s in torch.combinations(torch.arange(3), k)
        ]
        assert min(minors) > 0
    start = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    visited, z = [], start
    for _ in range(12):
        active = map_(z) > 0
        visited.append(tuple(active[0].tolist()))
        z = solve_active(map_, active)
    undecided = len(set(visited[-6:])) > 1
    assert undecided, "the example does not cycle"
    # Jacobi does not contract here either: what matters is that steps are refused and it is said
    iterates = []
    found = solve(
        map_, start, Newton(), Stopping(1e-12, 0.0, 40), watch=lambda z, _r: iterates.append(z)
    )
    assert found.status.tolist() == [Status.BUDGET]
    plain = [any(torch.equal(map_(y), z) for y in iterates[:k]) for k, z in enumerate(iterates)]
    assert sum(plain) >= 5


@pytest.mark.parametrize("nonsense", [0.0, 1e6, float("nan")])
def test_newton_with_useless_candidates_is_jacobi_at_two_evaluations_a_step(monkeypatch, nonsense):
    map_ = contractive_map(6, 8)
    exact = solve(map_, map_.start(), Jacobi(), TIGHT)
    monkeypatch.setattr(
        newton, "solve_active", lambda _map, active: torch.full(active.shape, nonsense).double()
    )
    found = solve(map_, map_.start(), Newton(), TIGHT)
    assert found.converged.all()
    torch.testing.assert_close(found.value, exact.value, rtol=0, atol=1e-11)
    assert (found.evaluations <= 2 * exact.evaluations + 6).all()
