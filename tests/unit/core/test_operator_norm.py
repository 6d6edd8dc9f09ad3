"""Operator norms of every pair and convolution, against the matrix itself."""

from itertools import product
from math import cos, pi, sqrt

import pytest
import torch
from torch import nn

from wellposed.core.any_size import any_size_bracket, spatial_bound
from wellposed.core.convolutions import convolution
from wellposed.core.layers import from_module
from wellposed.core.operators import Convolution, Dense
from wellposed.core.opnorm import METHODS, operator_norm
from wellposed.core.transposed import Adjoint
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

CLOSED = {
    ("1", "1"): lambda M: M.abs().sum(0).max(),
    ("max", "max"): lambda M: M.abs().sum(1).max(),
    ("1", "max"): lambda M: M.abs().max(),
    ("2", "max"): lambda M: M.norm(dim=1).max(),
    ("1", "2"): lambda M: M.norm(dim=0).max(),
    ("2", "2"): lambda M: torch.linalg.matrix_norm(M, 2),
}
UGLY = {
    "plain": lambda w: w,
    "x1e3": lambda w: 1e3 * w,
    "x1e-30": lambda w: 1e-30 * w,
    "x1e30": lambda w: 1e30 * w,
    "signs": lambda w: w * (1 - 2 * (torch.rand(w.shape) < 0.5).to(w)),
    "bfloat16": lambda w: w.bfloat16().float(),
    "zero row": lambda w: torch.cat([0 * w[:1], w[1:]]),
    "zero": lambda w: 0 * w,
}
LAYERS = {
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 5)),
    "circular, kernel wraps": (nn.Conv2d(2, 2, 5, padding=2, padding_mode="circular"), (2, 3, 4)),
    "circular, stride": (nn.Conv2d(2, 3, 3, 2, 1, padding_mode="circular"), (2, 6, 4)),
    "circular, odd stride": (nn.Conv2d(2, 3, 3, 3, 1, padding_mode="circular"), (2, 7, 8)),
    "circular, dilated": (
        nn.Conv2d(2, 2, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 6, 5),
    ),
    "circular, too much": (nn.Conv1d(2, 2, 3, padding=4, padding_mode="circular"), (2, 5)),
    "zeros": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "even": (nn.Conv2d(3, 2, (2, 4), padding="same"), (3, 5, 6)),
    "valid": (nn.Conv2d(3, 2, 3), (3, 5, 6)),
    "full": (nn.Conv2d(3, 2, 3, padding=2), (3, 5, 4)),
    "stride 3": (nn.Conv2d(3, 2, 3, 3, 1), (3, 8, 7)),
    "patches": (nn.Conv2d(2, 5, 2, 2), (2, 6, 4)),
    "dilated": (nn.Conv2d(2, 2, 3, padding=2, dilation=2), (2, 7, 6)),
    "dilated, stride": (nn.Conv2d(2, 2, 3, 2, 2, dilation=(2, 3)), (2, 7, 6)),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 4, 4)),
    "depthwise": (nn.Conv2d(3, 3, 3, padding=1, groups=3), (3, 6, 6)),
    "reflect": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 5, 4)),
    "replicate": (nn.Conv2d(2, 2, 5, 2, 2, padding_mode="replicate"), (2, 5, 6)),
    "one axis": (nn.Conv1d(3, 2, 4, padding=2), (3, 9)),
    "three axes": (nn.Conv3d(1, 2, (3, 2, 3), padding=1), (1, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 3, 4)),
    "transposed, groups": (nn.ConvTranspose1d(4, 2, 3, 2, 2, groups=2, dilation=3), (4, 5)),
    "transposed, appended": (nn.ConvTranspose1d(2, 2, 2, 2, 0, 2, dilation=3), (2, 4)),
}


def built(name):
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, shape


