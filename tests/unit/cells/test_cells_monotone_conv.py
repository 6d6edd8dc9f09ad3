"""Convolutional and multi-tier monotone cells: margins, equilibria, gradients, bad input."""

import pytest
import torch

from wellposed.cells.kernels import gram, skew
from wellposed.cells.monotone_conv import MonotoneConv2d
from wellposed.cells.multitier import MultiTierCell
from wellposed.core.activations import GELU, LeakyReLU, ReLU, Tanh
from wellposed.core.operators import Convolution
from wellposed.errors import ConfigError, NonConvergenceError, ShapeError
from wellposed.experiments.families import build
from wellposed.experiments.families.layer import Solve
from wellposed.experiments.families.monotone_conv import MonotoneConv, MultiTier
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping
from wellposed.solvers.splitting import DouglasRachford, PeacemanRachford
from wellposed.testing import check_cell

TIGHT = Stopping(rtol=1e-11, max_evaluations=5000)


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wild(cell, scale, *, rounding=False, seed=3):
    """Random parameters of a given size, maybe rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            if rounding:
                p.copy_(p.bfloat16())
    return cell


def margin_of(cell):
    affine = cell.explicit().double()
    A = affine.A.materialise()
    M = torch.eye(len(A), dtype=A.dtype) - A
    if affine.metric is not None:
        k = affine.metric.sqrt().expand(affine.A.out_shape).flatten()
        M = k[:, None] * M / k
    return float(torch.linalg.eigvalsh((M + M.mT) / 2)[0])


def single(padding="zeros", dtype=torch.float64, **options):
    return MonotoneConv2d(2, 3, image=(5, 6), padding=padding, dtype=dtype, **options)


def scaled(padding="zeros", dtype=torch.float64, **options):
    return single(padding, dtype, scaled=True, **options)


def tiers(padding="zeros", dtype=torch.float64, **options):
    return MultiTierCell(2, (2, 3), image=(8, 12), padding=padding, dtype=dtype, **options)


BOTH = [single, scaled, tiers]


def test_compositions_of_kernels():
    F, image = rand(4, 3, 3, 5), (6, 7)
    one = Convolution(F, image, "circular").materialise()
    both = Convolution(gram(F), image, "circular").materialise()
    assert torch.allclose(one.mT @ one, both, atol=1e-12)
    S = rand(3, 3, 3, 3, seed=1)
    one = Convolution(S, image, "circular").materialise()
    assert torch.equal(one - one.mT, Convolution(skew(S), image, "circular").materialise())


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("rounding", [False, True])
def test_the_margin_holds_for_any_parameters(make, padding, scale, rounding):
    cell = wild(make(padding, torch.float32, margin=0.3), scale, rounding=rounding)
    # the eigenvalue itself is computed in float64
    assert margin_of(cell) >= 0.3 - 1e-9 * (1 + scale**2)


@pytest.mark.parametrize("make", BOTH)
def test_the_margin_is_attained_by_a_singular_factor(make):
    cell = wild(make("circular", margin=0.5), 1.0)
    with torch.no_grad():
        if make in (single, scaled):
            cell.F[:, 0] = 0
        else:
            cell.F[0][:, 0] = 0
            cell.down[0][:, 0] = 0
    assert margin_of(cell) == pytest.approx(0.5, abs=1e-9)


def test_tiers_are_the_published_blocks():
    cell = wild(MultiTierCell(1, (1, 2, 3), image=(8, 16), padding="circular", margin=0.4,
                                kernel=1, inject=3, dtype=torch.float64), 0.5)  # fmt: skip
    affine = cell.explicit()
    z, x = rand(2, *affine.A.in_shape), rand(2, 1, 8, 16, seed=1)
    states, found = cell.tiers(z), cell.tiers(affine.A.apply(z).detach())
    fed = cell.tiers((affine.B.apply(x) + affine.bias).detach())

    def conv(kernel, tier, stride=1):
        return Convolution(kernel.detach(), cell.grids[tier], "circular", stride)

    for i, state in enumerate(states):
        F, S = conv(cell.F[i], i), conv(cell.S[i], i)
        want = 0.6 * state - F.adjoint(F.apply(state)) + S.apply(state) - S.adjoint(state)
        if i < 2:
            down = conv(cell.down[i], i, 2)
            want = want - down.adjoint(down.apply(state))
        if i:
            want = want - 2 * F.adjoint(conv(cell.down[i - 1], i - 1, 2).apply(states[i - 1]))
        assert torch.allclose(found[i], want, atol=1e-9)
        inject = Convolution(cell.inject[i].detach(), (8, 16), "circular", 2**i).apply(x)
        assert torch.allclose(fed[i], inject + cell.bias[i].detach()[:, None, None], atol=1e-12)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_conformance_kit_accepts_them(make, padding):
    cell = wild(make(padding, margin=0.5), 0.3)
    report = check_cell(cell, rand(3, *cell.explicit().B.in_shape))
    assert report.log_norm <= 0.5


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh()], ids=lambda a: a.name)
@pytest.mark.parametrize("solver", [None, DouglasRachford()], ids=str)
def test_default_and_other_splittings_reach_the_equilibrium(make, activation, solver):
    cell = wild(make(activation=activation), 0.6)
    layer = Equilibrium(cell, solver=solver, eval_stopping=TIGHT).eval()
    x = rand(4, *cell.explicit().B.in_shape)
    z = layer(x)
    assert isinstance(layer.solver, DouglasRachford if solver else PeacemanRachford)
    assert torch.allclose(cell.bind(x)(z), z, atol=1e-8)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: a.name)
def test_gradients_are_those_of_finite_differences(make, activation):
    cell = wild(make(activation=activation, margin=0.3), 0.4)
    layer = Equilibrium(cell, stopping=TIGHT, eval_stopping=TIGHT).eval()
    x = rand(2, *cell.explicit().B.in_shape)
    weight = rand(*layer(x).shape, seed=5)

    def value():
        return (layer(x) * weight).sum()

    value().backward()
    assert layer.last.adjoint.converged
    with torch.no_grad():
        for p in cell.parameters():
            flat, grad = p.data.view(-1), p.grad.view(-1)
            for k in range(0, len(flat), 47):
                old, step = float(flat[k]), 1e-5
                flat[k] = old + step
                up = float(value())
                flat[k] = old - step
                down = float(value())
                flat[k] = old
                assert float(grad[k]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7)


def test_odd_sizes_layouts_and_precisions_agree():
    cell = wild(MonotoneConv2d(2, 3, image=(7, 9), stride=2, inject=5), 0.3)
    layer = Equilibrium(cell).eval()
    x = rand(3, 2, 7, 9, dtype=torch.float32)
    z = layer(x)
    assert z.shape == (3, 3, 4, 5)
    assert torch.allclose(layer(x.to(memory_format=torch.channels_last)), z, atol=1e-5)
    wide = Equilibrium(cell.double()).eval()
    assert torch.allclose(wide(x.double()).float(), z, atol=1e-4)


def test_mixed_precision_gives_the_same_state():
    cell = wild(single(dtype=torch.float32), 0.3)
    layer, x = Equilibrium(cell).eval(), rand(2, 2, 5, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(x)
    assert z.dtype == torch.float32
    assert torch.allclose(z, layer(x), atol=0.05)


def test_bad_input_is_refused_by_name():
    cell = single()
    with pytest.raises(ShapeError, match="expected"):
        cell.bind(rand(2, 2, 6, 6))
    with pytest.raises(ShapeError, match="dtype"):
        cell.bind(rand(2, 2, 5, 6, dtype=torch.float32))
    for margin in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="`margin` must be positive"):
            single(margin=margin)
        with pytest.raises(ConfigError, match="`margin` must be positive"):
            tiers(margin=margin)
    for make in BOTH:
        with pytest.raises(ConfigError, match="odd"):
            make(kernel=4)
        with pytest.raises(ConfigError, match="padding"):
            make("mirror")
        with pytest.raises(ConfigError, match="slopes"):
            make(activation=GELU())
    with pytest.raises(ShapeError, match="state kernel has side 7"):
        single(kernel=7, inject=3)
    with pytest.raises(ShapeError, match="input kernel has side 7"):
        single(kernel=3, inject=7)
    with pytest.raises(ShapeError, match="`c_state`"):
        MonotoneConv2d(2, 0, image=(5, 5))
    with pytest.raises(ShapeError, match="at least one tier"):
        MultiTierCell(2, (), image=(8, 8))
    with pytest.raises(ShapeError, match="halve"):
        MultiTierCell(2, (2, 3), image=(7, 8))
    with pytest.raises(ShapeError, match="stride 2 needs"):
        MonotoneConv2d(2, 3, image=(7, 8), padding="circular", stride=2)
    with pytest.raises(ShapeError, match="divides"):
        MultiTierCell(2, (2, 3), image=(7, 8), padding="circular", stride=2)


def test_a_cell_without_its_margin_does_not_pretend_to_converge():
    cell = wild(single(), 1.0)
    cell.margin = -30.0
    layer = Equilibrium(cell, eval_stopping=Stopping(1e-8, max_evaluations=50)).eval()
    with pytest.raises((NonConvergenceError, ConfigError)):
        layer(rand(2, 2, 5, 6))


@pytest.mark.parametrize(
    "section",
    [MonotoneConv(channels=3, stride=2), MultiTier(channels=(2, 3), features=4, stride=1)],
)
def test_the_sections_build_networks(section):
    net = torch.nn.Sequential(*build(section, Solve(), (1, 8, 8), 5))
    assert net.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"model\.pool"):
        build(section.model_copy(update={"pool": 3}), Solve(), (1, 8, 8), 5)
