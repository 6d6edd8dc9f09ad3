"""Subhomogeneous cells: the rate does not depend on the weights, nor do their bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wellposed.attacks.pairs import lipschitz_lower
from wellposed.cells.subhomogeneous import SubhomogeneousCell
from wellposed.certify import enclose, lipschitz
from wellposed.certify.subhomogeneous import Ratio, RatioSlopes
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Picard
from wellposed.testing import check_cell, check_rule

UGLY = (1e-3, 1.0, 10.0, 1e3)


def cell(seed: int = 0, scale: float = 1.0, **options) -> SubhomogeneousCell:
    torch.manual_seed(seed)
    made = SubhomogeneousCell(4, 6, dtype=torch.float64, **options)
    with torch.no_grad():
        made.T.copy_(torch.randn(6, 6) * scale)
        made.inject.weight.copy_(torch.randn(6, 4))
    return made


def layer(made: SubhomogeneousCell) -> Equilibrium:
    return Equilibrium(made, eval_stopping=Stopping(1e-12, max_evaluations=5000)).eval()


def ends(made: SubhomogeneousCell, x: torch.Tensor) -> torch.Tensor:
    map_ = made.bind(x)
    return solve(map_, made.start(x, map_), Picard(), Stopping(1e-14, max_evaluations=5000)).value


def test_conforms():
    check_cell(cell(), torch.randn(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("scale", UGLY)
@pytest.mark.parametrize("degree", [0.3, 0.95])
def test_two_states_approach_by_the_degree(scale, degree):
    made = cell(scale=scale, degree=degree)
    map_ = made.bind(torch.randn(200, 4, dtype=torch.float64))
    one, two = (3 * torch.randn(200, 6, dtype=torch.float64) for _ in range(2))
    before = (one - two).abs().amax(1)
    after = (map_(one) - map_(two)).detach().abs().amax(1)
    assert bool((after <= degree * before * (1 + 1e-12)).all())
    if scale >= 1:  # and the map is no constant
        assert float((after / before).max()) > 0.2 * degree


@pytest.mark.parametrize("scale", UGLY)
def test_boxes_hold_what_they_promise(scale):
    made = cell(1, scale=scale)
    centre = torch.randn(3, 4, dtype=torch.float64)
    for eps in (0.0, 1e-3, 0.5):
        box = enclose(layer(made), Box.around(centre, eps))
        noise = torch.rand(200, 3, 4, dtype=torch.float64) * 2 - 1
        for part in (noise * eps, torch.where(noise > 0, eps, -eps).double()):
            y = ends(made, (centre + part).flatten(0, 1)).reshape(200, 3, 6)
            near = 1e-12 * (1 + y.abs())  # the solve itself is off by that much
            assert bool((y >= box.lower - near).all())
            assert bool((y <= box.upper + near).all())


def test_boxes_of_points_are_points():
    made = cell(2, scale=10.0)
    x = torch.randn(3, 4, dtype=torch.float64)
    box = enclose(made, Box(x, x))
    assert float((box.upper - box.lower).max()) < 1e-11
    assert torch.allclose(box.centre, ends(made, x), atol=1e-11)


@pytest.mark.parametrize("scale", UGLY)
@pytest.mark.parametrize("floor", [1e-9, 0.1])
def test_no_jacobian_exceeds_the_bound(scale, floor):
    made = cell(3, scale=scale, floor=floor)
    x = torch.randn(30, 4, dtype=torch.float64) * 3
    weights = Ratio.of(made)
    y, u, k = ends(made, x), x @ weights.U.mT + weights.b, made.degree / 2
    excited = y.exp() @ weights.E.mT + floor + u.sigmoid()
    inhibited = y.exp() @ weights.I.mT + floor + (-u).sigmoid()
    couple = weights.E / excited[:, :, None] - weights.I / inhibited[:, :, None]
    rate = k * u.sigmoid() * (-u).sigmoid() * (1 / excited + 1 / inhibited)
    system = torch.eye(6).double() - k * couple * y.exp()[:, None]
    jacobian = torch.linalg.solve(system, rate[:, :, None] * weights.U)
    bound = RatioSlopes(weights, None)
    rows = bound.apply(torch.ones(1, 4, dtype=torch.float64))
    columns = bound.adjoint(torch.ones(1, 6, dtype=torch.float64))
    assert bool((jacobian.abs().sum(2) <= rows * (1 + 1e-9)).all())
    assert bool((jacobian.abs().sum(1) <= columns * (1 + 1e-9)).all())


def test_the_lipschitz_rule_is_sound_tight_and_careful():
    def witness() -> nn.Module:
        # two neurons that inhibit each other, moved apart: inhibition far above the injection
        made = SubhomogeneousCell(1, 2, degree=0.9, floor=1e-12, dtype=torch.float64)
        with torch.no_grad():
            made.T.copy_(torch.tensor([[0.0, -1e7], [-1e7, 0.0]]))
            made.inject.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            made.inject.bias.fill_(-9.0)
        return layer(made)

    def negative() -> nn.Module:
        made = cell()
        made.floor = -0.1
        return layer(made)

    sample = torch.zeros(1, 4, dtype=torch.float64)
    norms = [MaxNorm(), TwoNorm()]
    report = check_rule(lambda: layer(cell()), sample, outside=[negative], norms=norms, rounds=1)
    assert report.refused == 0
    bound = lipschitz(witness()).value
    found = lipschitz_lower(witness(), torch.zeros(1, 1, dtype=torch.float64)).value
    assert bound / (1 + 1e-3) <= found <= bound


@pytest.mark.parametrize("norm", [MaxNorm(), OneNorm(), TwoNorm()])
def test_a_region_sharpens_the_bound_and_holds_there(norm):
    made = layer(cell(5))
    box = Box.around(torch.randn(4, dtype=torch.float64), 0.02)
    whole = lipschitz(made, norm_in=norm, norm_out=type(norm)()).value
    local = lipschitz(made, norm_in=norm, norm_out=type(norm)(), region=box).value
    points = box.lower + torch.rand(4, 4, dtype=torch.float64) * (box.upper - box.lower)
    found = lipschitz_lower(
        made, points, norm_in=norm, norm_out=type(norm)(), region=box, radii=(1e-3,), rounds=2
    )
    assert found.value <= local < whole


def test_gradients():
    made = cell(6)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer(made), (x,), eps=1e-6, atol=1e-6)


def test_bad_input():
    with pytest.raises(ConfigError, match="degree"):
        SubhomogeneousCell(3, 4, degree=1.0)
    with pytest.raises(ConfigError, match="floor"):
        SubhomogeneousCell(3, 4, floor=0.0)
    with pytest.raises(ShapeError, match="expected"):
        Equilibrium(cell())(torch.zeros(2, 5, dtype=torch.float64))
    made = cell()
    made.T.data[0, 1] = float("inf")
    with pytest.raises(NotCertifiableError, match="NaN or infinite"):
        lipschitz(made)
    made = cell()
    made.degree = 1.5
    with pytest.raises(NotCertifiableError, match="degree"):
        enclose(made, Box.around(torch.zeros(1, 4), 0.1))
