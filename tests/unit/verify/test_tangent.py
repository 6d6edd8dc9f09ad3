"""Bounds of derivatives by weak duality on the tangent network, for random and extreme slopes."""

import pytest
import torch
from tests.unit.verify.small_nets import network

from wellposed.certify.fallback import lipschitz_box
from wellposed.certify.wellposed import wellposedness
from wellposed.core.sets import Box
from wellposed.verify.tangent import Tangent


@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])
@pytest.mark.parametrize("skew", [0.5, 2.0, 6.0])
def test_bounds_hold_for_all_slopes_in_the_range(skew, size):
    net = network(7, n=6, skew=skew)
    U = net.U * size
    tangent = Tangent(net, U, lambda w: w.sum(-1) * (1 + 1e-14))
    draw = torch.Generator().manual_seed(0)
    low, high = torch.zeros(4, 6).double(), torch.ones(4, 6).double()
    low[1], high[2], low[3, :4], high[3, 4] = 1.0, 0.0, 1.0, 0.0
    reach = torch.full((1, net.d), size).double()
    box = lipschitz_box(net, Box.around(0 * reach, reach), wellposedness(net))
    start = ((box.upper - box.lower) / 2 * (1 + 1e-12)).expand(4, -1)
    e = tangent.moves(low, high, start)
    assert bool((e <= start).all())
    bound, share = tangent.gains((net.C[0], net.D[0]), low, high, e)
    assert bool(torch.isfinite(bound).all() & (share >= 0).all())
    eye = torch.eye(6).double()
    for k in range(300):
        D = torch.rand(4, 6, generator=draw).double()
        D = low + (D.round() if k % 2 else D) * (high - low)
        # dv = (I - W D)^-1 U dx
        dv = torch.linalg.solve(eye - net.W * D[:, None, :], U.expand(4, -1, -1))
        assert bool((dv.abs().sum(2) <= e * (1 + 1e-12)).all())
        d = net.D[0] + torch.einsum("i,bi,bij->bj", net.C[0], D, dv)
        assert bool((d.abs().sum(1) <= bound * (1 + 1e-12)).all())
    # slopes that are known: the norm itself
    dv = torch.linalg.solve(eye - net.W, U)
    assert float(bound[1]) <= float((net.D[0] + net.C[0] @ dv).abs().sum()) * (1 + 1e-9)
