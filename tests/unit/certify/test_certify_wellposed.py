"""Witnesses of well-posedness: found where they exist, refused where they do not, never wrong."""

from fractions import Fraction

import pytest
import torch

from wellposed.certify.definite import least_eigenvalue, reach, symmetric
from wellposed.certify.wellposed import (
    max_norm_margin,
    monotone_margin,
    monotone_witness,
    wellposedness,
)
from wellposed.core.activations import GELU
from wellposed.core.network import Network
from wellposed.errors import NotCertifiableError, ShapeError


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(W):
    n = len(W)
    return Network.of(W, rand(n, 3, seed=7), torch.zeros(n), rand(2, n, seed=8), torch.zeros(2))


def monotone_matrix(n, margin=0.5, seed=0):
    A, B = rand(n, n, seed=seed), rand(n, n, seed=seed + 1)
    return (1 - margin) * torch.eye(n).double() - A.mT @ A + B - B.mT


# --- eigenvalues


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_eigenvalue_bound_is_below_and_tight(seed, scale):
    S = scale * symmetric(rand(17, 17, seed=seed))
    true = float(torch.linalg.eigvalsh(S)[0])
    found = float(least_eigenvalue(S))
    # eigvalsh itself errs by a few units of the norm
    size = float(S.abs().sum(1).max())
    assert found <= true + 1e-14 * size
    assert found >= true - 1e-10 * (1 + size)


def test_the_eigenvalue_bound_subtracts_what_was_left_out():
    S = torch.diag(torch.tensor([3.0, 2.0, 5.0]).double())
    assert 1.7 - 1e-9 <= float(least_eigenvalue(S, 0.3)) <= 1.7


def test_an_indefinite_matrix_by_one_unit_is_not_called_definite():
    # [[1, 1 + u], [1 + u, 1]] has the eigenvalue -u: less than any rounding of its factor
    S = torch.tensor([[1.0, 1 + 2**-52], [1 + 2**-52, 1.0]], dtype=torch.float64)
    assert float(least_eigenvalue(S)) < 0
    # singular: zero is not positive
    assert float(least_eigenvalue(torch.ones(3, 3, dtype=torch.float64))) <= 0


def test_batches_are_judged_apart_and_broken_matrices_prove_nothing():
    good = torch.eye(3).double()
    S = torch.stack([good, torch.full((3, 3), torch.nan).double(), 2 * good, -good])
    found = least_eigenvalue(S)
    assert found[0] == pytest.approx(1)
    assert found[1] == -torch.inf
    assert found[2] == pytest.approx(2)
    assert found[3] <= -1
    with pytest.raises(ShapeError, match="symmetric"):
        least_eigenvalue(rand(3, 3))


def test_reach_bounds_the_two_norm():
    E = symmetric(rand(9, 9)).abs()
    assert float(reach(E)) >= float(torch.linalg.matrix_norm(E, 2))


# --- max norm


