"""Norms and logarithmic norms: definitions, duality, exactness of finite steps."""

import pytest
import torch

from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm, log_norm_rows
from wellposed.errors import NotCertifiableError, ShapeError


def _matrix(n, seed, m=None):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m or n, n, generator=g, dtype=torch.float64)


def _weights(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=g, dtype=torch.float64) * 3 + 0.1


@pytest.mark.parametrize("kind", [MaxNorm, OneNorm, TwoNorm])
@pytest.mark.parametrize("seed", range(5))
def test_log_norm_is_the_limit_of_finite_steps(kind, seed):
    A, norm = _matrix(6, seed), kind(_weights(6, seed))
    h = 1e-7
    step = (norm.operator_norm(torch.eye(6, dtype=torch.float64) + h * A) - 1) / h
    assert float(norm.log_norm(A)) == pytest.approx(float(step), abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_finite_step_is_exact_in_the_max_norm(seed):
    A, norm = _matrix(7, seed), MaxNorm(_weights(7, seed))
    largest = 1 / (1 - float(torch.diagonal(A).min().clamp(max=0)))
    for fraction in (1.0, 0.5, 0.01):
        alpha = fraction * largest
        value = norm.operator_norm((1 - alpha) * torch.eye(7, dtype=torch.float64) + alpha * A)
        assert float(value) == pytest.approx(1 - alpha * (1 - float(norm.log_norm(A))), abs=1e-12)


def test_larger_step_breaks_the_equality():
    A = torch.tensor([[-3.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    alpha = 1.0  # the limit is 1/4
    value = MaxNorm().operator_norm((1 - alpha) * torch.eye(2, dtype=torch.float64) + alpha * A)
    assert float(value) > 1 - alpha * (1 - float(MaxNorm().log_norm(A))) + 1


@pytest.mark.parametrize("seed", range(5))
def test_duality(seed):
    A, eta = _matrix(5, seed), _weights(5, seed)
    assert torch.allclose(OneNorm(eta).log_norm(A.mT), MaxNorm(eta).log_norm(A))
    assert torch.allclose(OneNorm(eta).operator_norm(A.mT), MaxNorm(eta).operator_norm(A))
    assert torch.allclose(TwoNorm(eta).dual().operator_norm(A.mT), TwoNorm(eta).operator_norm(A))


@pytest.mark.parametrize("kind", [MaxNorm, OneNorm, TwoNorm])
def test_dual_pairing_is_attained_and_never_exceeded(kind):
    norm = kind(_weights(4, 1))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(200, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert bool(((x * y).sum(1) <= norm(x) * norm.dual()(y) * (1 + 1e-12)).all())
    assert isinstance(norm.dual().dual(), kind)
    assert torch.allclose(norm.dual().dual()(x), norm(x))


@pytest.mark.parametrize(
    ("source", "target"),
    [(MaxNorm, MaxNorm), (OneNorm, OneNorm), (TwoNorm, TwoNorm), (OneNorm, MaxNorm),
     (TwoNorm, MaxNorm), (OneNorm, TwoNorm)],
)  # fmt: skip
def test_operator_norm_bounds_all_and_is_attained_by_some(source, target):
    A = _matrix(4, 3, m=3)
    inner, outer = source(_weights(4, 1)), target(_weights(3, 2))
    bound = float(outer.operator_norm(A, inner))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=g, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    x = torch.cat([x, torch.eye(4, dtype=torch.float64), corners * inner.multipliers(4, x) ** -1])
    ratio = outer(x @ A.mT) / inner(x)
    assert float(ratio.max()) <= bound * (1 + 1e-12)
    assert float(ratio.max()) >= bound * (0.9 if source is TwoNorm else 1 - 1e-12)


def test_pairs_without_formula_are_refused():
    with pytest.raises(NotCertifiableError, match="max-norm to the 1-norm"):
        OneNorm().operator_norm(torch.eye(2), MaxNorm())


def test_bad_weights_and_shapes():
    with pytest.raises(ShapeError, match="positive"):
        MaxNorm(torch.tensor([1.0, 0.0]))
    with pytest.raises(ShapeError, match="vector"):
        MaxNorm(torch.ones(2, 2))
    with pytest.raises(ShapeError, match="positive"):
        MaxNorm(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ShapeError, match="3 weights"):
        MaxNorm(torch.ones(3))(torch.ones(2))
    with pytest.raises(ShapeError, match="square"):
        log_norm_rows(torch.ones(2, 3))


def test_labels_tell_weights_apart():
    assert MaxNorm().label == "max"
    one, other = MaxNorm(torch.ones(2)).label, MaxNorm(torch.tensor([1.0, 2.0])).label
    assert one != other
    assert one == MaxNorm(torch.ones(2, dtype=torch.float64)).label
