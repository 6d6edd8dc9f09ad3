"""Residual blocks: Lipschitz bound, box, lowering, refusals."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.crown import crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.enclose import enclose
from wellposed.certify.lower import lower
from wellposed.core.sets import Box
from wellposed.errors import ShapeError
from wellposed.nn.residual import Residual


def _block(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    return nn.Sequential(Residual(body), Residual(wp.Equilibrium(wp.NemonCell(4, 4)))).double()


def test_the_lipschitz_bound_holds_on_pairs_and_is_tight_for_a_positive_linear_body():
    net = _block()
    x, y = torch.randn(2, 2000, 4).double()
    moved = (net(x) - net(y)).detach().abs().amax(1) / (x - y).abs().amax(1)
    bound = wp.lipschitz(net, in_shape=(4,)).value
    assert float(moved.max()) <= bound
    linear = nn.Linear(4, 4).double()
    linear.weight.data.abs_()
    block = Residual(linear)
    exact = float((torch.eye(4) + linear.weight.detach()).abs().sum(1).max())
    assert wp.lipschitz(block, in_shape=(4,)).value == pytest.approx(exact, rel=1e-9)
    two = wp.lipschitz(block, norm_in="2", norm_out="2", in_shape=(4,)).value
    top = float(torch.linalg.matrix_norm(torch.eye(4) + linear.weight.detach(), 2))
    assert top <= two <= 1 + float(torch.linalg.matrix_norm(linear.weight.detach(), 2)) + 1e-9


def test_boxes_and_linear_bounds_contain_what_is_sampled():
    net = _block(1)
    centre = torch.randn(3, 4).double()
    box = Box.around(centre, 0.2)
    points = box.lower + (box.upper - box.lower) * torch.rand(500, 3, 4).double()
    values = net(points.reshape(-1, 4)).reshape(500, 3, 4).detach()
    outer = enclose(net, box)
    assert bool(((values >= outer.lower) & (values <= outer.upper)).all())
    lowered = lower(net, (4,))
    scope = Scope.of(lowered.system, lowered.enter(box), interval_bounds(lowered.system, box))
    row = torch.zeros(12, lowered.system.n).double()
    row[torch.arange(12), lowered.outputs.start + torch.arange(4).repeat(3)] = 1
    index = torch.arange(3).repeat_interleave(4)
    bound, _ = crown(lowered.system, scope.select(index), Rows(row, None, torch.zeros(12).double()))
    least = values.amin(0).flatten()
    assert bool((bound <= least).all())
    # the linear bounds see that the shortcut and the body move together
    assert float((least - bound).mean()) < 0.5 * float((least - outer.lower.flatten()).mean())


def test_a_linear_residual_block_is_bounded_exactly():
    linear = nn.Linear(3, 3).double()
    with torch.no_grad():
        linear.weight.copy_(-0.5 * torch.eye(3))
        linear.bias.zero_()
    lowered = lower(Residual(linear), (3,))
    box = Box.around(torch.zeros(1, 3).double(), 1.0)
    scope = Scope.of(lowered.system, box, interval_bounds(lowered.system, box))
    row = torch.zeros(1, lowered.system.n).double()
    row[0, lowered.outputs.start] = 1
    bound, _ = crown(lowered.system, scope, Rows(row, None, torch.zeros(1).double()))
    assert float(bound) == pytest.approx(-0.5, abs=1e-9)


def test_a_body_that_changes_the_shape_is_refused():
    block = Residual(nn.Linear(4, 3))
    with pytest.raises(ShapeError, match="equal shapes"):
        block(torch.rand(2, 4))
    with pytest.raises(ShapeError, match="equal shapes"):
        wp.lipschitz(block, in_shape=(4,))
    with pytest.raises(wp.errors.NotCertifiableError, match="its body maps"):
        lower(block, (4,))
