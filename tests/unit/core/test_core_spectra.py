"""Perron weights, rounding slack, gains of resolved activations and a-posteriori error bounds."""

import pytest
import torch

import wellposed as wp
from wellposed.core.activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from wellposed.core.affine import Affine
from wellposed.core.maps import AffineMap
from wellposed.core.norms import MaxNorm
from wellposed.core.operators import Convolution, Dense
from wellposed.core.sets import Box
from wellposed.core.spectra import outward, perron, resolved_gain, rounding, weighted_factor
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.solvers.base import solve


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_perron_is_the_spectral_radius_and_no_weights_do_better(seed):
    A = Dense(_random(8, 8, seed=seed))
    found = perron(A)
    radius = float(torch.linalg.eigvals(A.matrix.abs()).abs().max())
    assert radius <= found.factor <= radius * (1 + 1e-4)
    for trial in range(20):
        eta = _random(8, seed=100 + trial).abs() + 1e-3
        assert weighted_factor(A, eta) >= radius * (1 - 1e-12)
    measured = MaxNorm(found.eta).operator_norm(A.matrix)
    assert float(measured) <= found.factor


def test_perron_of_a_convolution_with_circular_padding_is_that_of_channel_sums():
    kernel = _random(3, 3, 3, 3)
    found = perron(Convolution(kernel, (5, 5), "circular"))
    radius = float(torch.linalg.eigvals(kernel.abs().sum((2, 3))).abs().max())
    assert radius <= found.factor <= radius * (1 + 1e-4)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0]])])
def test_perron_of_zero_and_periodic_matrices(matrix):
    found = perron(Dense(matrix.double()))
    assert found.factor == pytest.approx(float(matrix.max()), abs=1e-5)
    assert bool((found.eta > 0).all())


def test_outward_covers_sums_in_any_order():
    x = _random(10_000).abs()
    exact = float(torch.tensor(sorted(x.tolist()), dtype=torch.float64).sum())
    for order in (x, x.flip(0), x.to(torch.float64).sort().values):
        assert float(outward(order.sum(), 10_000)) >= exact
    assert float(outward(torch.zeros(()).double(), 3)) > 0
    with pytest.raises(NotCertifiableError, match="rounding"):
        rounding(10**17)


@pytest.mark.parametrize("phi", [ReLU(), LeakyReLU(0.2), Tanh(), Sigmoid(), Softplus(), ELU(),
                                 GELU(), SiLU()])  # fmt: skip
def test_gain_bounds_every_slope_of_the_resolved_activation(phi):
    a = torch.linspace(-4, 0.85, 30, dtype=torch.float64)
    gain = resolved_gain(phi, a)
    from wellposed.core.activations import resolvent

    s = torch.linspace(-12, 12, 1501, dtype=torch.float64)[:, None]
    z = resolvent(phi, a, s)
    quotient = ((z[1:] - z[:-1]) / (s[1:] - s[:-1])).abs().amax(0)
    assert bool((quotient <= gain * (1 + 1e-9)).all())
    assert bool((quotient >= 0.9 * gain).all())  # attained up to the grid
    with pytest.raises(NotCertifiableError, match="feeds back"):
        resolved_gain(phi, torch.tensor([1.0 / phi.slopes[1]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("phi", [ReLU(), LeakyReLU(0.1), Tanh(), Sigmoid(), Softplus(), ELU()])
@pytest.mark.parametrize("evaluations", [1, 2, 5, 200])
def test_error_bound_holds_however_early_the_solve_stops(dtype, phi, evaluations):
    torch.manual_seed(evaluations)
    cell = wp.NemonCell(5, 12, margin=0.5, activation=phi, dtype=dtype)
    x = torch.randn(9, 5, dtype=dtype) * 3
    map_ = cell.bind(x).detach()
    found = solve(map_, map_.start(), wp.Jacobi(), wp.Stopping(max_evaluations=evaluations))
    exact_map = found.map_.with_tensors(tuple(t.double() for t in found.map_.tensors))
    exact = solve(exact_map, found.value.double(), wp.Picard(), wp.Stopping(1e-15, 0.0, 3000)).value
    true = (found.value.double() - exact).abs().amax(1)
    assert bool((true <= found.error_bound + 1e-15).all())
    if evaluations == 200:
        assert float(found.error_bound.max()) < (1e-2 if dtype == torch.float32 else 1e-7)


def test_error_bound_of_an_iterate_that_is_not_finite_is_infinite():
    map_ = AffineMap(Dense(torch.eye(2).double() * 0.5), torch.ones(2, 2).double(), ReLU())
    z = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]], dtype=torch.float64)
    bound = map_.error_bound(z)
    assert bool(torch.isfinite(bound[0]))
    assert float(bound[1]) == float("inf")


def test_no_error_bound_without_contraction():
    swap = torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    map_ = AffineMap(Dense(swap), torch.ones(1, 2, dtype=torch.float64), ReLU())
    assert map_.error_bound(torch.ones(1, 2).double()) is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("phi", [ReLU(), LeakyReLU(0.3), Tanh(), Softplus()])
def test_canonical_form_has_the_same_fixed_points(seed, phi):
    torch.manual_seed(seed)
    cell = wp.NemonCell(3, 7, margin=0.5, activation=phi, dtype=torch.float64)
    affine, x = cell.explicit().double(), torch.randn(4, 3, dtype=torch.float64)
    plain = solve(affine.bind(x), torch.zeros(4, 7).double(), wp.Averaged(),
                  wp.Stopping(1e-14, 1e-15, 20_000)).value  # fmt: skip
    canonical = solve(affine.canonical().bind(x), torch.zeros(4, 7).double(), wp.Picard(),
                      wp.Stopping(1e-14, 1e-15, 20_000)).value  # fmt: skip
    assert torch.allclose(plain, canonical, atol=1e-11)
    assert float(affine.canonical().A.diagonal().abs().max()) == 0
    assert affine.contraction().factor < 1
    assert affine.canonical().canonical() is not None


def test_affine_checks_shapes():
    with pytest.raises(ShapeError, match="must be equal"):
        Affine(Dense(torch.eye(2)), Dense(torch.ones(3, 2)), torch.zeros(2), ReLU())


def test_box():
    box = Box.around(torch.tensor([0.0, 1.0]), 0.1)
    assert bool((box.lower <= torch.tensor([-0.1, 0.9], dtype=torch.float64)).all())
    assert bool(
        (box.centre - box.radius <= box.lower).all() & (box.upper <= box.centre + box.radius).all()
    )
    clipped = box.clip(0.0, 1.0)
    assert float(clipped.lower[0]) == 0
    assert float(clipped.upper[1]) == 1
    assert box.unsqueeze().shape == (1, 2)
    assert box.unsqueeze().contains(torch.tensor([[0.0, 1.0], [0.2, 1.0]])).tolist() == [
        True,
        False,
    ]
    with pytest.raises(ShapeError, match="lower <= upper"):
        Box(torch.ones(2), torch.zeros(2))
    with pytest.raises(ShapeError, match="finite"):
        Box(torch.tensor([float("nan")]), torch.zeros(1))
    with pytest.raises(ShapeError, match="one shape"):
        Box(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ShapeError):
        Box(torch.zeros(1), torch.ones(1)).clip(2.0, 3.0)
