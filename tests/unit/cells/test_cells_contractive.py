"""Contractive cells: the factor holds for any parameters and is refused where it is gone."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.cells.contractive import ContractiveCell
from wellposed.cells.contractive_conv import ContractiveConv2d
from wellposed.certify import contraction
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.testing import check_cell, check_rule

UGLY = {
    "plain": lambda p: p,
    "x10": lambda p: 10 * p,
    "x1e3": lambda p: 1e3 * p,
    "x1e-3": lambda p: 1e-3 * p,
    "positive": lambda p: p.abs(),
    "signs": lambda p: p * (1 - 2 * (torch.rand_like(p) < 0.5).to(p)),
    "bfloat16": lambda p: p.bfloat16().to(p),
    "one row": lambda p: torch.cat([1e4 * p[:1], p[1:]]),
}


def dense(**options):
    return ContractiveCell(5, 6, **options)


def conv(**options):
    return ContractiveConv2d(1, 3, image=(7, 6), stride=2, **options)


def spoil(cell, ugly):
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(UGLY[ugly](parameter))
    return cell


@pytest.mark.parametrize("make", [dense, conv])
def test_cells_conform(make):
    torch.manual_seed(0)
    x = torch.randn(4, *make().explicit().B.in_shape)
    assert check_cell(make(), x).evaluations < 80


@pytest.mark.parametrize("make", [dense, conv])
@pytest.mark.parametrize("ugly", UGLY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_factor_holds_for_any_parameters(make, ugly, dtype):
    torch.manual_seed(1)
    cell = spoil(make(bound=0.9).to(dtype), ugly)
    factor = contraction(wp.Equilibrium(cell)).value
    A = cell.explicit().A.detach().to(torch.float64).materialise()
    assert float(torch.linalg.matrix_norm(A, 2)) <= factor * (1 + 1e-13)
    assert factor <= 0.9 * (1 + 1e-10)  # the bracket's own width
    if ugly in ("x10", "x1e3") and dtype == torch.float32:
        assert factor >= 0.9 * (1 - 1e-3)


@pytest.mark.parametrize("make", [dense, conv])
def test_training_steps_keep_the_factor(make):
    torch.manual_seed(2)
    cell = make(bound=0.95)
    layer = wp.Equilibrium(cell, gradient=wp.OneStep())
    x = torch.randn(8, *cell.explicit().B.in_shape)
    optimiser = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        optimiser.zero_grad()
        (-layer(x).square().mean()).backward()
        optimiser.step()
    assert contraction(layer).value <= 0.95


@pytest.mark.parametrize("make", [dense, conv])
def test_lipschitz_rule_is_sound(make):
    torch.manual_seed(3)
    sample = torch.randn(3, *make().explicit().B.in_shape)
    report = check_rule(lambda: wp.Equilibrium(make()), sample, rounds=1)
    assert report.checked >= 15
    assert report.refused == 0


def test_lipschitz_is_attained_on_a_witness():
    # one neuron, always active: z = 0.5 z + 2 x + 10 moves by 4 for each unit of x
    cell = ContractiveCell(1, 1, bound=0.5, dtype=torch.float64)
    with torch.no_grad():
        cell.W.fill_(0.5)
        cell.inject.weight.fill_(2.0)
        cell.inject.bias.fill_(10.0)
    for norm in ("max", "1", "2"):
        assert wp.lipschitz(cell, norm_in=norm).value == pytest.approx(4, rel=1e-12)


def test_two_norm_bound_exists_where_the_max_norm_does_not_contract():
    torch.manual_seed(4)
    cell = ContractiveCell(4, 12, bound=0.95)
    with torch.no_grad():
        cell.W.copy_(torch.linalg.qr(torch.randn(12, 12))[0])
    found = wp.lipschitz(cell, norm_in="2").value
    reach = float(torch.linalg.matrix_norm(cell.inject.weight.detach(), 2))
    assert found == pytest.approx(reach / (1 - contraction(cell).value), rel=1e-5)
    assert wp.lipschitz(cell, norm_in="max").value < float("inf")


def test_the_error_bound_is_proved_in_the_two_norm():
    torch.manual_seed(5)
    cell = ContractiveCell(4, 12, bound=0.95)
    with torch.no_grad():
        cell.W.copy_(torch.linalg.qr(torch.randn(12, 12))[0])
    x = torch.randn(6, 4)
    rough = wp.Equilibrium(cell, eval_stopping=wp.Stopping(1e-2)).eval()
    found = rough.solve(x)
    # the map that was solved, in double precision
    map_ = cell.bind(x)
    exact = map_.with_tensors(tuple(t.detach().double() for t in map_.tensors))
    z = found.value.detach().double()
    for _ in range(2000):
        z = exact(z)
    gap = (found.value.detach().double() - z).abs().amax(1)
    assert found.error_bound is not None
    assert (gap <= found.error_bound).all()
    assert (found.error_bound <= 1e3 * gap + 1e-3).all()


@pytest.mark.parametrize("make", [dense, conv])
def test_an_edited_guarantee_is_refused(make):
    cell = make()
    cell.bound = 1.5
    with torch.no_grad():
        (cell.W if isinstance(cell, ContractiveCell) else cell.K).mul_(100)
    with pytest.raises(NotCertifiableError, match="expected below 1"):
        contraction(cell)
    with pytest.raises(NotCertifiableError, match="expected below 1"):
        wp.lipschitz(cell, norm_in="2")
    assert (
        wp.Equilibrium(cell, on_failure="ignore")
        .solve(torch.randn(2, *cell.explicit().B.in_shape))
        .error_bound
        is None
    )


def test_weights_that_are_no_numbers_are_refused():
    cell = dense()
    with torch.no_grad():
        cell.inject.bias.fill_(float("nan"))
    with pytest.raises(NotCertifiableError, match="NaN"):
        contraction(cell)


def test_only_cells_with_weights_have_a_factor():
    with pytest.raises(NotCertifiableError, match="no explicit weights"):
        contraction(wp.Equilibrium(wp.FreeCell(nn.Bilinear(2, 2, 2), start=(2,))))


@pytest.mark.parametrize("bound", [0.0, -0.1, 1.0, float("nan"), float("inf")])
def test_bounds_outside_of_the_interval_are_refused(bound):
    for make in (dense, conv):
        with pytest.raises(ConfigError, match="bound"):
            make(bound=bound)


def test_steep_activations_ask_for_smaller_bounds():
    with pytest.raises(ConfigError, match="slopes reach"):
        dense(bound=0.95, activation=wp.GELU())
    cell = dense(bound=0.8, activation=wp.GELU())
    assert contraction(cell).value <= 0.8 * wp.GELU().steepest * (1 + 1e-12)


def test_bad_kernels_and_images_are_refused():
    with pytest.raises(ConfigError, match="odd"):
        conv(kernel=4)
    with pytest.raises(ConfigError, match="padding"):
        conv(padding="reflect")
    with pytest.raises(ShapeError, match="wraps more than once"):
        ContractiveConv2d(1, 2, image=(2, 2), kernel=7, padding="circular")
    with pytest.raises(ShapeError, match="expected"):
        conv().bind(torch.randn(2, 1, 9, 9))
    with pytest.raises(ShapeError, match="dtype"):
        conv().bind(torch.randn(2, 1, 7, 6, dtype=torch.float64))


def test_channels_last_is_the_same():
    cell = conv()
    x = torch.randn(2, 1, 7, 6)
    layer = wp.Equilibrium(cell).eval()
    assert torch.allclose(layer(x), layer(x.to(memory_format=torch.channels_last)), atol=1e-6)


@pytest.mark.parametrize("make", [dense, conv])
def test_gradients_are_right(make):
    torch.manual_seed(6)
    cell = make(dtype=torch.float64)
    spoil(cell, "x10")  # so that the norm is in force
    x = torch.randn(2, *cell.explicit().B.in_shape, dtype=torch.float64)
    layer = wp.Equilibrium(cell, stopping=wp.Stopping(1e-13, 1e-15))
    weight = cell.W if isinstance(cell, ContractiveCell) else cell.K
    direction = torch.randn_like(weight)

    def value(step):
        with torch.no_grad():
            weight.add_(step * direction)
        y = layer(x).sin().sum()
        with torch.no_grad():
            weight.sub_(step * direction)
        return float(y.detach())

    (grad,) = torch.autograd.grad(layer(x).sin().sum(), weight)
    h = 1e-6
    slope = (value(h) - value(-h)) / (2 * h)
    assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_networks_of_dense_cells_are_well_posed():
    torch.manual_seed(7)
    cell = ContractiveCell(4, 12, bound=0.95)
    with torch.no_grad():
        cell.W.copy_(torch.linalg.qr(torch.randn(12, 12))[0])
    affine = cell.explicit()
    readout = nn.Linear(12, 2)
    witness = wp.wellposedness(
        wp.Network.of(affine.A.weight, affine.B.weight, affine.bias, readout.weight, readout.bias)
    )
    assert witness.margin > 0
    assert witness.kind == "monotone"
