"""Random depth: its mean is what the formula says, and the debiased one's is the exact gradient."""

import pytest
import torch

import wellposed as wp
from wellposed.errors import ConfigError
from wellposed.gradients.random_depth import RandomDepth
from wellposed.testing import check_gradient

STOPPING = wp.Stopping(1e-13, 1e-15)


@pytest.mark.parametrize("debiased", [False, True])
def test_it_conforms(debiased):
    torch.manual_seed(0)
    check_gradient(RandomDepth(debiased=debiased), exact=False)


def problem():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    W = 0.5 * W / torch.linalg.matrix_norm(W, 2)
    x = torch.randn(1, 3, dtype=torch.float64, generator=generator).requires_grad_()

    def grad(gradient):
        z = wp.fixed_point(
            lambda z, x: torch.tanh(z @ W.mT + x), torch.zeros(1, 3).double(), x,
            gradient=gradient, stopping=STOPPING,
        ).value  # fmt: skip
        return torch.autograd.grad(z.sum(), x)[0], z.detach()

    return W, grad


def forced(monkeypatch, depth):
    monkeypatch.setattr(RandomDepth, "_draw", lambda self: depth)


def test_the_mean_over_all_depths_is_exact_if_debiased(monkeypatch):
    _, grad = problem()
    p, mean, plain = 0.4, 0.0, 0.0
    for k in range(60):
        forced(monkeypatch, k)
        chance = (1 - p) ** k * p
        mean = mean + chance * grad(RandomDepth(p, debiased=True))[0]
        plain = plain + chance * grad(RandomDepth(p))[0]
    assert torch.allclose(mean, grad(wp.Implicit(rtol=1e-13))[0], rtol=1e-9)
    # the plain one: sum_i ((1 - p) J^T)^i g
    W, z = problem()[0], grad(wp.Implicit())[1]
    J = (1 - z[0] ** 2)[:, None] * W
    u = torch.linalg.solve((torch.eye(3).double() - (1 - p) * J).mT, torch.ones(3).double())
    assert torch.allclose(plain[0], (1 - z[0] ** 2) * u, rtol=1e-9)


def test_depth_zero_is_one_step(monkeypatch):
    _, grad = problem()
    forced(monkeypatch, 0)
    assert torch.equal(grad(RandomDepth())[0], grad(wp.OneStep())[0])
    forced(monkeypatch, 4)
    assert torch.equal(grad(RandomDepth())[0], grad(wp.Neumann(5))[0])


def test_depths_are_geometric_and_seeded():
    torch.manual_seed(0)
    gradient = RandomDepth(0.25, limit=7)
    drawn = torch.tensor([gradient._draw() for _ in range(4000)]).double()
    assert float((drawn == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((drawn == 2).double().mean()) == pytest.approx(0.25 * 0.75**2, abs=0.03)
    assert drawn.max() == 7
    torch.manual_seed(0)
    assert [gradient._draw() for _ in range(5)] == drawn[:5].tolist()


@pytest.mark.parametrize("bad", [{"p": 0.0}, {"p": 1.0}, {"p": float("nan")}, {"limit": 0}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ConfigError):
        RandomDepth(**bad)
