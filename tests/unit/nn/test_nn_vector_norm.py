"""Vector-wise norm bounds: what they bound, where they start, what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.vector_norm import Budgets, VectorNorm, constrain, retract

KINDS = ("1->max", "2->max", "max->max", "1->1")
NORMS = {"1": OneNorm(), "2": TwoNorm(), "max": MaxNorm()}


def operator_norm(matrix, kind):
    source, target = kind.split("->")
    return float(NORMS[target].operator_norm(matrix.detach().double(), NORMS[source]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pinned", [False, True])
def test_the_norm_keeps_its_budget_at_ugly_weights(kind, pinned):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for scale in (1e-30, 1e-3, 1.0, 20.0, 1e3, 1e30):
            for shape in ((1, 1), (3, 7), (7, 3), (40, 300)):
                raw = (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)
                found = VectorNorm(kind, 0.7, pinned=pinned)(raw)
                assert found.dtype == dtype
                assert operator_norm(found, kind) <= 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_inside_stay_as_they_are_and_long_ones_end_at_the_budget(kind):
    torch.manual_seed(0)
    inside = torch.randn(6, 5) * 1e-3
    assert torch.equal(VectorNorm(kind, 1.0)(inside), inside)
    beyond = VectorNorm(kind, 1.0)(1e3 + torch.rand(6, 5))
    lengths = VectorNorm(kind, 1.0).lengths(beyond)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=2e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_starts_at_its_budget(kind):
    torch.manual_seed(0)
    layer = constrain(nn.Linear(9, 6), kind, 1.5)
    full = VectorNorm(kind, 1.5, pinned=True)
    lengths = full.lengths(layer.weight)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1.5), rtol=2e-6, atol=0)


def test_a_layer_can_keep_its_weight():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    assert torch.equal(constrain(layer, "max->max", 100, restart=False).weight, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pinned", [False, True])
def test_zero_rows_are_safe(kind, pinned):
    raw = torch.zeros(4, 3, requires_grad=True)
    out = VectorNorm(kind, 1.0, pinned=pinned)(raw)
    (grad,) = torch.autograd.grad(out.sum(), raw)
    assert torch.equal(out, torch.zeros(4, 3))
    assert torch.isfinite(grad).all()
    assert (grad != 0).all()  # they can leave


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pinned", [False, True])
def test_gradients_are_those_of_the_function(kind, pinned):
    torch.manual_seed(0)
    norm = VectorNorm(kind, 1.0, pinned=pinned)
    raw = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (raw,))


def test_retraction_changes_no_weight_and_revives_gradients():
    torch.manual_seed(0)
    layer = constrain(nn.Linear(5, 4), "1->max", 1.0)
    raw = layer.parametrizations.weight.original
    with torch.no_grad():
        raw.mul_(3)
    before = layer.weight.detach().clone()
    (dead,) = torch.autograd.grad(layer.weight.sum(), raw)
    retract(nn.Sequential(layer))
    (alive,) = torch.autograd.grad(layer.weight.sum(), raw)
    assert torch.equal(layer.weight, before)
    assert (dead == 0).any()
    assert (alive == 1).all()


def test_assignment_and_state_go_through_the_bound():
    torch.manual_seed(0)
    layer = constrain(nn.Linear(5, 4), "max->max", 1.0)
    layer.weight = torch.ones(4, 5)
    torch.testing.assert_close(layer.weight, torch.full((4, 5), 0.2))
    other = constrain(nn.Linear(5, 4), "max->max", 1.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_learned_budgets_keep_their_product():
    torch.manual_seed(0)
    budgets = Budgets(3, 2)
    layers = [constrain(nn.Linear(4, 4), "max->max", budgets, index=k) for k in range(3)]
    with torch.no_grad():
        budgets.shift.copy_(torch.tensor([3.0, -1.0, 40.0]))
    shares = [budgets.share(k) for k in range(3)]
    assert torch.stack(shares).prod().item() == pytest.approx(2, rel=1e-12)
    for layer, share in zip(layers, shares, strict=True):
        assert operator_norm(layer.weight, "max->max") <= share.item()
    sum(layer.weight.square().sum() for layer in layers).backward()
    assert (budgets.shift.grad != 0).all()


@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect", "replicate"])
def test_convolutions_from_max_to_max_by_their_dense_matrix(padding):
    torch.manual_seed(0)
    for stride, dilation, groups in ((1, 1, 1), (2, 1, 2), (1, 2, 1)):
        conv = nn.Conv2d(
            2, 4, 3, stride, dilation, dilation, groups, bias=False, padding_mode=padding
        )
        constrain(conv, "max->max", 1.0)
        matrix = dense(conv, (2, 5, 5))
        assert operator_norm(matrix, "max->max") <= 1
        if padding in ("zeros", "circular"):
            assert operator_norm(matrix, "max->max") >= 1 - 1e-5


@pytest.mark.parametrize(
    ("kind", "padding"),
    [("1->max", "zeros"), ("2->max", "zeros"), ("1->1", "zeros"), ("1->1", "circular")],
)
def test_other_norms_of_convolutions_by_their_dense_matrix(kind, padding):
    torch.manual_seed(0)
    conv = constrain(nn.Conv2d(3, 4, 3, padding=1, bias=False, padding_mode=padding), kind, 1.0)
    found = operator_norm(dense(conv, (3, 5, 5)), kind)
    assert 1 - 1e-5 <= found <= 1


def dense(conv, shape):
    n = shape[0] * shape[1] * shape[2]
    eye = torch.eye(n).reshape(n, *shape)
    return conv.double()(eye.double()).flatten(1).T


def test_a_reflected_border_breaks_the_bounds_that_are_refused():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="reflect")
    nn.init.ones_(conv.weight)
    assert operator_norm(dense(conv, (1, 4, 4)), "1->max") > 1
    with pytest.raises(ConfigError, match="reflect"):
        constrain(conv, "1->max", 1.0)
    with pytest.raises(ConfigError, match="1->1"):
        constrain(conv, "1->1", 1.0)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), True, "1"])
def test_bad_constants(bad):
    with pytest.raises(ConfigError, match="positive"):
        VectorNorm("max->max", bad)
    with pytest.raises(ConfigError, match="positive"):
        Budgets(2, bad)


def test_integer_constants_become_floating_point():
    norm = VectorNorm("max->max", 2)
    assert norm(torch.ones(2, 2)).dtype == torch.float32
    assert norm.budget().dtype == torch.float64


def test_refusals():
    with pytest.raises(ConfigError, match="kind"):
        VectorNorm("one-inf", 1.0)
    with pytest.raises(ShapeError, match="shape"):
        VectorNorm("max->max", 1.0)(torch.ones(3))
    with pytest.raises(ConfigError, match="ConvTranspose2d"):
        constrain(nn.ConvTranspose2d(1, 1, 3), "max->max", 1.0)
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        constrain(nn.BatchNorm1d(3), "max->max", 1.0)
    with pytest.raises(ConfigError, match="groups"):
        constrain(nn.Conv2d(2, 2, 3, groups=2), "1->1", 1.0)
    with pytest.raises(ConfigError, match="already"):
        constrain(constrain(nn.Linear(2, 2), "1->1"), "1->1")
    with pytest.raises(ConfigError, match="layer"):
        VectorNorm("1->1", Budgets(2), layer=2)
    with pytest.raises(ConfigError, match="at least 1"):
        Budgets(0)


def test_weights_that_are_not_finite_are_not_hidden():
    raw = torch.ones(2, 3)
    raw[0, 1] = torch.nan
    assert VectorNorm("max->max", 1.0)(raw).isnan().any()


def test_it_is_a_parametrization_that_can_be_removed():
    layer = constrain(nn.Linear(3, 2), "max->max", 1.0)
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, weight)
