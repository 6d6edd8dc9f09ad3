"""Linear layers in a row are certified as their product, in every pair of norms."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import chain as module
from wellposed.certify.chain import Product
from wellposed.certify.linear import spectral_norm
from wellposed.certify.lipschitz import Site, majorise
from wellposed.nn.normalise import Normalise

NAMES = ("max", "2", "1")
PAIRS = list(product(NAMES, NAMES))


def chain(scale=1.0, skew=False):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 9), nn.Identity(), nn.Linear(9, 5), nn.Linear(5, 7)).double()
    with torch.no_grad():
        net[0].weight.mul_(scale)
        net[3].weight.div_(scale)
        if skew:
            net[0].weight.mul_(torch.logspace(-6, 6, 9).double()[:, None])
            net[2].weight.mul_(torch.logspace(6, -6, 9).double())
    return net


def images():
    torch.manual_seed(4)
    norm = nn.BatchNorm2d(3)
    norm.running_var.uniform_(0.1, 3)
    norm.weight.data.normal_()
    return nn.Sequential(
        Normalise((0.1, 0.2), (0.5, 2.0)), nn.Conv2d(2, 3, 3, padding=1), norm, nn.AvgPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip


def jacobian(net, shape):
    n = torch.Size(shape).numel()
    with torch.no_grad():
        zero = net(torch.zeros(1, *shape).double())
        return (net(torch.eye(n).double().reshape(n, *shape)) - zero).flatten(1).mT


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [(chain, (6,)), (lambda: chain(1e8), (6,)), (lambda: chain(skew=True), (6,)),
     (images, (2, 4, 4))],
)  # fmt: skip
def test_the_bound_is_that_of_the_composed_matrix(make, shape, p, q):
    net = make()
    J = jacobian(net, shape)
    one = nn.Linear(J.shape[1], J.shape[0], bias=False).double()
    one.weight = nn.Parameter(J)
    composed = wp.lipschitz(one, norm_in=p, norm_out=q).value
    bound = wp.lipschitz(net, norm_in=p, norm_out=q, in_shape=shape).value
    assert bound == pytest.approx(composed, rel=1e-6)
    assert bound >= composed * (1 - 1e-9)  # the Jacobian itself is rounded


@pytest.mark.parametrize("p", NAMES)
def test_random_and_attacked_directions_stay_below(p):
    """What is steepest for each norm: sign patterns, unit vectors, singular vectors."""
    net, order = chain(skew=True), {"max": torch.inf, "1": 1, "2": 2}[p]
    J = jacobian(net, (6,))
    bound = wp.lipschitz(net, norm_in=p).value
    steep = torch.cat([J.sign(), torch.eye(6).double(), torch.linalg.svd(J)[2]])
    d = torch.cat([torch.randn(2000, 6).double(), steep])
    moved = d  # biases of 1e6 would round away what is compared here
    for layer in (net[0], net[2], net[3]):
        moved = moved @ layer.weight.detach().mT
    gains = torch.linalg.vector_norm(moved, order, 1) / torch.linalg.vector_norm(d, order, 1)
    assert float(gains.max()) <= bound * (1 + 1e-12)
    assert float(gains.max()) >= bound * (1 - 1e-6)


def test_what_cancels_is_zero_within_rounding():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).double()
    with torch.no_grad():
        net[0].weight[4:] = net[0].weight[:4]
        net[1].weight[:, 4:] = -net[1].weight[:, :4]
    for p, q in PAIRS:
        assert wp.lipschitz(net, norm_in=p, norm_out=q).value < 1e-13
    assert wp.lipschitz(net, method="product").value > 0.1


def test_the_error_bound_covers_exact_arithmetic():
    torch.manual_seed(5)
    for scale in (1.0, 1e9, 1e-9):
        net = chain(scale)
        (formed,) = majorise(net, Site((6,))).core
        assert isinstance(formed, Product)
        rows = [[Fraction(int(i == j)) for j in range(7)] for i in range(7)]
        for layer in (net[3], net[2], net[0]):
            weight = [[Fraction(v) for v in row] for row in layer.weight.tolist()]
            columns = list(zip(*weight, strict=True))
            rows = [[sum(a * b for a, b in zip(r, c, strict=True)) for c in columns] for r in rows]
        found, error = formed._matrix.tolist(), formed._error.tolist()
        for row, own, wrong in zip(rows, found, error, strict=True):
            for exact, value, room in zip(row, own, wrong, strict=True):
                assert abs(exact - Fraction(value)) <= Fraction(room)


def test_functions_between_keep_layers_apart():
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.Linear(5, 7)).double()
    kinds = [type(link).__name__ for link in majorise(net, Site((6,))).core]
    assert kinds == ["Linear", "Slopes", "Product"]


def test_large_products_are_not_formed(monkeypatch):
    net = chain()
    composed = wp.lipschitz(net).value
    monkeypatch.setattr(module, "LARGEST", 50)  # 7 outputs of 9 neurons: 63 entries
    kinds = [type(link).__name__ for link in majorise(net, Site((6,))).core]
    assert kinds == ["Product", "Linear"]
    assert wp.lipschitz(net).value >= composed * (1 - 1e-12)


def test_parts_are_those_of_the_modules():
    names = [part.rule for part in wp.lipschitz(chain()).parts]
    assert len(names) == 4
    assert names[0] == "absolute weights of a linear map"


@pytest.mark.parametrize("exponent", [-1022, -700, -400, 330, 500, 1000])
def test_norms_of_very_large_and_small_matrices(exponent):
    torch.manual_seed(6)
    W = torch.randn(20, 30).double()
    scaled = W * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    size = spectral_norm(scaled) * 2.0 ** (-(exponent // 2)) * 2.0 ** (exponent // 2 - exponent)
    exact = float(torch.linalg.matrix_norm(W, 2))
    assert exact * (1 - 1e-14) <= size <= exact * (1 + 1e-9)


def test_norms_of_zero_and_broken_matrices():
    assert spectral_norm(torch.zeros(3, 4).double()) == 0
    assert spectral_norm(torch.full((3, 4), torch.nan).double()) == torch.inf
    assert spectral_norm(torch.full((2, 2), 1.7e308, dtype=torch.float64)) == torch.inf
