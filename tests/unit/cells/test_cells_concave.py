"""Positive concave cells: unique equilibria at weights of any size, exact corners, exact slopes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wellposed.attacks.pairs import lipschitz_lower
from wellposed.cells.concave import PositiveConcaveCell
from wellposed.certify import box_margins, enclose, lipschitz
from wellposed.certify.concave import Concave, ConcaveSlopes
from wellposed.core.activations import ReLU, Sigmoid, Tanh
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Picard
from wellposed.testing import check_cell, check_rule

UGLY = (1e-3, 1.0, 10.0, 1e3)


def cell(
    seed: int = 0, n: int = 6, d: int = 4, scale: float = 1.0, **options
) -> PositiveConcaveCell:
    torch.manual_seed(seed)
    made = PositiveConcaveCell(d, n, dtype=torch.float64, **options)
    with torch.no_grad():
        made.T.copy_(torch.randn(n, n) * scale)
        made.inject.weight.copy_(torch.randn(d, n).mT * max(scale, 0.1))
    return made


def layer(made: PositiveConcaveCell) -> Equilibrium:
    return Equilibrium(made, eval_stopping=Stopping(1e-12, max_evaluations=20000)).eval()


def ends(made: PositiveConcaveCell, x: torch.Tensor) -> torch.Tensor:
    map_ = made.bind(x)
    return solve(map_, map_.start(), Picard(), Stopping(1e-14, max_evaluations=20000)).value


@pytest.mark.parametrize("activation", [Tanh(), Sigmoid()])
def test_conforms(activation):
    report = check_cell(cell(activation=activation), torch.randn(4, 4, dtype=torch.float64))
    assert "the iteration converges" in report.passed


@pytest.mark.parametrize("scale", UGLY)
def test_the_equilibrium_is_unique_at_any_size(scale):
    made = cell(scale=scale)
    x = torch.randn(5, 4, dtype=torch.float64)
    map_ = made.bind(x)
    stop = Stopping(1e-13, max_evaluations=20000)
    low = solve(map_, torch.zeros(5, 6).double(), Picard(), stop).value
    high = solve(map_, torch.ones(5, 6).double() * 50, Picard(), stop).value
    assert torch.allclose(low, high, rtol=1e-9)
    assert bool((low > 0).all())


def test_weights_need_no_norm_below_one():
    made = cell(scale=10.0)
    assert float(made.explicit().W.detach().sum(1).min()) > 1
    bound = lipschitz(made, norm_in="max").value
    assert 0 < bound < float("inf")


@pytest.mark.parametrize("scale", UGLY)
@pytest.mark.parametrize("activation", [Tanh(), Sigmoid()])
def test_boxes_hold_what_they_promise(scale, activation):
    made = cell(1, scale=scale, activation=activation)
    centre = torch.randn(3, 4, dtype=torch.float64)
    for eps in (0.0, 1e-3, 0.3):
        box = enclose(layer(made), Box.around(centre, eps))
        noise = torch.rand(200, 3, 4, dtype=torch.float64) * 2 - 1
        corners = torch.where(noise > 0, eps, -eps).double()
        for part in (noise * eps, corners):
            z = ends(made, (centre + part).flatten(0, 1)).reshape(200, 3, 6)
            near = 1e-12 * (1 + z.abs())  # the solve itself is off by that much
            assert bool((z >= box.lower - near).all())
            assert bool((z <= box.upper + near).all())


def test_corners_are_exact():
    made = cell(2, scale=3.0)
    with torch.no_grad():
        made.inject.weight.abs_()  # the corners of the inputs are then those of the injections
    centre = torch.randn(3, 4, dtype=torch.float64)
    box = enclose(made, Box.around(centre, 0.2))
    assert torch.allclose(box.lower, ends(made, centre - 0.2), rtol=1e-9)
    assert torch.allclose(box.upper, ends(made, centre + 0.2), rtol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bad_guess_loosens_a_corner_and_nothing_else(monkeypatch, sign):
    weights = Concave.of(cell(3, scale=5.0))
    q = torch.rand(4, 6, dtype=torch.float64) + 0.1
    z = weights.solve(q)
    for wrong in (0.0, 0.5, 0.999, 1.5):
        monkeypatch.setattr(Concave, "solve", lambda self, q, w=wrong: (z * w).clamp(0, 1))
        gap = sign * (weights.corner(q, sign) - z)
        assert float(gap.min()) >= -1e-13


def test_the_lipschitz_rule_is_sound_tight_and_careful():
    def witness() -> nn.Module:
        made = cell(4, scale=0.5)
        with torch.no_grad():
            made.inject.weight.abs_()
            made.inject.bias.fill_(1e-9)  # just awake at zero, where the injection is smallest
        return layer(made)

    def negative() -> nn.Module:
        made = cell()
        made.off_diagonal.neg_()
        return layer(made)

    report = check_rule(
        # saturated states move less than the rounding of an estimate: other tests are about these
        lambda: layer(cell(scale=0.002)),
        torch.zeros(3, 4, dtype=torch.float64),
        witness=witness,
        outside=[negative],
        tightness=1 + 1e-4,
        rounds=2,
    )
    assert report.checked == 24
    assert report.refused == 0


@pytest.mark.parametrize("scale", UGLY)
def test_no_jacobian_exceeds_the_slopes_at_the_smallest_injection(scale):
    made = cell(8, scale=scale)
    weights = Concave.of(made)
    x = torch.randn(50, 4, dtype=torch.float64) * torch.logspace(-3, 1, 50).double()[:, None]
    q = made.bind(x).offset
    # the difference 1 - z^2 would have no digits left where states saturate
    slope = torch.cosh(ends(made, x) @ weights.W.mT + q).pow(-2)
    awake = (q > made.floor).double()
    system = torch.eye(6).double() - slope[:, :, None] * weights.W
    jacobian = torch.linalg.solve(system, (slope * awake)[:, :, None] * weights.U)
    bound = ConcaveSlopes(weights, None)
    ones = torch.ones(1, 4, dtype=torch.float64)
    assert bool((jacobian.abs().sum(2) <= bound.apply(ones) * (1 + 1e-9)).all())
    back = bound.adjoint(torch.ones(1, 6, dtype=torch.float64))
    assert bool((jacobian.abs().sum(1) <= back * (1 + 1e-9)).all())


@pytest.mark.parametrize("norm", [MaxNorm(), OneNorm(), TwoNorm()])
def test_a_region_sharpens_the_bound_and_holds_there(norm):
    made = layer(cell(5, scale=2.0))
    box = Box.around(torch.randn(4, dtype=torch.float64), 0.05)
    whole = lipschitz(made, norm_in=norm, norm_out=type(norm)()).value
    local = lipschitz(made, norm_in=norm, norm_out=type(norm)(), region=box).value
    points = box.lower + torch.rand(6, 4, dtype=torch.float64) * (box.upper - box.lower)
    found = lipschitz_lower(
        made, points, norm_in=norm, norm_out=type(norm)(), region=box, radii=(1e-3, 0.03)
    )
    assert found.value <= local < whole


def test_bfloat16_weights_are_certified_as_rounded():
    made = cell(6, scale=2.0).to(torch.bfloat16).to(torch.float64)
    bound = lipschitz(layer(made)).value
    found = lipschitz_lower(layer(made), torch.zeros(4, 4, dtype=torch.float64))
    assert found.value <= bound


def test_margins_of_a_classifier():
    torch.manual_seed(0)
    net = nn.Sequential(layer(cell(7)), nn.Linear(6, 3).double()).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    y = net(x).argmax(1)
    proved = box_margins(net, Box.around(x, 1e-3), y)
    logits = net(x)
    true = logits.gather(1, y[:, None]) - logits
    assert bool((proved.clamp(max=1e9) <= true.scatter(1, y[:, None], 1e9) + 1e-9).all())
    assert bool((proved > 0).all(1).any())


def test_bad_input():
    with pytest.raises(ConfigError, match="floor"):
        PositiveConcaveCell(3, 4, floor=0.0)
    with pytest.raises(ConfigError, match="relu"):
        PositiveConcaveCell(3, 4, activation=ReLU())
    with pytest.raises(ShapeError, match="expected"):
        Equilibrium(cell())(torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ShapeError, match="dtype"):
        Equilibrium(cell())(torch.zeros(2, 4))
    made = cell()
    made.off_diagonal.neg_()
    with pytest.raises(NotCertifiableError, match="leaves the cone"):
        enclose(made, Box.around(torch.zeros(1, 4), 0.1))
    made = cell()
    made.floor = -1.0
    with pytest.raises(NotCertifiableError, match="floor"):
        lipschitz(made)
    made = cell()
    made.T.data[0, 1] = float("nan")
    with pytest.raises(NotCertifiableError, match="NaN"):
        lipschitz(made)
