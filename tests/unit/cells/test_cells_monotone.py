"""The monotone cell: its margin for any parameters, its solvers, its gradients, its section."""

import pytest
import torch

from wellposed.cells.monotone import MonotoneCell
from wellposed.core.activations import GELU, LeakyReLU, ReLU, Tanh
from wellposed.core.norms import MaxNorm, TwoNorm
from wellposed.errors import AuditError, ConfigError, ShapeError
from wellposed.experiments.families.dense import Monotone
from wellposed.experiments.models import build_model
from wellposed.experiments.sections import Variant
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Stopping
from wellposed.solvers.splitting import DouglasRachford, PeacemanRachford
from wellposed.testing import check_cell


def wild(cell, scale, rounding=False):
    """Random parameters of a given size, maybe rounded to bfloat16."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            if rounding:
                p.copy_(p.bfloat16())
    return cell


def margin_of(cell):
    affine = cell.explicit().double()
    weights = None if affine.metric is None else affine.metric.rsqrt()
    return 1 - float(TwoNorm(weights).log_norm(affine.A.materialise()))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("margin", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_margin_holds_for_any_parameters(scale, rounding, margin, scaled):
    cell = wild(MonotoneCell(3, 23, margin=margin, scaled=scaled), scale, rounding)
    # the eigenvalue itself is computed in float64
    assert margin_of(cell) >= margin - 1e-9 * (1 + scale**2)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_margin_is_attained_by_a_singular_factor(scaled):
    cell = wild(MonotoneCell(3, 9, margin=0.5, scaled=scaled, dtype=torch.float64), 1.0)
    with torch.no_grad():
        cell.F[:, 0] = 0
    assert margin_of(cell) == pytest.approx(0.5, abs=1e-10)


def test_the_published_margin_is_a_rescaling():
    # margin 20 with factors sqrt(20) and skew parts, inputs and biases 20 times as large
    one = wild(MonotoneCell(4, 7, margin=1.0, dtype=torch.float64), 0.4)
    twenty = MonotoneCell(4, 7, margin=20.0, dtype=torch.float64)
    with torch.no_grad():
        twenty.F.copy_(one.F * 20**0.5)
        twenty.S.copy_(one.S * 20)
        twenty.inject.weight.copy_(one.inject.weight * 20)
        twenty.inject.bias.copy_(one.inject.bias * 20)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stopping = Stopping(rtol=1e-12, max_evaluations=5000)
    layers = [Equilibrium(c, eval_stopping=stopping).eval() for c in (one, twenty)]
    assert torch.allclose(layers[0](x), layers[1](x), atol=1e-9)


@pytest.mark.parametrize("solver", [Auto(), PeacemanRachford(), DouglasRachford()], ids=str)
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh()], ids=lambda a: a.name)
@pytest.mark.parametrize("scaled", [False, True])
def test_solvers_reach_the_equilibrium_where_the_max_norm_expands(solver, activation, scaled):
    cell = MonotoneCell(5, 30, activation=activation, scaled=scaled, dtype=torch.float64)
    wild(cell, 0.6)
    assert float(MaxNorm().log_norm(cell.explicit().A.materialise().detach())) > 1
    layer = Equilibrium(
        cell, solver=solver, eval_stopping=Stopping(rtol=1e-11, max_evaluations=5000)
    ).eval()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = layer(x)
    assert torch.allclose(cell.bind(x)(z), z, atol=1e-7)


@pytest.mark.parametrize("solver", [Auto(), PeacemanRachford()], ids=str)
def test_gradients_are_those_of_finite_differences(solver):
    cell = wild(MonotoneCell(3, 6, dtype=torch.float64), 0.7)
    tight = Stopping(rtol=1e-12, max_evaluations=5000)
    layer = Equilibrium(cell, solver=solver, stopping=tight, eval_stopping=tight).eval()
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value():
        return (layer(x) * torch.arange(1.0, 7.0, dtype=torch.float64)).sum()

    value().backward()
    for p in cell.parameters():
        flat, grad = p.data.view(-1), p.grad.view(-1)
        for k in range(0, len(flat), 7):
            old, step = float(flat[k]), 1e-5
            flat[k] = old + step
            up = float(value().detach())
            flat[k] = old - step
            down = float(value().detach())
            flat[k] = old
            assert float(grad[k]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


def test_check_cell_accepts_it_and_reports_the_two_norm():
    cell = wild(MonotoneCell(4, 12, margin=0.5), 0.5)
    report = check_cell(cell, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert report.log_norm == pytest.approx(1 - margin_of(cell), abs=1e-6)
    assert report.log_norm <= 0.5


def test_check_cell_refuses_it_without_its_margin():
    cell = wild(MonotoneCell(4, 12, margin=0.5), 0.5)
    cell.margin = -40.0
    with pytest.raises(AuditError, match="logarithmic norm"):
        check_cell(cell, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_margins_that_prove_nothing_are_refused(margin):
    with pytest.raises(ConfigError, match="`margin` must be positive"):
        MonotoneCell(3, 4, margin=margin)


def test_other_arguments_are_refused():
    with pytest.raises(ConfigError, match="slopes"):
        MonotoneCell(3, 4, activation=GELU())
    with pytest.raises(ShapeError, match="`n_state`"):
        MonotoneCell(3, 0)


def test_the_section_builds_it():
    variant = Variant(model=Monotone(states=5, margin=2.0))
    model = build_model(variant, shape=(1, 4, 4), classes=3, mean=(0.1,), std=(0.3,))
    (layer,) = [m for m in model.modules() if isinstance(m, Equilibrium)]
    assert isinstance(layer.cell, MonotoneCell)
    assert (layer.cell.n_in, layer.cell.n_state, layer.cell.margin) == (16, 5, 2.0)
    assert model.eval()(torch.rand(2, 1, 4, 4)).shape == (2, 3)
