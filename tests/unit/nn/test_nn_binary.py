"""Signs, estimators by formula, binary layers, and what they do with bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.binary import (
    BinaryConv2d,
    BinaryLinear,
    MeanSize,
    PowerOfTwo,
    anneal,
    real_stem,
    standardised,
    takes_signs,
)
from wellposed.nn.signs import EDE, STE, ReSTE, sign


def gradient(estimator, points, done):
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, len(points) + 1, dtype=torch.float64)
    (sign(x, estimator, done) * weights).sum().backward()
    return (x.grad / weights).tolist()


POINTS = [-2.0, -1.5, -1.2, -1.0, -0.3, -0.05, 0.0, 0.05, 0.1, 0.3, 1.0, 1.0001, 1.6]


def test_the_sign_has_two_values_and_zero_is_positive():
    x = torch.tensor([-3.0, -1e-45, -0.0, 0.0, 1e-45, 3.0, math.inf, -math.inf])
    assert sign(x, STE()).tolist() == [-1, -1, 1, 1, 1, 1, 1, -1]
    assert sign(torch.tensor([math.nan, 1.0]), STE()).isnan().tolist() == [True, False]


def test_the_gradient_of_the_clamp():
    expected = [1.0 if abs(p) <= 1 else 0.0 for p in POINTS]
    assert gradient(STE(), POINTS, 0.3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("done", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("ends", [(1e-3, 10.0), (1e-2, 1.0)])
def test_the_gradient_of_the_tanh(done, ends):
    t = 10 ** ((1 - done) * math.log10(ends[0]) + done * math.log10(ends[1]))
    k = max(1 / t, 1.0)
    expected = [k * t * (1 - math.tanh(t * p) ** 2) for p in POINTS]
    assert gradient(EDE(*ends), POINTS, done) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
def test_the_gradient_of_the_root_and_its_two_ends(done):
    o = 1 + 2 * done

    def slope(p):
        if abs(p) > 1.5:
            return 0.0
        if abs(p) <= 0.1:
            return 0.1 ** (1 / o) / 0.1
        return abs(p) ** ((1 - o) / o) / o

    expected = [slope(p) for p in POINTS]
    assert gradient(ReSTE(), POINTS, done) == pytest.approx(expected, abs=1e-6)
    # the formula is the derivative of the root, away from the two ends
    z = torch.tensor([-1.2, -0.3, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    (z.sign() * z.abs() ** (1 / o)).sum().backward()
    found = gradient(ReSTE(), z.tolist(), done)
    assert found == pytest.approx(z.grad.tolist(), abs=1e-6)


@pytest.mark.parametrize("estimator", [STE(), EDE(), ReSTE()])
def test_derivatives_of_higher_order_and_vmap_are_those_of_the_stand_in(estimator):
    x = torch.tensor([-0.7, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(sign(x, estimator, 0.6).sum(), x, create_graph=True)
    slope = estimator.slope(x, 0.6)
    assert torch.equal(first, slope)
    if first.requires_grad and slope.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), x)
        (expected,) = torch.autograd.grad(slope.sum(), x)
        assert torch.allclose(second, expected)
        assert bool(second.isfinite().all())
    stack = torch.func.vmap(lambda row: sign(row, estimator, 0.6))(x.detach().expand(2, 3))
    assert torch.equal(stack, sign(x.detach(), estimator).expand(2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: STE(0.0),
        lambda: EDE(first=-1.0),
        lambda: EDE(last=math.inf),
        lambda: ReSTE(first=0.5),
        lambda: ReSTE(first=3.0, last=1.0),
        lambda: ReSTE(near=2.0),
        lambda: ReSTE(near=math.nan),
    ],
)
def test_bad_estimators_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_standardised_filters():
    torch.manual_seed(0)
    w = torch.randn(5, 3, 3, 3)
    found = standardised(w)
    flat = w.flatten(1)
    flat = flat.double()
    expected = (flat - flat.mean(1, True)) / flat.std(1, correction=0, keepdim=True)
    assert torch.allclose(found.flatten(1), expected)
    for c in (1e-30, 1e30):
        assert torch.allclose(standardised(c * w), found, atol=1e-5)


def test_filters_without_spread_are_zero_and_have_finite_gradients():
    torch.manual_seed(0)
    for filling in (0.0, 0.1, -7e20):
        layer = BinaryLinear(6, 3)
        with torch.no_grad():
            layer.weight[1] = filling
        weights = layer.explicit().detach()
        assert weights[1].tolist() == [0.0] * 6
        assert set(weights[0].abs().tolist()) == {float(weights[0, 0].abs())}
        layer(torch.randn(4, 6)).sum().backward()
        assert bool(layer.weight.grad.isfinite().all())
        assert bool(layer.weight.grad[0].any())


def test_weights_have_two_values_a_filter_and_a_scale_by_formula():
    torch.manual_seed(1)
    for scale in (PowerOfTwo(), MeanSize()):
        layer = BinaryConv2d(3, 4, 3, scale=scale)
        hat = standardised(layer.weight.detach()).flatten(1)
        size = hat.abs().mean(1)
        expected = 2.0 ** size.log2().round() if isinstance(scale, PowerOfTwo) else size
        w = layer.explicit().detach().flatten(1)
        assert torch.equal(w, (expected[:, None] * torch.where(hat >= 0, 1.0, -1.0)).float())


def test_a_copy_in_a_higher_precision_has_the_same_weights():
    torch.manual_seed(5)
    layer = BinaryLinear(50, 2000)
    with torch.no_grad():
        # many weights within rounding of the mean of their filter
        layer.weight.copy_((1 + 1e-7 * torch.randn(2000, 50)).to(torch.bfloat16))
        layer.weight[:, :25] += 3e-7 * torch.randn(2000, 25)
    other = copy.deepcopy(layer).double()
    assert torch.equal(other.explicit(), layer.explicit().double())


def test_the_layers_compute_what_they_say():
    torch.manual_seed(2)
    conv = BinaryConv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.0
    signs = torch.where(x >= 0, 1.0, -1.0).double()
    plain = nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False).double()
    plain.weight = nn.Parameter(conv.explicit().detach())
    assert torch.equal(conv(x), plain(signs))
    real = BinaryConv2d(4, 6, 3, stride=2, padding=1, groups=2, binary_inputs=False).double()
    real.load_state_dict(conv.state_dict())
    assert torch.equal(real(x), plain(x))
    dense = BinaryLinear(5, 3).double()
    z = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(dense(z), torch.where(z >= 0, 1.0, -1.0).double() @ dense.explicit().mT)


def test_the_parameter_gets_the_gradient_of_both_stand_ins():
    torch.manual_seed(3)
    layer = BinaryLinear(4, 2, estimator=EDE(0.5, 0.5)).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 2, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    slope = EDE(0.5, 0.5).slope
    assert torch.allclose(x.grad, (g @ layer.explicit()).detach() * slope(x.detach(), 1.0))
    # replace both signs by functions that have the slopes of the stand-ins at these points
    w = layer.weight.detach().clone().requires_grad_()
    hat = standardised(w)
    scale = PowerOfTwo().of(hat)
    surrogate = hat * slope(hat.detach(), 1.0)
    signs = torch.where(x.detach() >= 0, 1.0, -1.0).double()
    (signs @ (scale * surrogate).mT * g).sum().backward()
    assert torch.allclose(layer.weight.grad, w.grad)


def test_annealing_reaches_every_layer_and_evaluation_is_at_the_end_of_the_run():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(BinaryLinear(4, 2, estimator=EDE())))
    anneal(net, 0.25)
    layer = net[1][0]
    assert layer.done == 0.25
    x = torch.full((1, 4), 0.5, requires_grad=True)
    slopes = {}
    for mode in (True, False):
        net.train(mode)
        (row,) = torch.autograd.grad(layer(x)[0, 0], x)
        slopes[mode] = (row / layer.explicit()[0]).detach()[0, 0]
    for mode, done in ((True, 0.25), (False, 1.0)):
        expected = EDE().slope(x.detach(), done)[0, 0]
        assert float(slopes[mode]) == pytest.approx(float(expected), rel=1e-3)
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match="done"):
            anneal(net, bad)


def test_copies_pickles_and_state_dicts():
    torch.manual_seed(4)
    net = nn.Sequential(BinaryConv2d(2, 3, 3, estimator=STE(0.5), scale=MeanSize()), nn.Flatten())
    anneal(net, 0.5)
    x = torch.randn(2, 2, 5, 5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
        assert (other[0].estimator, other[0].scale, other[0].done) == (STE(0.5), MeanSize(), 0.5)
    fresh = nn.Sequential(BinaryConv2d(2, 3, 3, scale=MeanSize()), nn.Flatten())
    assert list(net.state_dict()) == ["0.weight"]
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))


def test_nan_is_not_hidden():
    layer = BinaryLinear(4, 2)
    x = torch.randn(2, 4)
    x[0, 1] = math.nan
    assert layer(x).isnan().tolist() == [[True, True], [False, False]]
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    assert layer(torch.randn(2, 4)).isnan().tolist() == [[True, False], [True, False]]


def test_bad_shapes_are_refused():
    with pytest.raises(ShapeError, match="expected \\(batch, 3, height, width\\)"):
        BinaryConv2d(3, 4, 3)(torch.randn(2, 4, 8, 8))
    with pytest.raises(ShapeError, match="expected \\(batch, 3\\)"):
        BinaryLinear(3, 4)(torch.randn(2, 4))
    with pytest.raises(ConfigError, match="one weight a filter"):
        BinaryConv2d(1, 4, 1)
    with pytest.raises(ConfigError, match="divisor"):
        BinaryConv2d(3, 4, 3, groups=2)
    for make in (lambda: BinaryLinear(0, 1), lambda: BinaryConv2d(2, 2, 3, padding=-1)):
        with pytest.raises(ShapeError):
            make()


def test_the_stem_ends_at_the_first_sign_of_inputs():
    net = nn.Sequential(
        nn.Linear(3, 4),
        BinaryLinear(4, 4, binary_inputs=False),
        nn.ReLU(),
        nn.Sequential(nn.ReLU(), BinaryLinear(4, 4)),
        nn.Linear(4, 2),
    )
    assert list(real_stem(net)) == list(net)[:3]
    assert takes_signs(net)
    assert not takes_signs(real_stem(net))
