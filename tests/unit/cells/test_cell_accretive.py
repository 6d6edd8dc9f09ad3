"""Hand-written backward passes of the dense monotone parametrisations."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad

import wellposed as wp
from wellposed.cells.accretive import Weights, accretive, bounded


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_()


def test_accretive_has_derivatives_of_two_orders():
    F, S = rand(4, 4), rand(4, 4, seed=1)
    assert gradcheck(lambda F, S: accretive(F, S, 0.5), (F, S))
    assert gradgradcheck(lambda F, S: accretive(F, S, 0.5), (F, S))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_bounded_has_derivatives_of_two_orders(scale):
    weights = [rand(*s, seed=i) for i, s in enumerate([(4, 4), (4, 4), (4,), (4, 6), (3, 4)])]

    def both(*given):
        W, psi = bounded(Weights(*given), 0.5, scale, 22)
        return W * psi

    assert gradcheck(both, weights)
    assert gradgradcheck(both, weights)


def test_accretive_is_the_formula():
    F, S = rand(6, 6), rand(6, 6, seed=1)
    plain = (1 - 0.5) * torch.eye(6) - F.T @ F + S - S.T
    assert torch.allclose(accretive(F, S, 0.5), plain, atol=1e-12)


def test_bounded_is_the_formula():
    V, S, p, U, C = (rand(*s, seed=i) for i, s in enumerate([(4, 4), (4, 4), (4,), (4, 6), (3, 4)]))
    psi = torch.asinh(p).exp()
    X = U / psi[:, None]
    H = V.T @ V + 0.5 * torch.eye(4) + S - S.T + 0.3 * (C.T @ C + X @ X.T)
    W, found = bounded(Weights(V, S, p, U, C), 0.5, 0.3, 22)
    assert torch.allclose(W, torch.eye(4) - psi[:, None] * H, atol=1e-11)
    assert torch.allclose(found, psi)


@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("margin", [0.1, 20.0])
def test_the_margin_holds_for_single_precision_weights(size, margin):
    for seed in range(5):
        F, S = ((size * rand(87, 87, seed=2 * seed + i)).detach().float() for i in range(2))
        for draw in (F, F.sign() * size, F[:, :1].expand(87, 87).contiguous()):
            M = torch.eye(87, dtype=torch.float64) - accretive(draw, S, margin).double()
            assert float(torch.linalg.eigvalsh((M + M.T) / 2)[0]) >= margin


@pytest.mark.parametrize("make", [
    lambda: wp.MonotoneCell(5, 4, dtype=torch.float64),
    lambda: wp.MonotoneCell(5, 4, scaled=True, dtype=torch.float64),
    lambda: wp.LBEN(5, 4, 2, gamma=2.0, dtype=torch.float64).cell,
])  # fmt: skip
def test_function_transforms_give_the_same_gradient(make):
    torch.manual_seed(0)
    cell = make()
    weights = dict(cell.named_parameters())
    g = rand(4, 4, seed=9).detach()

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self):
            return (self.cell.explicit().A.weight * g).sum()

    both = Both()
    named = {f"cell.{name}": p for name, p in weights.items()}
    there = grad(lambda given: functional_call(both, given, ()))(named)
    here = torch.autograd.grad(both(), list(named.values()), allow_unused=True)
    for mine, name in zip(here, named, strict=True):
        expected = torch.zeros_like(named[name]) if mine is None else mine
        assert torch.allclose(there[name], expected, atol=1e-12)
