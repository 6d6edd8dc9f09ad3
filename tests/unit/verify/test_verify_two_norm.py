"""Certified radii of models in the units of their inputs."""

import pytest
import torch
from torch import nn

from wellposed.cells.monotone import MonotoneCell
from wellposed.certify.lower import lower
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise
from wellposed.solvers.base import Stopping
from wellposed.verify.two_norm import l2_certified


def build(std=0.25, n=12):
    torch.manual_seed(0)
    layer = Equilibrium(MonotoneCell(16, n), eval_stopping=Stopping(max_evaluations=3000))
    model = nn.Sequential(Normalise((0.4,), (std,)), nn.Flatten(), layer, nn.Linear(n, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model.double().eval()


def images(count):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()


def test_radii_hold_in_pixels():
    model, x = build(), images(40)
    with torch.no_grad():
        y = model(x).argmax(1)
    found = l2_certified(model, x, y, steps=30)
    assert float(found.radius.min()) > 0
    assert found.certified(0.0) == 1
    assert found.certified(float(found.radius.max())) == 0
    generator = torch.Generator().manual_seed(2)
    # along the gradient of the smallest gap, and at random
    for k in range(6):
        moved = x.clone().requires_grad_()
        logits = model(moved)
        gap = logits.gather(1, y[:, None]) - logits
        way = torch.autograd.grad(gap.masked_fill(gap == 0, torch.inf).amin(1).sum(), moved)[0]
        if k:
            way = way + 0.3 * k * way.std() * torch.randn(x.shape, generator=generator).double()
        size = way.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        near = x - way / size * found.radius[:, None, None, None] * 0.9999
        with torch.no_grad():
            assert torch.equal(model(near).argmax(1), y)


def test_the_scaling_is_undone():
    x = images(6)
    narrow, wide = build(std=0.25), build(std=0.25)
    with torch.no_grad():
        y = narrow(x).argmax(1)
        # twice the deviation and twice the weights: the same function of pixels
        wide[0].std.mul_(2)
        wide[2].cell.inject.weight.mul_(2)
    one, two = (l2_certified(m, x, y, steps=0).radius for m in (narrow, wide))
    assert torch.allclose(one, two, rtol=1e-6)


def test_wrong_labels_are_not_certified_and_networks_are_taken_as_they_are():
    model, x = build(), images(10)
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = l2_certified(model, x, (y + 1) % 4, steps=0)
    assert bool((wrong.radius == 0).all())
    assert bool((wrong.gap < 0).all())
    network = lower(model, (1, 4, 4)).network()
    points = ((x - 0.4) / 0.25).flatten(1)
    plain = l2_certified(network, points, y, steps=0)
    scaled = l2_certified(model, x, y, steps=0)
    # Normalise holds float32 numbers made double
    assert torch.allclose(plain.radius * 0.25, scaled.radius, rtol=1e-5)


def test_bad_input_is_refused():
    model, x = build(), images(3)
    y = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ShapeError, match="Labels must lie between 0 and 3"):
        l2_certified(model, x, y + 4)
    with pytest.raises(ShapeError, match="labels of shape"):
        l2_certified(model, x, y[:2])
    with pytest.raises(ShapeError, match="negative"):
        l2_certified(model, x, y, steps=0).certified(-0.1)
    with torch.no_grad():
        model[2].cell.margin = -1e3
    with pytest.raises(NotCertifiableError, match="margin of monotonicity"):
        l2_certified(model, x, y)
