"""The gain of convolutional LBEN: sound, tight, refused where it does not hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.cells.lben_conv import LbenConv2d
from wellposed.certify.enclose import enclose
from wellposed.certify.lmi import joint_gain
from wellposed.certify.lower import lower
from wellposed.certify.monotone import modulus, two_norm_gain
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.points import Points
from wellposed.core.activations import GELU
from wellposed.core.network import Network
from wellposed.core.norms import TwoNorm
from wellposed.core.operators import Convolution
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.lben_conv import LBENConv
from wellposed.nn.normalise import Normalise
from wellposed.nn.stiefel import stiefel
from wellposed.solvers.base import Stopping
from wellposed.testing import check_rule

TIGHT = Stopping(rtol=1e-12, max_evaluations=20000)
SHAPES = {
    "plain": {"image": (5, 6)},
    "strided": {"image": (8, 6), "stride": 2, "inject": 5},
    "odd": {"image": (7, 9), "stride": 2, "inject": 5, "padding": "zeros"},
    "zeros": {"image": (4, 5), "padding": "zeros"},
    "apart": {"image": (6, 9), "stride": 3, "inject": 1, "kernel": 1},
}


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wild(module, scale, *, signs=False, rounding=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            value = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            value = value.sign() if signs else value
            p.copy_(scale * (value.bfloat16() if rounding else value))
    return module


def make(name="plain", gamma=0.7, dtype=torch.float64, **options):
    return LBENConv(2, 3, 2, gamma=gamma, dtype=dtype, eval_stopping=TIGHT,
                    **{**SHAPES[name], **options}).eval()  # fmt: skip


def measured(cell):
    readout = None if cell.readout is None else cell.readout.weight[:, :, 0, 0]
    return two_norm_gain(cell.explicit(), readout)


def matrices(cell):
    affine = cell.explicit().double()
    A, B = affine.A.materialise(), affine.B.materialise()
    pixels = torch.eye(affine.A.out_shape[1] * affine.A.out_shape[2]).double()
    C = torch.eye(affine.A.out_shape[0]).double()
    C = C if cell.readout is None else cell.readout.weight[:, :, 0, 0].detach().double()
    return A, B, torch.kron(C, pixels), affine.metric.expand(affine.A.out_shape).flatten()


def stretched(A, B, C, draws=4, steps=8):
    """The largest 2-norm of ``C (I - [d] A)^-1 [d] B`` over slopes that were drawn and attacked."""
    generator = torch.Generator().manual_seed(1)
    eye, best = torch.eye(len(A), dtype=A.dtype), 0.0
    for draw in range(draws):
        d = torch.rand(len(A), generator=generator, dtype=A.dtype)
        d = (d < 0.2 * (2 + draw)).to(A.dtype) if draw % 2 else d
        for _ in range(steps):
            P = eye - d[:, None] * A
            inside = torch.linalg.solve(P, d[:, None] * B)
            U, s, Vh = torch.linalg.svd(C @ inside, full_matrices=False)
            best = max(best, float(s[0]))
            # derivative of u^T J v with respect to d: one term a neuron
            left = torch.linalg.solve(P.mT, C.mT @ U[:, 0])
            d = (left * (A @ (inside @ Vh[0]) + B @ Vh[0]) > 0).to(A.dtype)
    return best


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("ugly", [{}, {"signs": True}, {"rounding": True}], ids=str)
def test_the_gain_is_proved_for_any_parameters_and_holds(name, scale, ugly):
    for dtype, gamma, c_out in ((torch.float32, 0.1, 2), (torch.float64, 7.0, None)):
        cell = LbenConv2d(2, 3, c_out, gamma=gamma, dtype=dtype, **SHAPES[name])
        bound = measured(wild(cell, scale, **ugly))
        assert bound <= gamma
        A, B, C, _ = matrices(cell)
        assert stretched(A, B, C, draws=1, steps=1) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_attacked_slopes_stay_below_the_gain(name):
    cell = wild(make(name).cell, 0.6)
    A, B, C, _ = matrices(cell)
    bound, found = measured(cell), stretched(A, B, C)
    assert found <= bound
    # border pixels have less than the torus that stands for them
    assert found > 0.3 * bound


@pytest.mark.parametrize("name", SHAPES)
def test_frequencies_say_what_the_whole_matrix_says(name):
    cell = wild(make(name).cell, 0.6)
    A, B, C, lam = matrices(cell)
    net = Network.of(A, B, torch.zeros(len(A)), C, torch.zeros(len(C)), metric=lam)
    whole, bound = joint_gain(PairwiseL2.of(net, lam)).gain, measured(cell)
    assert bound >= whole * (1 - 1e-6)
    if cell.padding == "circular":
        assert bound == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gamma_is_attained(stride):
    # one channel: H = margin + (c^2 + u^2) / (2 gamma), and all slopes one give c u / H
    cell = LbenConv2d(1, 1, 1, image=(4, 6), gamma=0.7, kernel=1, inject=1, stride=stride)
    with torch.no_grad():
        for p in cell.parameters():
            p.zero_()
        cell.inject.fill_(1e3)
        cell.readout.weight.fill_(1e3)
    true = 1e6 / (0.1 + 1e6 / 0.7)
    assert true * (1 - 1e-5) <= measured(cell) <= 0.7
    A, B, C, _ = matrices(cell)
    J = C @ torch.linalg.solve(torch.eye(len(A)).double() - A, B)
    assert measured(cell) >= float(torch.linalg.matrix_norm(J, 2)) >= 0.7 * (1 - 1e-5)


def test_without_gamma_the_bound_is_not_kept_but_measured():
    layer = wild(make(gamma=None), 3.0)
    bound = wp.lipschitz(layer, norm_in="2").value
    assert layer.gamma is None
    assert 0.7 < bound < torch.inf
    A, B, C, _ = matrices(layer.cell)
    assert stretched(A, B, C) <= bound


# the attack may stop short of its own tolerance: it is then a weaker attack
@pytest.mark.filterwarnings("ignore:Adjoint equation")
def test_the_rule_passes_the_conformance_kit():
    def small():
        return LBENConv(1, 2, 1, gamma=0.7, image=(4, 4), kernel=1, inject=3, stride=2,
                        dtype=torch.float64,
                        eval_stopping=Stopping(1e-5, max_evaluations=500)).eval()  # fmt: skip

    report = check_rule(small, rand(2, 1, 4, 4), norms=(TwoNorm(),), rounds=1)
    assert report.refused == 0
    assert report.tightest >= 1


def test_training_does_not_lose_the_bound():
    layer = make("strided", dtype=torch.float32).train()
    model = nn.Sequential(layer, nn.Flatten(), stiefel(nn.Linear(24, 3)))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    x, y = rand(16, 2, 8, 6).float(), torch.arange(16) % 3
    for _ in range(12):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(30 * model(x), y)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1
    assert wp.lipschitz(layer.eval(), norm_in="2").value <= 0.7


def test_pairs_of_inputs_never_exceed_it():
    for seed in range(3):
        layer = wild(make("odd"), 0.7, seed=seed)
        bound = wp.lipschitz(layer, norm_in="2").value
        x = rand(60, 2, 7, 9, seed=seed)
        size = 10.0 ** -torch.arange(60.0).remainder(5).double()
        near = x + size[:, None, None, None] * rand(60, 2, 7, 9, seed=seed + 9)
        with torch.no_grad():
            moved = (layer(x) - layer(near)).flatten(1).norm(dim=1)
        assert float((moved / (x - near).flatten(1).norm(dim=1)).max()) <= bound * (1 + 1e-6)


def test_pooling_and_an_orthogonal_readout_keep_it():
    layer = make("strided")
    bare = wp.lipschitz(layer, norm_in="2").value
    model = nn.Sequential(
        Normalise((0.1, 0.2), (0.25, 0.5)), layer, nn.AvgPool2d((4, 1)), nn.Flatten(),
        stiefel(nn.Linear(6, 4, dtype=torch.float64)),
    ).eval()  # fmt: skip
    whole = wp.lipschitz(model, norm_in="2", in_shape=(2, 8, 6)).value
    # 4 by division by 1/4, 1/2 by averages of four
    assert whole == pytest.approx(2 * bare, rel=1e-6)


def test_weights_edited_by_hand_lose_the_bound():
    cell = wild(make("strided").cell, 0.6)
    affine, C = cell.explicit().double(), cell.readout.weight[:, :, 0, 0]
    before = two_norm_gain(affine, C)
    assert two_norm_gain(affine, 3 * C) == pytest.approx(3 * before, rel=1e-5)
    larger = replace(affine, B=affine.B.with_weight(3 * affine.B.weight))
    assert two_norm_gain(larger, C) == pytest.approx(3 * before, rel=1e-5)
    kernel = affine.A.weight.clone()
    kernel[0, 0, kernel.shape[2] // 2, kernel.shape[3] // 2] = 1.5
    with pytest.raises(NotCertifiableError, match="monotonicity"):
        two_norm_gain(replace(affine, A=affine.A.with_weight(kernel)), C)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(NotCertifiableError, match="NaN"):
            two_norm_gain(affine, C * wrong)


def test_a_metric_is_only_a_hint():
    cell = wild(make("plain", margin=0.5).cell, 0.2)
    affine, C = cell.explicit().double(), cell.readout.weight[:, :, 0, 0]
    best = two_norm_gain(affine, C)
    other = replace(affine, metric=affine.metric * torch.tensor([1.0, 1.2, 0.9])[:, None, None])
    A, B, whole, _ = matrices(cell)
    assert two_norm_gain(other, C) >= stretched(A, B, whole)
    assert two_norm_gain(other, C) != best
    with pytest.raises(NotCertifiableError, match="metric"):
        two_norm_gain(replace(affine, metric=-affine.metric), C)


def test_borders_that_differ_have_the_product_of_norms_alone():
    cell = wild(make("plain").cell, 0.4)
    affine, C = cell.explicit().double(), cell.readout.weight[:, :, 0, 0]
    B = Convolution(affine.B.weight, (5, 6), "zeros")
    mixed = replace(affine, B=B)
    _, _, whole, _ = matrices(cell)
    bound = two_norm_gain(mixed, C)
    assert bound >= stretched(affine.A.materialise(), B.materialise(), whole)
    assert bound >= two_norm_gain(affine, C)


def test_a_parameter_edited_to_break_the_inequality_is_noticed():
    layer = make("strided")
    layer.cell.margin = -1e3
    with pytest.raises(NotCertifiableError, match="monotonicity"):
        wp.lipschitz(layer, norm_in="2")
    layer = make("strided")
    layer.cell.activation = GELU()
    with pytest.raises(NotCertifiableError, match="slopes"):
        wp.lipschitz(layer, norm_in="2")


def test_another_cell_or_readout_than_the_rule_describes_is_refused():
    layer = make()
    layer.layer.cell = make().cell
    with pytest.raises(NotCertifiableError, match="another cell"):
        wp.lipschitz(layer, norm_in="2")
    for options in ({"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 2}):
        layer = make()
        layer.cell.readout = nn.Conv2d(3, 2, dtype=torch.float64, **options)
        with pytest.raises(NotCertifiableError, match="convolution of side 1"):
            wp.lipschitz(layer, norm_in="2")
    layer = make()
    layer.cell.readout.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(NotCertifiableError, match="hooks"):
        wp.lipschitz(layer, norm_in="2")
    with pytest.raises(ShapeError, match="takes inputs of shape"):
        wp.lipschitz(make(), norm_in="2", in_shape=(2, 6, 6))


def test_boxes_hold_where_the_max_norm_contracts():
    layer = wild(make("plain", margin=1.0), 0.02)
    x = rand(3, 2, 5, 6)
    box = enclose(layer, Box(x - 1e-3, x + 1e-3))
    with torch.no_grad():
        for point in (x, x + 1e-3, x - 1e-3):
            y = layer(point)
            assert bool(((box.lower <= y) & (y <= box.upper)).all())


@pytest.mark.parametrize("name", ["strided", "odd"])
def test_the_lowered_network_has_the_same_outputs(name):
    layer = wild(make(name), 0.5)
    net = lower(layer, layer.cell.explicit().B.in_shape).network()
    A, B, C, lam = matrices(layer.cell)
    n = len(A)
    # taps that wrap around to the same pixel are added in another order
    assert torch.allclose(net.W[:n, :n], A, rtol=1e-14)
    assert torch.equal(net.U[:n], B)
    assert torch.equal(net.C[:, :n], C)
    assert torch.equal(net.metric[:n], lam)


@pytest.mark.parametrize("name", ["strided", "odd"])
def test_outputs_at_points_are_within_their_proved_errors(name):
    layer = wild(make(name), 0.8)
    model = nn.Sequential(
        layer, nn.Flatten(), stiefel(nn.Linear(24 if name == "strided" else 40, 4).double())
    )
    points = Points(lower(model, layer.cell.explicit().B.in_shape))
    x = rand(5, *layer.cell.explicit().B.in_shape)
    found = points.outputs(x.flatten(1))
    assert float(found.error.max()) < 1e-7
    with torch.no_grad():
        y = model(x)
    assert bool(((found.value - y).abs() <= found.error + 1e-9).all())
    label = y.argmax(1)
    gaps = points.gaps(x.flatten(1), label)
    true = y.gather(1, label[:, None]) - y
    assert bool(((gaps.lower <= true + 1e-9) & (true <= gaps.upper + 1e-9)).all())
    assert bool((gaps.upper - gaps.lower < 1e-6).all())


def test_points_of_what_is_not_monotone_are_refused():
    layer = make("plain")
    layer.cell.margin = -30.0
    with pytest.raises(NotCertifiableError, match="monotonicity"):
        Points(lower(layer, (2, 5, 6)))
    assert modulus(make("plain").cell.explicit()) > 0.09
