"""The largest singular value within training."""

import copy

import pytest
import torch

from wellposed.cells.contractive import ContractiveCell
from wellposed.core import leading as module
from wellposed.core.leading import ROOM, Leading
from wellposed.core.spectral import largest_singular


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def counted(monkeypatch):
    calls = []

    def count(matrix):
        calls.append(1)
        return largest_singular(matrix)

    monkeypatch.setattr(module, "largest_singular", count)
    return calls


def test_a_matrix_that_moves_a_little_is_decomposed_once(monkeypatch):
    calls, leading = counted(monkeypatch), Leading()
    M = rand(60, 80) + torch.outer(rand(60, seed=90), rand(80, seed=91))
    for step in range(30):
        M = M + 1e-2 * rand(60, 80, seed=step + 1)
        norm, left, right = leading.find(M)
        true = torch.linalg.svdvals(M)[0]
        assert float(norm) == pytest.approx(float(true), rel=1e-9)
        assert float(left @ M @ right) == pytest.approx(float(true), rel=1e-9)
    assert len(calls) == 1


def test_a_vector_that_is_not_the_first_is_found_out(monkeypatch):
    calls, leading = counted(monkeypatch), Leading()
    U, V = torch.linalg.qr(rand(40, 40))[0], torch.linalg.qr(rand(40, 40, seed=1))[0]
    s = torch.linspace(0.1, 1.0, 40, dtype=torch.float64)
    leading.find(U * s @ V.T)
    # the vector of the last time has another singular value now, exactly
    turned = s.clone()
    turned[0] = 2.0
    norm, _, _ = leading.find(U * turned @ V.T)
    assert float(norm) * (1 + ROOM) >= 2.0
    assert float(norm) == pytest.approx(2.0)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["random", "orthogonal", "tie", "rank one", "wide", "zero"])
def test_largest_singular_value_and_vectors(kind):
    M = rand(40, 40, seed=3)
    if kind == "orthogonal":
        M = torch.linalg.qr(M)[0]
    elif kind == "tie":
        U, s, Vh = torch.linalg.svd(M)
        s[1] = s[0] * (1 - 1e-9)
        M = U * s @ Vh
    elif kind == "rank one":
        M = torch.outer(M[0], M[1])
    elif kind == "wide":
        M = rand(40, 70)
    elif kind == "zero":
        M = torch.zeros_like(M)
    norm, left, right = largest_singular(M)
    true = float(torch.linalg.svdvals(M)[0])
    assert float(norm) == pytest.approx(true, rel=1e-8)
    assert float(left @ M @ right) == pytest.approx(true, rel=1e-8)
    assert bool(torch.isfinite(left).all() and torch.isfinite(right).all())


@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 1e3])
def test_the_bound_of_a_contractive_cell_holds_while_it_trains(size):
    torch.manual_seed(0)
    cell = ContractiveCell(5, 48, bound=0.9)
    with torch.no_grad():
        cell.W.mul_(size)
    optimiser = torch.optim.Adam(cell.parameters(), lr=1e-2 * size)
    for step in range(25):
        A = cell.explicit().A.weight
        norm = float(torch.linalg.svdvals(A.detach().double())[0])
        assert norm <= 0.9
        if size >= 1:
            assert norm >= 0.9 * (1 - 2e-5)
        optimiser.zero_grad()
        (A * rand(48, 48, seed=step).float()).sum().backward()
        optimiser.step()
    exact = copy.deepcopy(cell).eval().explicit().A.weight
    assert torch.allclose(cell.explicit().A.weight, exact, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(cell.explicit().A.weight, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_norm(dtype):
    torch.manual_seed(0)
    cell, g = ContractiveCell(5, 40, bound=0.9, dtype=dtype), rand(40, 40)
    for moved in (0.0, 1e-2):
        with torch.no_grad():
            cell.W.add_(moved * rand(40, 40, seed=5))
        (mine,) = torch.autograd.grad(cell.explicit().A.weight, cell.W, g.to(dtype))
        W = cell.W.detach().double().requires_grad_()
        A = W * (0.9 / torch.linalg.svdvals(W)[0])
        (true,) = torch.autograd.grad(A, W, g)
        tolerance = 1e-9 if dtype == torch.float64 else 2e-5
        assert torch.allclose(mine.double(), true, rtol=tolerance, atol=tolerance)
