"""Warm-started norms: both bounds hold while weights move, and the gradient is that of the norm."""

import pytest
import torch

from wellposed.core.convolutions import convolution
from wellposed.core.operators import Convolution, Dense
from wellposed.core.spectral import two_norm
from wellposed.core.transposed import Adjoint
from wellposed.core.warm import WarmNorm, quick_bound
from wellposed.errors import ConfigError, NotCertifiableError

KINDS = {
    "dense": lambda w: Dense(w.flatten(1)),
    "circular": lambda w: Convolution(w, (5, 4), "circular"),
    "zeros": lambda w: Convolution(w, (4, 4)),
    "strided": lambda w: convolution(w, (6, 6), stride=2, groups=2, outside="replicate"),
    "transposed": lambda w: Adjoint(convolution(w, (6, 6), stride=2, padding=1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [1e-3, 0.3])
def test_bounds_hold_at_every_step(kind, rate):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    make = KINDS[kind]
    warm = WarmNorm(make(weight), refresh=8, width=0.05)
    anew = []
    for step in range(30):
        operator = make(weight)
        found = warm(operator)
        sigma = float(
            torch.linalg.matrix_norm(operator.detach().to(torch.float64).materialise(), 2)
        )
        assert found.bracket.lower <= sigma * (1 + 1e-12)
        assert found.bracket.upper >= sigma * (1 - 1e-12)
        assert float(found.value.detach()) <= sigma * (1 + 1e-5)
        anew.append(found.refreshed)
        (grad,) = torch.autograd.grad(found.value, weight)
        with torch.no_grad():
            weight += rate * (torch.randn_like(weight) - grad)
            if step == 20:
                weight *= 100  # far away: a bound of the movement would say little
    assert anew[0]
    assert anew[21]
    assert anew.count(True) >= 4
    if rate < 0.01:
        assert anew.count(True) <= 8


def test_the_value_and_its_gradient_converge():
    torch.manual_seed(1)
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    operator = Convolution(weight, (5, 5), "circular")
    warm = WarmNorm(operator)
    for _ in range(200):
        found = warm(operator)
    (grad,) = torch.autograd.grad(found.value, weight)
    (exact,) = torch.autograd.grad(two_norm(operator), weight)
    assert found.value.item() == pytest.approx(two_norm(operator).item(), rel=1e-6)
    assert torch.allclose(grad, exact, atol=1e-3)


def test_it_is_saved_with_the_model():
    torch.manual_seed(2)
    operator = Dense(torch.randn(5, 4))
    warm = WarmNorm(operator)
    warm(operator)
    other = WarmNorm(Dense(torch.zeros(5, 4)))
    other.load_state_dict(warm.state_dict())
    first, second = warm(operator), other(operator)
    assert first.bracket == second.bracket
    assert not second.refreshed
    assert torch.equal(first.value, second.value)


def test_a_quick_bound_is_attained():
    one = torch.zeros(2, 2, 3, 3)
    one[0, 0] = 1.0
    found = quick_bound(Convolution(one, (6, 6), "circular"))
    assert found == pytest.approx(9)  # a constant image is stretched by as much


def test_refusals():
    with pytest.raises(ConfigError, match="refresh"):
        WarmNorm(Dense(torch.eye(2)), refresh=0)
    with pytest.raises(ConfigError, match="width"):
        WarmNorm(Dense(torch.eye(2)), width=float("nan"))
    warm = WarmNorm(Dense(torch.eye(2)))
    with pytest.raises(NotCertifiableError, match="NaN"):
        warm(Dense(torch.full((2, 2), float("nan"))))