def check(found, norm):
    # the reference is itself rounded
    assert found.lower <= norm * (1 + 1e-12)
    assert found.upper >= norm * (1 - 1e-12)
    if found.exact:
        assert found.upper <= norm * (1 + 1e-8)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_operator(name):
    layer, shape = built(name)
    operator = from_module(layer, shape)
    x = torch.randn(2, *shape)
    y = layer(x)
    assert operator.in_shape == shape
    assert operator.out_shape == y.shape[1:]
    offset = layer.bias.reshape(-1, *[1] * (len(shape) - 1))
    assert torch.allclose(operator.apply(x, offset), y, atol=1e-5)
    v = torch.randn_like(y)
    pulled = operator.adjoint(v)
    assert torch.allclose((operator.apply(x) * v).sum(), (x * pulled).sum(), atol=1e-4)
    (grad,) = torch.autograd.grad((operator.apply(x) * v).sum(), operator.weight)
    assert torch.allclose(operator.weight_gradient(v, x), grad, atol=1e-4)
    matrix = operator.to(torch.float64).materialise()
    assert operator.terms >= int((matrix != 0).sum(1).max())
    assert operator.adjoint_terms >= int((matrix != 0).sum(0).max())
    assert bool((operator.absolute().materialise() >= matrix.abs() - 1e-6).all())


@pytest.mark.parametrize("name", LAYERS)
def test_norms_of_convolutions(name):
    layer, shape = built(name)
    operator = from_module(layer, shape).to(torch.float64).detach()
    matrix = operator.materialise()
    for (p, q), norm in CLOSED.items():
        found = operator_norm(operator, p, q)
        check(found, float(norm(matrix)))
        assert found.exact, found  # the image is small
    for method in METHODS:
        check(operator_norm(operator, method=method), float(CLOSED["2", "2"](matrix)))


@pytest.mark.parametrize(
    "name", ["circular", "circular, kernel wraps", "circular, stride", "circular, dilated",
             "circular, too much", "patches"],
)  # fmt: skip
def test_circular_ones_are_exact_without_their_matrix(name):
    layer, shape = built(name)
    found = operator_norm(from_module(layer, shape), method="exact")
    assert found.exact is (name != "circular, too much")


@pytest.mark.parametrize("ugly", UGLY)
def test_norms_at_ugly_weights(ugly):
    torch.manual_seed(2)
    kernel = UGLY[ugly](torch.randn(3, 2, 3, 3))
    for operator in (Convolution(kernel, (18, 18)), Dense(kernel.flatten(1))):
        matrix = operator.to(torch.float64).materialise()
        for (p, q), norm in CLOSED.items():
            found = operator_norm(operator, p, q)
            check(found, float(norm(matrix)))
            assert found.exact or (p, q) == ("2", "2")


def test_zero_padding_is_cheap_but_not_free():
    torch.manual_seed(3)
    worst = 0.0
    for _ in range(100):
        n = int(torch.randint(1, 9, ()))
        kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64)
        operator = Convolution(kernel, (n, n + 1))
        norm = float(torch.linalg.matrix_norm(operator.materialise(), 2))
        check(operator_norm(operator, method="exact"), norm)
        if n > 2:
            same = operator_norm(Convolution(kernel, (n, n + 1), "circular"), method="exact")
            worst = max(worst, norm / same.upper)
    assert worst > 1  # the circular norm of the same size is no bound
    for _ in range(20):
        kernel = torch.randn(1, 2, 3, 3, dtype=torch.float64)
        found = operator_norm(Convolution(kernel, (16, 16)), method="exact")
        assert found.upper <= 1.05 * found.lower


