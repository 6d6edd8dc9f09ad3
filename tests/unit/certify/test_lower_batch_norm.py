"""Batch normalisation in evaluation mode: bounds pay for its irrational scale."""

from decimal import Decimal, getcontext

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.crown import crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.lower import lower
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError

EQ = wp.Equilibrium
MODELS = {
    "flat": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(),
                              nn.Linear(6, 3)),
        (4,),
    ),
    "image": (
        lambda: nn.Sequential(wp.Normalise([0.3, 0.5], [0.2, 0.7]), nn.Conv2d(2, 3, 3, bias=False),
                              nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                              nn.Linear(12, 3)),
        (2, 6, 6),
    ),
    "no gain": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten(),
                              nn.Linear(12, 3)),
        (2, 4, 4),
    ),
    "equilibrium": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), EQ(wp.NemonCell(5, 6)),
                              nn.BatchNorm1d(6), nn.Linear(6, 3)),
        (4,),
    ),
}  # fmt: skip


def built(name, size, dtype=torch.float64):
    torch.manual_seed(1)
    make, shape = MODELS[name]
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_().mul_(size)
                module.running_var.uniform_(0.01, 3).mul_(size)
                if module.affine:
                    module.weight.normal_().mul_(size)
                    module.bias.normal_()
    return model.bfloat16().to(dtype).eval() if size == 1 else model.to(dtype).eval(), shape


def bounds(model, shape, region):
    lowered = lower(model, shape)
    entered = lowered.enter(region)
    held = interval_bounds(lowered.system, entered)
    scope = Scope.of(lowered.system, entered, held)
    at = lowered.outputs
    q, count = at.stop - at.start, len(region.lower)
    state = torch.zeros(q, lowered.system.n).double()
    state[:, at] = torch.eye(q).double()
    rows = Rows(state, None, torch.zeros(q).double()).select(torch.arange(q).repeat(count))
    each = scope.select(torch.arange(count).repeat_interleave(q))
    low = crown(lowered.system, each, rows)[0].reshape(count, q)
    high = -crown(lowered.system, each, -rows)[0].reshape(count, q)
    return low, high, Box(held.lower[:, at], held.upper[:, at])


@pytest.mark.parametrize("size", [1, 1e3, 1e-3])
@pytest.mark.parametrize("name", MODELS)
def test_bounds_hold_at_corners_and_attacked_points(name, size):
    model, shape = built(name, size)
    region = Box.around(
        torch.rand(2, *shape), torch.tensor([0.3, 1e-6]).reshape(2, *[1] * len(shape))
    )
    low, high, box = bounds(model, shape, region)
    share = torch.rand(60, 2, *shape).double()
    share[:40] = share[:40].round()
    x = region.lower + share * (region.upper - region.lower)
    for _ in range(4):  # uphill for every output in turn
        x = x.reshape(-1, *shape).requires_grad_()
        y = model(x)
        q = y.shape[1]
        held = y.detach().reshape(60, 2, q)
        slack = 1e-6 * (1 + held.abs())
        assert ((held >= low - slack) & (held <= high + slack)).all()
        assert ((held >= box.lower - slack) & (held <= box.upper + slack)).all()
        pick = torch.arange(120) // 2 % q
        (way,) = torch.autograd.grad(y.gather(1, pick[:, None]).sum(), x)
        up = way.reshape(60, 2, *shape) > 0
        x = torch.where(up, region.upper, region.lower).detach()
    # the small region is bounded tightly
    scale = float(y.detach().abs().max()) + float((high - low)[0].max())
    assert float((high - low)[1].max()) < 1e-3 * scale


def test_the_scale_is_paid_for_exactly():
    """Against 60 digits: neither bound is beyond the value that the stored numbers define."""
    getcontext().prec = 60
    for seed in range(40):
        torch.manual_seed(seed)
        norm, head = nn.BatchNorm1d(1).double().eval(), nn.Linear(1, 1).double()
        with torch.no_grad():
            norm.running_mean.normal_().mul_(10.0 ** (seed % 7 - 3))
            norm.running_var.uniform_(1e-6, 2)
            norm.weight.normal_().mul_(10.0 ** (seed % 5))
            norm.bias.normal_()
        x = torch.randn(1, 1).double()
        low, high, box = bounds(nn.Sequential(norm, head), (1,), Box(x, x))
        numbers = (x, norm.running_mean, norm.running_var, norm.weight, norm.bias, head.weight,
                   head.bias)  # fmt: skip
        point, mean, var, gain, bias, w, b = (Decimal(t.item()) for t in numbers)
        value = w * (gain * (point - mean) / (var + Decimal(norm.eps)).sqrt() + bias) + b
        assert Decimal(float(low)) <= value <= Decimal(float(high))
        assert Decimal(float(box.lower)) <= value <= Decimal(float(box.upper))
        size = abs(float(gain * (point - mean) * w)) / float(var) ** 0.5 + abs(float(value)) + 10
        assert float(high - low) < 1e-11 * size


def test_the_cascade_verifies_and_falsifies():
    model, shape = built("image", 1.0)
    x = torch.rand(6, *shape).double()
    with torch.no_grad():
        y = model(x).argmax(1)
    found = wp.verify(model, x, y, Box.around(x, 1e-4).clip(0, 1))
    assert found.counts["verified"] == 6
    assert wp.verify(model, x, (y + 1) % 3, Box.around(x, 1e-4)
                     .clip(0, 1)).counts["falsified"] == 6  # fmt: skip


def test_what_needs_exact_weights_is_refused():
    model, shape = built("flat", 1.0)
    with pytest.raises(NotCertifiableError, match="square root"):
        lower(model, shape).network()
    with pytest.raises(NotCertifiableError, match="rounded"):
        wp.output_range(model, Box.around(torch.zeros(1, 4), 0.1))
    folded = nn.Sequential(
        torch.nn.utils.fusion.fuse_linear_bn_eval(model[1], model[2]), model[3], model[4]
    ).eval()
    assert lower(folded, shape).network().q == 3


def test_training_mode_and_wrong_shapes_are_refused():
    with pytest.raises(NotCertifiableError, match=r"BatchNorm1d.*training mode"):
        lower(nn.BatchNorm1d(4), (4,))
    with pytest.raises(NotCertifiableError, match=r"BatchNorm2d.*running statistics"):
        lower(nn.BatchNorm2d(2, track_running_stats=False).eval(), (2, 3, 3))
    for norm, shape in (
        (nn.BatchNorm1d(4), (5,)),
        (nn.BatchNorm2d(2), (2,)),
        (nn.BatchNorm2d(2), (3, 2, 2)),
        (nn.BatchNorm1d(2), (2, 3, 3)),
    ):
        with pytest.raises(ShapeError, match="BatchNorm"):
            lower(norm.eval(), shape)
