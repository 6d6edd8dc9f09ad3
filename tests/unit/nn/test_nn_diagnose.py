"""Diagnosis of solves and gradients, and the spectral radius behind it."""

import json

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.cells.contractive import ContractiveCell
from wellposed.errors import ConfigError
from wellposed.nn.diagnose import Diagnosis, diagnose
from wellposed.solvers.arnoldi import spectral_radius


def model(gradient, seed=0, **options):
    torch.manual_seed(seed)
    cell = ContractiveCell(4, 9, bound=0.95, activation=wp.Tanh())
    with torch.no_grad():
        cell.W.copy_(2 * torch.linalg.qr(torch.randn(9, 9))[0])
        cell.inject.weight.mul_(0.2)
    layer = wp.Equilibrium(cell, gradient=gradient, **options)
    return nn.Sequential(layer, nn.Linear(9, 2))


def test_the_exact_gradient_has_cosine_one_and_a_report_of_its_adjoint():
    (found,) = diagnose(model(wp.Implicit()).double(), torch.randn(3, 4).double())
    assert min(found.cosine) > 1 - 1e-5
    assert found.batch_relative_error < 1e-2
    assert len(found.adjoint_evaluations) == 3
    assert max(found.adjoint_residual) < 1e-2
    assert found.status == ("converged",) * 3
    assert found.reference_residual < 1e-11


def test_errors_of_one_step_are_those_of_a_dense_computation():
    net, x = model(wp.OneStep()).double().eval(), torch.randn(2, 4).double()
    weight = torch.randn(2, 9).double()
    (found,) = diagnose(net[0], x, loss=lambda z: (weight * z).sum())
    affine = net[0].cell.explicit()
    z = net[0](x).detach()
    A = affine.A.matrix.detach()
    d = 1 - z**2
    own = torch.diagonal(A)
    gain = d / (1 - d * own)  # one step of the form with the diagonal resolved
    for i in range(2):
        J = d[i][:, None] * A
        u = d[i] * torch.linalg.solve((torch.eye(9).double() - J).mT, weight[i])
        v = gain[i] * weight[i]
        # the gradient of the bias is the flow itself, and decides nothing alone: compare flows
        assert float((u @ v) / (u.norm() * v.norm())) > 0
        rho = float(torch.linalg.eigvals(J).abs().max())
        assert found.spectral_radius[i] == pytest.approx(rho, rel=1e-6)
    assert max(found.cosine) < 1 - 1e-4
    assert min(found.relative_error) > 1e-2
    assert found.adjoint_evaluations == ()


def test_more_terms_are_better():
    x = torch.randn(4, 4)
    errors = [
        diagnose(model(gradient), x)[0].batch_relative_error
        for gradient in (wp.OneStep(), wp.Neumann(4), wp.Neumann(12))
    ]
    assert errors[0] > errors[1] > errors[2]


def test_it_prints_a_table_and_survives_json():
    (found,) = diagnose(model(wp.OneStep()), torch.randn(3, 4))
    lines = str(found).splitlines()
    assert len(lines) == 3 + 3
    assert "rho(J)" in lines[1]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert Diagnosis.from_json(found.to_json()) == found
    json.loads(found.to_json())


def test_nothing_of_the_model_changes():
    net, x = model(wp.Implicit()), torch.randn(3, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(x)
    last = net[0].last
    diagnose(net, x)
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert last is not None
    assert next(net.parameters()).dtype == torch.float32


def test_failures_are_told_and_do_not_raise():
    net = model(wp.Implicit(max_evaluations=1), stopping=wp.Stopping(1e-6, max_evaluations=2))
    (found,) = diagnose(net, torch.randn(2, 4))
    assert found.status == ("budget", "budget")
    assert max(found.relative_error) > 1e-3


def test_layers_without_parameters_are_judged_by_their_inputs():
    class Half(nn.Module):
        def forward(self, z, x):
            return 0.5 * torch.sin(z) + x

    layer = wp.Equilibrium(wp.FreeCell(Half()), gradient=wp.OneStep())
    (found,) = diagnose(layer, torch.randn(2, 3))
    assert max(found.relative_error) > 1e-2
    assert max(found.spectral_radius) <= 0.5 + 1e-9


def test_models_without_a_layer_and_losses_without_it_are_refused():
    with pytest.raises(ConfigError, match="no `Equilibrium`"):
        diagnose(nn.Linear(2, 2), torch.randn(1, 2))
    net = model(wp.OneStep())
    with pytest.raises(ConfigError, match="does not depend"):
        diagnose(net, torch.randn(1, 4), loss=lambda y: net[1].bias.sum())


@pytest.mark.parametrize("kind", ["gauss", "rotation", "jordan", "symmetric", "zero"])
def test_spectral_radius(kind):
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    A = {
        "gauss": G,
        "rotation": torch.linalg.qr(G)[0],
        "jordan": 0.5 * torch.eye(30).double() + torch.diag(torch.ones(29).double(), 1),
        "symmetric": G + G.mT,
        "zero": torch.zeros(30, 30).double(),
    }[kind]
    exact = float(torch.linalg.eigvals(A).abs().max())
    start = torch.randn(2, 30, dtype=torch.float64, generator=generator)
    found = spectral_radius(lambda v: v @ A.mT, start, size=40)
    # a Jordan block's eigenvalues are known to the 30th root of rounding only
    loose = 0.5 if kind == "jordan" else 1e-8
    assert found.value.tolist() == pytest.approx([exact, exact], abs=loose * (1 + exact))
    small = spectral_radius(lambda v: v @ A.mT, start, size=12, restarts=40)
    if kind in ("gauss", "symmetric"):
        assert found.products == 30
        assert (small.residual >= 0).all()
        assert small.value.tolist() == pytest.approx([exact, exact], rel=1e-3)


def test_spectral_radius_refuses_bad_sizes():
    with pytest.raises(ConfigError):
        spectral_radius(lambda v: v, torch.ones(1, 3), size=1)
    with pytest.raises(ConfigError):
        spectral_radius(lambda v: v, torch.ones(1, 3), restarts=0)
