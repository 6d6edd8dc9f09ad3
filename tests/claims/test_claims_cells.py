"""Statements of the NEMON paper about parametrisations, measured."""

import pytest
import torch

from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.core.norms import MaxNorm
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Averaged, Jacobi


@pytest.mark.claim("arXiv 2106.03194", "section 5: every T gives a logarithmic norm below gamma")
@pytest.mark.parametrize("margin", [-1.0, 0.0, 0.5, 0.95])
def test_parametrisation_bounds_every_row(margin):
    torch.manual_seed(0)
    cell = NemonCell(2, 12, margin=margin, dtype=torch.float64)
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(2 * torch.randn_like(p))
    affine = cell.explicit()
    rows = MaxNorm(affine.witness).log_norm(affine.A.materialise())
    gap = torch.nn.functional.softplus(cell.damping).min()
    assert torch.allclose(rows, margin - gap, atol=1e-9)


@pytest.mark.claim("arXiv 2106.03194", "section 5: every matrix of smaller measure is reached")
def test_every_matrix_below_the_margin_is_reached():
    torch.manual_seed(0)
    target = torch.randn(6, 6, dtype=torch.float64)
    eta = torch.rand(6, dtype=torch.float64) + 0.5
    scaled = target * eta / eta[:, None]
    off = scaled - torch.diag(scaled.diagonal())
    measure = scaled.diagonal() + off.abs().sum(1)
    margin = 0.4
    target = target + torch.diag(margin - 0.1 - measure)
    cell = NemonCell(1, 6, margin=margin, dtype=torch.float64)
    with torch.no_grad():
        cell.log_eta.copy_(eta.log().sinh())
        cell.T.copy_(off)
        cell.damping.fill_(torch.tensor(0.1, dtype=torch.float64).expm1().log())
    assert torch.allclose(cell.explicit().A.materialise(), target, atol=1e-12)


@pytest.mark.claim("published convolution code", "the shift by the largest entry bounds nothing")
def test_a_shift_by_the_largest_entry_is_not_enough():
    torch.manual_seed(0)
    channels, k = 12, 5
    kernel = torch.rand(channels, channels, k, k)
    published = kernel / kernel.norm()
    shift = -channels * published.abs().max()
    assert float(published.abs().sum((1, 2, 3)).max() + shift) > 1
    ours = NemonConv2d(1, channels, image=(6, 6), kernel=k)
    with torch.no_grad():
        ours.K.copy_(published)
    A = ours.explicit().double().A.materialise()
    assert float(MaxNorm().log_norm(A)) <= 0


@pytest.mark.claim("arXiv 2106.03194", "theorem: averaged iteration converges for mu < 1")
def test_averaged_and_jacobi_meet():
    torch.manual_seed(0)
    cell = NemonCell(4, 20, margin=0.5, dtype=torch.float64)
    with torch.no_grad():
        cell.T.mul_(8)
    map_ = cell.bind(torch.randn(8, 4, dtype=torch.float64)).detach()
    tight = Stopping(rtol=1e-12, max_evaluations=20000)
    slow, fast = (solve(map_, map_.start(), s, tight) for s in (Averaged(), Jacobi()))
    assert torch.allclose(slow.value, fast.value, atol=1e-9)
    assert int(fast.evaluations.max()) * 4 < int(slow.evaluations.max())
