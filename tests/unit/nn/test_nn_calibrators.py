"""Piecewise linear calibrators: values, signs, order of what stands behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import order
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.calibrators import calibrators, piece_counts, piece_signs, quantile_knots
from wellposed.nn.monotone import lipschitz_monotone

KNOTS = ((0.0, 1.0, 4.0), (-1.0, 1.0), (1.0, 2.0, 3.0))


def test_pieces_are_clamped_shares_of_their_interval():
    x = torch.tensor([[0.5, 0.0, 2.0], [-9.0, 9.0, 9.0], [2.5, -1.0, 1.0]])
    wanted = torch.tensor([[0.5, 0, 0.5, 1, 0], [0, 0, 1, 1, 1], [1, 0.5, 0, 0, 0]])
    torch.testing.assert_close(calibrators(KNOTS)(x), wanted)


def test_any_piecewise_linear_function_is_a_sum_of_pieces():
    knots = ((-2.0, 0.0, 1.0, 5.0),)
    heights = torch.tensor([1.0, -3.0, 0.5, 2.0])
    x = torch.linspace(-3, 6, 50)[:, None]
    found = heights[0] + calibrators(knots)(x) @ heights.diff()
    wanted = torch.empty(50)
    for k, value in enumerate(x.flatten().clamp(-2, 5).tolist()):
        j = next(j for j in range(3) if value <= knots[0][j + 1])
        share = (value - knots[0][j]) / (knots[0][j + 1] - knots[0][j])
        wanted[k] = heights[j] + share * (heights[j + 1] - heights[j])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3, 1e-3])
def test_the_order_is_proved_through_them(scale):
    torch.manual_seed(0)
    signs = (1, -1, 0)
    own = piece_signs(signs, KNOTS)
    assert own == (1, 1, -1, 0, 0)
    knots = [[scale * k for k in one] for one in KNOTS]
    body = lipschitz_monotone((len(own), 8, 1), own, 2.0)
    with torch.no_grad():
        for p in body.parameters():
            p.mul_(scale * torch.randn(p.shape).sign())
    net = nn.Sequential(*calibrators(knots), body).eval()
    order(net, in_shape=(3,)).require(signs)
    wide = net.double()
    order(wide, in_shape=(3,)).require(signs)
    with pytest.raises(NotCertifiableError):
        order(net, in_shape=(3,)).require((1, -1, 1))
    x = 3 * scale * torch.randn(2000, 3, dtype=torch.float64)
    step = scale * torch.rand(2000, 3, dtype=torch.float64) * torch.tensor(signs)
    with torch.no_grad():
        assert float((wide(x + step) - wide(x)).min()) >= -1e-9


def test_the_constant_counts_the_steepest_piece():
    layers = calibrators(((0.0, 0.5, 4.0),)).eval()
    assert wp.lipschitz(layers, norm_in="1", norm_out="max").value == pytest.approx(2.0)


def test_knots_of_rows():
    x = torch.tensor([[0.0, 7.0, 1.0], [1.0, 7.0, 2.0], [0.0, 7.0, 3.0], [1.0, 7.0, 10.0]])
    assert quantile_knots(x, 3) == ((0.0, 1.0), (7.0, 8.0), (1.0, 2.5, 10.0))
    assert piece_counts(quantile_knots(x, 4)) == (1, 1, 3)


def test_they_are_not_trained():
    assert not any(p.requires_grad for p in calibrators(KNOTS).parameters())


@pytest.mark.parametrize(
    "knots", [(), ((1.0,),), ((1.0, 1.0),), ((2.0, 1.0),), ((0.0, float("inf")),),
              ((0.0, float("nan")),), ((0.0, 1e-45),), ((),)]
)  # fmt: skip
def test_knots_that_do_not_rise_are_refused(knots):
    with pytest.raises(ConfigError):
        calibrators(knots)


def test_other_refusals():
    with pytest.raises(ShapeError, match="2 signs"):
        piece_signs((1, 1), KNOTS)
    with pytest.raises(ConfigError, match="at least 2"):
        quantile_knots(torch.ones(3, 1), 1)
    with pytest.raises(ShapeError, match="expected"):
        quantile_knots(torch.ones(0, 2), 3)
