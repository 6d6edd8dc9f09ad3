"""LBEN: the inequality for any parameters, solvers, gradients, the path beside, bad arguments."""

import pytest
import torch

from wellposed.cells.lben import LBENCell
from wellposed.certify.lben import explicit_network
from wellposed.certify.lmi import joint_gain
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.wellposed import monotone_margin
from wellposed.core.activations import GELU, LeakyReLU, ReLU, Tanh
from wellposed.core.norms import MaxNorm
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.lben import LBEN
from wellposed.solvers.base import Stopping
from wellposed.solvers.splitting import DouglasRachford, PeacemanRachford
from wellposed.testing import check_cell

TIGHT = Stopping(rtol=1e-12, max_evaluations=5000)


def wild(module, scale, rounding=False, seed=3):
    """Random parameters of a given size, maybe rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            if rounding:
                p.copy_(p.bfloat16())
    return module


def inequality(net, gamma):
    """Smallest eigenvalue of the published matrix inequality, by its blocks."""
    lam = net.metric
    eye = torch.eye(net.n).double()
    Z = lam[:, None] * (eye - net.W)
    Z = Z + Z.mT
    cross = -(lam[:, None] * net.U) - net.C.mT @ net.D / gamma
    top = torch.cat([Z - net.C.mT @ net.C / gamma, cross], 1)
    low = torch.cat([cross.mT, gamma * torch.eye(net.d).double() - net.D.mT @ net.D / gamma], 1)
    return float(torch.linalg.eigvalsh(torch.cat([top, low]))[0])


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0])
@pytest.mark.parametrize("skip", [False, True])
def test_the_published_inequality_holds_by_its_blocks(scale, skip):
    layer = wild(LBEN(6, 9, 4, gamma=0.7, skip=skip, dtype=torch.float64), scale)
    size = 1 + scale**4
    assert inequality(explicit_network(layer), 0.7) >= -1e-9 * size


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rounding", [False, True])
def test_the_gain_is_proved_for_any_parameters(scale, dtype, skip, rounding):
    for gamma in (0.1, 1.0, 7.0):
        layer = wild(LBEN(7, 11, 4, gamma=gamma, skip=skip, dtype=dtype), scale, rounding)
        net = explicit_network(layer)
        assert monotone_margin(net.W, net.metric) > 0
        assert joint_gain(PairwiseL2.of(net, net.metric)).gain <= gamma


def test_margin_is_what_the_symmetric_part_has_at_least():
    cell = wild(LBENCell(3, 8, 2, gamma=None, margin=0.3, dtype=torch.float64), 1.0)
    with torch.no_grad():
        cell.V[:, 0] = 0
    affine = cell.explicit()
    H = affine.metric[:, None] * (torch.eye(8).double() - affine.A.matrix)
    least = float(torch.linalg.eigvalsh((H + H.mT).detach() / 2)[0])
    # attained, because V is singular
    assert least == pytest.approx(0.3, abs=1e-9)


def test_without_gamma_the_bound_is_not_kept():
    layer = wild(LBEN(6, 9, 4, gamma=None, dtype=torch.float64), 3.0)
    net = explicit_network(layer)
    assert joint_gain(PairwiseL2.of(net, net.metric)).gain > 5
    assert layer.gamma is None


@pytest.mark.parametrize("solver", [PeacemanRachford(), DouglasRachford()], ids=str)
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh()], ids=lambda a: a.name)
def test_splitting_reaches_the_equilibrium_where_the_max_norm_expands(solver, activation):
    layer = LBEN(5, 20, 3, gamma=0.5, activation=activation, solver=solver, eval_stopping=TIGHT,
                 dtype=torch.float64)  # fmt: skip
    wild(layer, 1.5).eval()
    assert float(MaxNorm().log_norm(layer.cell.explicit().A.matrix.detach())) > 1
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = layer.layer(x)
    assert torch.allclose(layer.cell.bind(x)(z), z, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_gradients_are_those_of_finite_differences(skip):
    layer = LBEN(3, 6, 2, gamma=0.8, skip=skip, stopping=TIGHT, eval_stopping=TIGHT,
                 dtype=torch.float64)  # fmt: skip
    wild(layer, 0.7).eval()
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value():
        return (layer(x) * torch.arange(1.0, 3.0, dtype=torch.float64)).sum()

    value().backward()
    for name, p in layer.named_parameters():
        flat, grad = p.data.view(-1), p.grad.view(-1)
        for k in range(0, len(flat), 5):
            old, step = float(flat[k]), 1e-5
            flat[k] = old + step
            up = float(value().detach())
            flat[k] = old - step
            down = float(value().detach())
            flat[k] = old
            want = pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)
            assert float(grad[k]) == want, name


def test_the_adjoint_is_solved_where_plain_iteration_diverges():
    layer = wild(LBEN(20, 40, 5, gamma=0.5), 2.0)
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    layer(x).square().mean().backward()
    assert bool((layer.layer.last.adjoint.status == 0).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


def test_check_cell_accepts_it():
    cell = wild(LBENCell(4, 12, 3, gamma=0.5), 0.2)
    with torch.no_grad():
        cell.log_psi.zero_()
    # with ones as metric the plain 2-norm shows it
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert check_cell(_without_readout(cell), x).log_norm < 1


def _without_readout(cell):
    # the readout has no part in the map but through the weights, and its bias none at all
    cell.readout.bias.requires_grad_(False)
    return cell


def test_the_path_beside_stays_below_gamma():
    for scale in (1e-2, 1.0, 1e3):
        layer = wild(LBEN(6, 5, 4, gamma=0.3, skip=True), scale)
        D = layer.cell.direct().detach().double()
        assert float(torch.linalg.matrix_norm(D, ord=2)) < 0.3
    layer, x = wild(LBEN(6, 5, 4, gamma=0.3, skip=True), 1.0).eval(), torch.randn(4, 6)
    assert not torch.allclose(layer(x), layer.cell.readout(layer.layer(x)))


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_that_bound_nothing_are_refused(gamma):
    with pytest.raises(ConfigError, match="`gamma` must be positive"):
        LBEN(3, 4, 2, gamma=gamma)


def test_other_arguments_are_refused():
    with pytest.raises(ConfigError, match="`margin` must be positive"):
        LBEN(3, 4, 2, gamma=1.0, margin=0.0)
    with pytest.raises(ConfigError, match="`skip` needs `gamma`"):
        LBEN(3, 4, 2, gamma=None, skip=True)
    with pytest.raises(ConfigError, match="slopes"):
        LBEN(3, 4, 2, gamma=1.0, activation=GELU())
    with pytest.raises(ShapeError, match="`n_out`"):
        LBEN(3, 4, 0, gamma=1.0)
    with pytest.raises(ShapeError, match="dtype"):
        LBEN(3, 4, 2, gamma=1.0)(torch.randn(2, 3).double())


def test_mixed_precision_keeps_the_weights():
    layer = wild(LBEN(6, 9, 4, gamma=0.5), 1.0)
    plain = layer.cell.explicit().A.matrix
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.cell.explicit().A.matrix, plain)