def exact_max_norm_margin(W, eta):
    n = len(W)
    w = [[Fraction(float(v)) for v in row] for row in W]
    e = [Fraction(float(v)) for v in eta]
    return min(
        1 - w[i][i] - sum(abs(w[i][j]) * e[j] for j in range(n) if j != i) / e[i] for i in range(n)
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_max_norm_margin_is_below_the_exact_one_and_tight(seed):
    W, eta = rand(6, 6, seed=seed), rand(6, seed=seed + 50).exp()
    found, exact = max_norm_margin(W, eta), exact_max_norm_margin(W, eta)
    assert Fraction(found) <= exact
    assert found == pytest.approx(float(exact), rel=1e-12)


def test_a_margin_of_zero_is_refused():
    # 1 - W_11 - |W_12| is exactly 0 for equal weights, and any other weights fail one of the rows
    W = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    assert max_norm_margin(W, torch.ones(2).double()) <= 0
    with pytest.raises(NotCertifiableError, match="spectral radius"):
        wellposedness(net(W))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_feed_forward_networks_always_have_a_max_norm_witness(scale):
    W = torch.tril(scale * rand(24, 24), -1)
    perm = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for matrix in (W, W.mT, W[perm][:, perm]):
        found = wellposedness(net(matrix))
        assert found.kind == "max-norm"
        assert found.margin > 0.1
        assert Fraction(found.margin) <= exact_max_norm_margin(matrix, found.weights)


def test_the_perron_search_decides_like_the_spectral_radius():
    for seed in range(12):
        W = 0.32 * rand(8, 8, seed=seed)
        own = W.diagonal()
        M = W.abs().fill_diagonal_(0) / (1 - own)[:, None]
        radius = float(torch.linalg.eigvals(M).abs().max())
        try:
            kind = wellposedness(net(W)).kind
        except NotCertifiableError:
            kind = "none"
        assert (kind == "max-norm") == (radius < 1 and bool((own < 1).all()))


# --- monotone


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_monotone_margin_is_below_the_true_one_and_tight(spread):
    W = monotone_matrix(12)
    lam = (spread * rand(12, seed=4)).exp()
    k = lam.sqrt()
    scaled = k[:, None] * (torch.eye(12).double() - W) / k
    true = float(torch.linalg.eigvalsh((scaled + scaled.mT) / 2)[0])
    found = monotone_margin(W, lam)
    size = float(scaled.abs().sum(1).max())
    assert found <= true + 1e-13 * size
    assert found >= true - 1e-11 * size


def test_a_monotone_network_beyond_the_max_norm_is_recognised():
    found = wellposedness(net(monotone_matrix(20, margin=0.3)))
    assert found.kind == "monotone"
    assert found.margin == pytest.approx(0.3, abs=0.1)
    assert torch.equal(found.weights, torch.ones(20).double())


def test_a_hidden_diagonal_scaling_is_found():
    # I - W = Psi P with P monotone: Lam = Psi^-1 is a witness, the plain norm has none
    psi = (1.5 * rand(14, seed=3)).exp()
    P = 0.3 * torch.eye(14).double() + 0.2 * (torch.eye(14) - monotone_matrix(14, seed=5)).double()
    W = torch.eye(14).double() - psi[:, None] * P
    assert monotone_margin(W, torch.ones(14).double()) < 0
    assert monotone_margin(W, 1 / psi) > 0
    found = wellposedness(net(W))
    assert found.kind == "monotone"
    assert found.margin > 0
    assert monotone_margin(W, found.weights) >= found.margin


@pytest.mark.parametrize("shuffle", [False, True])
def test_layers_in_front_of_a_monotone_block_are_cascaded(shuffle):
    n = 15
    W = torch.zeros(2 * n, 2 * n).double()
    W[n:, n:] = monotone_matrix(n)
    W[n:, :n] = 8 * rand(n, n, seed=9)
    if shuffle:
        perm = torch.randperm(2 * n, generator=torch.Generator().manual_seed(0))
        W = W[perm][:, perm]
    assert monotone_margin(W, torch.ones(2 * n).double()) < 0
    assert wellposedness(net(W)).kind == "monotone"


def test_a_network_that_is_not_well_posed_is_refused_with_its_numbers():
    W = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)  # z = relu(2 z + b)
    with pytest.raises(NotCertifiableError, match="margin of monotonicity") as caught:
        wellposedness(net(W))
    assert "-1" in str(caught.value)
    with pytest.raises(NotCertifiableError):
        monotone_witness(net(W))


def test_a_weight_edit_that_breaks_the_margin_is_noticed():
    W = monotone_matrix(10, margin=0.4)
    lam = torch.ones(10).double()
    assert monotone_margin(W, lam) > 0
    W[0, 0] += 60
    assert monotone_margin(W, lam) < 0


@pytest.mark.parametrize("bad", [[1.0, 0.0], [1.0, -1.0], [1.0, torch.nan], [1.0]])
def test_weights_that_are_no_weights_are_refused(bad):
    W, weights = torch.zeros(2, 2).double(), torch.tensor(bad).double()
    for judge in (max_norm_margin, monotone_margin):
        with pytest.raises(ShapeError, match="positive finite"):
            judge(W, weights)


def test_activations_outside_the_cone_are_refused():
    zero = torch.zeros(1, 1).double()
    steep = Network.of(zero, zero, zero[0], zero, zero[0], activation=GELU())
    for search in (wellposedness, monotone_witness):
        with pytest.raises(NotCertifiableError, match="slopes in"):
            search(steep)
