"""Ritz bounds: they hold whatever power and error they are given, and are attained."""

import pytest
import torch

from wellposed.core.matrix_norm import frobenius
from wellposed.core.ritz import ritz_bounds


def semidefinite(batch, n, dtype=torch.float64):
    G = torch.randn(batch, n, n, dtype=dtype)
    return G.mH @ G


def largest(M):
    return torch.linalg.eigvalsh(M)[:, -1]


@pytest.mark.parametrize("n", [2, 3, 7, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["itself", "power", "identity", "noise", "zero"])
def test_they_hold_for_any_power(n, dtype, kind):
    """`power` only proposes the block; what bounds the rest has to be its own bound."""
    torch.manual_seed(n)
    M = semidefinite(6, n, dtype) * torch.logspace(-20, 20, 6)[:, None, None]
    power = {
        "itself": M,
        "power": torch.linalg.matrix_power(M / torch.linalg.matrix_norm(M)[:, None, None], 16),
        "identity": torch.eye(n, dtype=dtype).expand(6, n, n),
        "noise": torch.randn(6, n, n, dtype=dtype),
        "zero": torch.zeros(6, n, n, dtype=dtype),
    }[kind]
    none = torch.zeros(6, dtype=torch.float64)
    top = largest(M)
    # the norm of all of M is a bound of that of M P
    lower, upper = ritz_bounds(M, none, power, lambda left: frobenius(M))
    assert bool((lower <= top * (1 + 1e-12)).all())
    assert bool((upper >= top * (1 - 1e-12)).all())
    if kind == "itself":
        lower, upper = ritz_bounds(M, none, M, lambda left: left)
        assert bool((upper >= top * (1 - 1e-12)).all())


def test_they_are_attained_when_the_block_holds_what_there_is():
    torch.manual_seed(1)
    V = torch.linalg.qr(torch.randn(4, 40, 5, dtype=torch.float64))[0]
    M = (V * torch.tensor([3.0, 3.0, 2.9999, 1.0, 0.5]).double()) @ V.mH
    none = torch.zeros(4, dtype=torch.float64)
    lower, upper = ritz_bounds(M, none, M, lambda left: left)
    assert bool((lower <= 3 * (1 + 1e-13)).all())
    assert bool((lower >= 3 * (1 - 1e-11)).all())
    assert bool((upper <= 3 * (1 + 1e-9)).all())


def test_the_error_of_the_matrix_is_in_both_bounds():
    """Every matrix within the error lies between them, the extreme ones too."""
    torch.manual_seed(2)
    M = semidefinite(5, 20) + torch.eye(20, dtype=torch.float64)
    wrong = torch.full((5,), 0.25, dtype=torch.float64)
    lower, upper = ritz_bounds(M, wrong, torch.linalg.matrix_power(M, 8), lambda _: frobenius(M))
    v = torch.linalg.eigh(M)[1][:, :, -1]
    away = 0.25 * v[:, :, None] * v[:, None, :]
    assert bool((lower <= largest(M - away) * (1 + 1e-12)).all())
    assert bool((upper >= largest(M + away) * (1 - 1e-12)).all())


def test_a_rest_above_the_block_is_not_lost():
    """The probe misses the largest eigenvector altogether: the bound of the rest carries it."""
    M = torch.diag(torch.arange(1.0, 21.0, dtype=torch.float64))[None]
    power = torch.diag((torch.arange(20) < 8).double())[None]
    none = torch.zeros(1, dtype=torch.float64)
    lower, upper = ritz_bounds(M, none, power, lambda _: torch.tensor([20.0]).double())
    assert 8 * (1 - 1e-10) <= float(lower) <= 8 * (1 + 1e-12)
    assert 20 * (1 - 1e-12) <= float(upper) <= 20 * (1 + 1e-5)


def test_infinite_rests_give_no_bound():
    M = semidefinite(2, 6)
    none = torch.zeros(2, dtype=torch.float64)
    _, upper = ritz_bounds(M, none, M, lambda _: torch.full((2,), torch.inf).double())
    assert bool(upper.isinf().all())
