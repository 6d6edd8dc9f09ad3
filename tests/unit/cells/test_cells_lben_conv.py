"""Convolutional LBEN: the inequality for any parameters, solvers, gradients, bad arguments."""

import pytest
import torch
from torch.nn import functional as F

from wellposed.cells.kernels import by_phase, cogram
from wellposed.cells.lben_conv import LbenConv2d
from wellposed.core.activations import GELU, LeakyReLU, ReLU, Tanh
from wellposed.core.operators import Convolution
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.lben_conv import LBENConv
from wellposed.solvers.base import Stopping
from wellposed.solvers.splitting import DouglasRachford, PeacemanRachford
from wellposed.testing import check_cell

TIGHT = Stopping(rtol=1e-12, max_evaluations=5000)
SHAPES = {
    "plain": {"image": (5, 6)},
    "strided": {"image": (8, 6), "stride": 2, "inject": 5},
    "odd": {"image": (7, 9), "stride": 2, "inject": 5, "padding": "zeros"},
    "zeros": {"image": (5, 6), "padding": "zeros"},
    "apart": {"image": (6, 9), "stride": 3, "inject": 1, "kernel": 1},
    "whole": {"image": (5, 5), "kernel": 5},
}


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wild(module, scale, *, rounding=False, seed=3):
    """Random parameters of a given size, maybe rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            if rounding:
                p.copy_(p.bfloat16())
    return module


def make(name="plain", c_out=2, dtype=torch.float64, **options):
    given = {"gamma": 0.7, **SHAPES[name], **options}
    return LbenConv2d(2, 3, c_out, dtype=dtype, **given)


def inequality(cell):
    """``K^-1 (Z - (C^T C + Lam U U^T Lam) / gamma) K^-1`` by its matrices, least eigenvalue."""
    affine = cell.explicit().double()
    W, U = affine.A.materialise(), affine.B.materialise()
    k = affine.metric.expand(affine.A.out_shape).flatten().sqrt()
    pixels = affine.A.out_shape[1] * affine.A.out_shape[2]
    C = torch.eye(3).double() if cell.readout is None else cell.readout.weight[:, :, 0, 0].double()
    C = torch.kron(C.detach(), torch.eye(pixels).double()) / k
    H = torch.eye(len(W)).double() - k[:, None] * W / k
    V = k[:, None] * U
    gain = 0 if cell.gamma is None else (C.mT @ C + V @ V.mT) / cell.gamma
    return float(torch.linalg.eigvalsh(H + H.mT - gain)[0]), float(H.abs().sum(1).amax())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("c_out", [None, 2])
def test_the_inequality_holds_for_any_parameters_by_its_matrices(name, scale, c_out):
    for dtype, rounding in ((torch.float64, False), (torch.float32, True)):
        cell = wild(make(name, c_out, dtype), scale, rounding=rounding)
        found, size = inequality(cell)
        # as far as an eigenvalue in float64 can tell
        assert found >= 2 * cell.margin - 1e-13 * size


@pytest.mark.parametrize("name", ["plain", "strided", "apart"])
def test_the_margin_is_attained_by_a_singular_factor(name):
    cell = wild(make(name, margin=0.3), 0.7)
    with torch.no_grad():
        cell.F[:, 0] = 0
    assert inequality(cell)[0] == pytest.approx(0.6, abs=1e-9)
    cell = make(name, gamma=None, margin=0.3)
    with torch.no_grad():
        cell.F.zero_()
    assert inequality(cell)[0] == pytest.approx(0.6, abs=1e-9)


@pytest.mark.parametrize(("stride", "side", "image"), [(1, 3, (5, 6)), (2, 5, (8, 6)),
                                                       (3, 5, (9, 6)), (4, 3, (4, 8))])  # fmt: skip
def test_aliased_frequencies_are_folded(stride, side, image):
    kernel = rand(3, 2, side, side)
    U = Convolution(kernel, image, "circular", stride)
    both = Convolution(cogram(kernel, stride), U.out_shape[1:], "circular").materialise()
    one = U.materialise()
    assert torch.allclose(one @ one.mT, both, atol=1e-12)
    x = rand(1, 2, *image)
    apart = Convolution(by_phase(kernel, stride), U.out_shape[1:], "circular")
    assert torch.allclose(apart.apply(F.pixel_unshuffle(x, stride)), U.apply(x), atol=1e-12)


@pytest.mark.parametrize("name", ["strided", "odd", "apart"])
def test_the_conformance_kit_accepts_it(name):
    cell = wild(make(name, c_out=None, margin=0.5), 0.2)
    with torch.no_grad():
        # with ones as metric the plain 2-norm shows it
        cell.log_scale.zero_()
    assert check_cell(cell, rand(3, *cell.explicit().B.in_shape)).log_norm < 1


@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh()], ids=lambda a: a.name)
@pytest.mark.parametrize("solver", [None, DouglasRachford()], ids=str)
@pytest.mark.parametrize("name", ["strided", "zeros"])
def test_splittings_reach_the_equilibrium(activation, solver, name):
    cell = wild(make(name, activation=activation), 0.8)
    layer = Equilibrium(cell, solver=solver, eval_stopping=TIGHT).eval()
    x = rand(4, *cell.explicit().B.in_shape)
    z = layer(x)
    assert isinstance(layer.solver, DouglasRachford if solver else PeacemanRachford)
    assert torch.allclose(cell.bind(x)(z), z, atol=1e-8)


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_gradients_are_those_of_finite_differences(name):
    net = LBENConv(
        2, 3, 2, gamma=0.8, stopping=TIGHT, eval_stopping=TIGHT, dtype=torch.float64, **SHAPES[name]
    )
    wild(net, 0.4).eval()
    x = rand(2, *net.cell.explicit().B.in_shape)
    weight = rand(*net(x).shape, seed=5)

    def value():
        return (net(x) * weight).sum()

    value().backward()
    with torch.no_grad():
        for name, p in net.named_parameters():
            flat, grad = p.data.view(-1), p.grad.view(-1)
            for k in range(0, len(flat), 31):
                old, step = float(flat[k]), 1e-5
                flat[k] = old + step
                up = float(value())
                flat[k] = old - step
                down = float(value())
                flat[k] = old
                want = pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7)
                assert float(grad[k]) == want, name


def test_second_derivatives_of_the_weights_are_right():
    cell = LbenConv2d(1, 2, 1, gamma=0.7, image=(4, 4), kernel=1, inject=3, stride=2,
                      dtype=torch.float64)  # fmt: skip
    wild(cell, 0.5)
    names = [n for n, _ in cell.named_parameters() if n not in ("bias", "readout.bias")]
    given = tuple(cell.get_parameter(n).detach().clone().requires_grad_() for n in names)

    def kernel(*tensors):
        parts = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(_Kernel(cell), {f"cell.{n}": t for n, t in parts.items()})

    assert torch.autograd.gradcheck(kernel, given)
    assert torch.autograd.gradgradcheck(kernel, given)


class _Kernel(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self):
        return self.cell.explicit().A.kernel


def test_odd_sizes_layouts_and_precisions_agree():
    net = wild(LBENConv(2, 3, 4, gamma=2.0, dtype=torch.float32, **SHAPES["odd"]), 0.3).eval()
    x = rand(3, 2, 7, 9, dtype=torch.float32)
    y = net(x)
    assert y.shape == (3, 4, 4, 5)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last)), y, atol=1e-5)
    assert torch.allclose(net.double()(x.double()).float(), y, atol=1e-4)


def test_mixed_precision_keeps_the_weights():
    cell = wild(make(dtype=torch.float32), 1.0)
    plain = cell.explicit().A.kernel
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cell.explicit().A.kernel, plain)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds_that_bound_nothing_are_refused(gamma):
    with pytest.raises(ConfigError, match="`gamma` must be positive"):
        make(gamma=gamma)


def test_other_arguments_are_refused():
    with pytest.raises(ConfigError, match="`margin` must be positive"):
        make(margin=0.0)
    with pytest.raises(ConfigError, match="odd"):
        make(kernel=2)
    with pytest.raises(ConfigError, match="padding"):
        make(padding="mirror")
    with pytest.raises(ConfigError, match="slopes"):
        make(activation=GELU())
    with pytest.raises(ShapeError, match="`c_out`"):
        make(c_out=0)
    with pytest.raises(ShapeError, match="state kernel has side 7"):
        make(kernel=7, inject=3)
    with pytest.raises(ShapeError, match="input kernel has side 7"):
        make(kernel=3, inject=7)
    with pytest.raises(ShapeError, match="stride 2 needs"):
        make(stride=2)  # 5 rows
    cell = make()
    with pytest.raises(ShapeError, match="expected"):
        cell.bind(rand(2, 2, 6, 6))
    with pytest.raises(ShapeError, match="dtype"):
        cell.bind(rand(2, 2, 5, 6, dtype=torch.float32))