def test_pairs_without_a_closed_form_pay_in_the_open():
    torch.manual_seed(4)
    for ugly in UGLY.values():
        M = ugly(torch.randn(4, 5)).double()
        signs = torch.tensor(list(product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
        rows = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
        true = {
            ("max", "1"): (signs @ M.mT).abs().sum(1).max(),
            ("max", "2"): (signs @ M.mT).norm(dim=1).max(),
            ("2", "1"): (rows @ M).norm(dim=1).max(),
        }
        for (p, q), norm in true.items():
            found = operator_norm(M, p, q)
            check(found, float(norm))
            assert found.upper <= 2.3 * float(norm)
    positive = torch.rand(3, 7)
    assert operator_norm(positive, "max", "1").exact
    assert (
        "sqrt(16) x 2 to 2"
        in operator_norm(torch.linalg.qr(torch.randn(16, 16))[0], "2", "1").method
    )


def test_bounds_for_images_of_any_size():
    torch.manual_seed(5)
    for _ in range(60):
        D, stride = int(torch.randint(1, 3, ())), int(torch.randint(1, 4, ()))
        sides = torch.randint(1, 5, (D,)).tolist()
        kernel = torch.randn(4, 2, *sides, dtype=torch.float64)
        found = any_size_bracket(kernel, stride=stride, groups=2)
        alpha = 1 / sqrt(cos(pi / 8)) ** D
        assert found.lower <= found.upper <= alpha * found.lower * (1 + 1e-9)
        least = [spatial_bound(kernel, steps, 2) for steps in (1, 2, 3)]
        assert least == sorted(least, reverse=True)
        for n in (3, 7):
            operator = convolution(kernel, (n,) * D, padding="full", stride=stride, groups=2)
            norm = operator_norm(operator).lower
            assert found.upper >= norm
            assert least[-1] >= norm
    # a bound is for all sizes: larger images come close to it
    kernel = torch.randn(1, 1, 3, dtype=torch.float64)
    large = operator_norm(convolution(kernel, (400,)), method="exact")
    assert any_size_bracket(kernel, density=32).upper <= 1.01 * large.upper
    assert spatial_bound(torch.zeros(2, 2, 3)) == 0


def test_complex_matrices():
    torch.manual_seed(6)
    M = torch.randn(4, 6, dtype=torch.complex128)
    for (p, q), norm in CLOSED.items():
        check(operator_norm(M, p, q), float(norm(M)))
        check(operator_norm(1e-100 * M, p, q), float(norm(1e-100 * M)))
    with pytest.raises(NotCertifiableError, match="complex"):
        operator_norm(M, "max", "1")


def test_refusals():
    with pytest.raises(ConfigError, match="'inf'"):
        operator_norm(torch.eye(2), "inf", "2")
    with pytest.raises(ConfigError, match="gram"):
        operator_norm(torch.eye(2), "1", "1", method="gram")
    with pytest.raises(ConfigError, match="magic"):
        operator_norm(torch.eye(2), method="magic")
    with pytest.raises(ShapeError, match="matrix"):
        operator_norm(torch.ones(2, 2, 3, 3))
    for value in (float("nan"), float("inf")):
        for p, q in (("2", "2"), ("1", "max"), ("max", "1")):
            with pytest.raises(NotCertifiableError, match="NaN"):
                operator_norm(torch.full((2, 2), value), p, q)
    with pytest.raises(ShapeError, match="groups"):
        convolution(torch.ones(3, 1, 3), (5,), groups=2)
    with pytest.raises(ShapeError, match="fit"):
        convolution(torch.ones(1, 1, 3), (2,), padding="valid")
    with pytest.raises(ShapeError, match="reflect"):
        convolution(torch.ones(1, 1, 7), (3,), outside="reflect")
    with pytest.raises(ConfigError, match="vaild"):
        convolution(torch.ones(1, 1, 3), (5,), padding="vaild")
    with pytest.raises(ShapeError, match="channels"):
        from_module(nn.Conv2d(3, 4, 3), (2, 5, 5))
    with pytest.raises(NotCertifiableError, match="BatchNorm2d"):
        from_module(nn.BatchNorm2d(3), (3, 5, 5))
    with pytest.raises(ConfigError, match="diagonal"):
        convolution(torch.ones(1, 1, 3), (5,)).diagonal()
    with pytest.raises(ConfigError, match="density"):
        any_size_bracket(torch.ones(1, 1, 3), density=2)


def test_an_empty_operator_and_an_adjoint():
    assert operator_norm(torch.zeros(0, 3)).upper == 0
    operator = Adjoint(Dense(torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])))
    assert operator_norm(operator, "max", "max").upper == pytest.approx(8)
    assert operator_norm(operator, "1", "1").upper == pytest.approx(8)
