"""The claims of eigenvalues, margins and gains, checked in exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from rational import definite, exact, solve

from wellposed.certify.definite import least_eigenvalue, symmetric
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.wellposed import monotone_margin
from wellposed.core.network import Network


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ill_conditioned(n, seed):
    """Symmetric with eigenvalues over 14 decades, the smallest of either sign."""
    V = torch.linalg.qr(rand(n, n, seed=seed))[0]
    values = 10.0 ** torch.linspace(-14, 0, n).double()
    values[0] *= 1 if seed % 2 else -1
    return symmetric(V @ torch.diag(values) @ V.mT) / 2


@pytest.mark.parametrize("seed", range(8))
def test_eigenvalues_below_the_rounding_of_their_matrix(seed):
    S = ill_conditioned(6, seed) * 10.0 ** (seed - 4)
    found = Fraction(float(least_eigenvalue(S)))
    shifted = exact(S)
    for i, row in enumerate(shifted):
        row[i] -= found
    assert definite(shifted)
    for i, row in enumerate(shifted):
        row[i] -= Fraction(2e-12) * Fraction(float(1 + S.abs().max()))
    assert not definite(shifted)


def test_the_hilbert_matrix():
    n = 9
    H = torch.tensor([[1 / (i + j + 1) for j in range(n)] for i in range(n)], dtype=torch.float64)
    shifted, found = exact(H), Fraction(float(least_eigenvalue(H)))
    for i, row in enumerate(shifted):
        row[i] -= found
    assert definite(shifted)


@pytest.mark.parametrize("seed", range(6))
def test_a_margin_is_a_margin_of_the_exact_weights(seed):
    n = 5
    A, B = rand(n, n, seed=seed), rand(n, n, seed=seed + 1)
    lam = (4 * rand(n, seed=seed + 2)).exp()
    W = torch.eye(n).double() - (A.mT @ A + 1e3 * (B - B.mT) + 1e-7 * torch.eye(n)) / lam[:, None]
    m = Fraction(monotone_margin(W, lam))
    w, weights = exact(W), exact(lam)
    form = [
        [
            weights[i] * ((i == j) - w[i][j]) + weights[j] * ((i == j) - w[j][i])
            - 2 * m * weights[i] * (i == j)
            for j in range(n)
        ]
        for i in range(n)
    ]  # fmt: skip
    assert definite(form)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("nearness", [0.5, 1 - 1e-4, 1 - 1e-9])
def test_a_gain_is_a_bound_of_the_exact_form(seed, nearness):
    n, d = 4, 5
    A, B = rand(n, n, seed=seed), rand(n, n, seed=seed + 1)
    psi = (2 * rand(n, seed=seed + 2)).exp()
    W = torch.eye(n).double() - psi[:, None] * (0.1 * torch.eye(n) + A.mT @ A + B - B.mT)
    net = Network.of(W, rand(n, d, seed=seed + 3), rand(n), rand(2, n, seed=5), torch.zeros(2))
    lam = 1 / psi
    proof = PairwiseL2.of(net, lam)
    top = torch.linalg.eigvals(torch.linalg.solve(proof.S, proof.Q)).real.max()
    theta = (nearness / top).expand(2)
    gain = proof.gain(net.C, theta=theta).gain
    w, u, weights, th = exact(W), exact(net.U), exact(lam), Fraction(float(theta[0]))
    gram = [[sum(a * b for a, b in zip(r, s, strict=True)) for s in u] for r in u]
    M = [
        [
            weights[i] * ((i == j) - w[i][j]) + weights[j] * ((i == j) - w[j][i])
            - th * weights[i] * gram[i][j] * weights[j]
            for j in range(n)
        ]
        for i in range(n)
    ]  # fmt: skip
    assert bool((gain == torch.inf).all()) or definite(M)
    for row, g in zip(exact(net.C), gain, strict=True):
        if g == torch.inf:
            assert nearness > 0.999
            continue
        square = sum(a * b for a, b in zip(row, solve(M, row), strict=True)) / th
        assert square <= Fraction(float(g)) ** 2
        assert float(g) == pytest.approx(
            float(square) ** 0.5, rel=1e-5 if nearness < 0.9999 else 1e-2
        )
