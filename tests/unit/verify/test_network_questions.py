import pytest
import torch
from tests.unit.verify.small_nets import (
    box,
    cells,
    exact_minimum,
    network,
    output_rows,
    problem,
    samples,
    states,
)

from wellposed.core.sets import Box
from wellposed.errors import ShapeError
from wellposed.verify.brackets import (
    lipschitz_bracket,
    output_row,
    sign_along,
    value_brackets,
)
from wellposed.verify.branch import Budget, Problem
from wellposed.verify.deciding import decide
from wellposed.verify.derivatives import derivatives
from wellposed.verify.enclosing import _ask, guessed_bounds

KINDS = [{"seed": 0, "n": 5}, {"seed": 21, "n": 5, "linear": 2}, {"seed": 22, "n": 4, "leak": 0.3}]


def made(kind, radius=0.8):
    net, region = network(**kind), box(seed=kind["seed"], radius=radius)
    return net, region, problem(net, region)


def first(net):
    return output_rows(net).select(torch.tensor([0]))


def slopes_of(net, region):
    """The derivative of the first output in every phase pattern that occurs."""
    out = []
    for cell in cells(net, region, first(net)):
        D = torch.where(torch.tensor(cell.on) == 1, 1.0, net.slope)
        lam = torch.linalg.solve(torch.eye(net.n).double() - net.W.T * D, net.C[0])
        out.append(net.D[0] + net.U.T @ (D * lam))
    return torch.stack(out)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_range_is_that_of_enumeration(kind):
    net, region, held = made(kind)
    row = first(net)
    low, high = value_brackets(held, row, tolerance=1e-3, budget=Budget(seconds=20, batch=16))
    least, most = exact_minimum(net, region, row)[0], -exact_minimum(net, region, -row)[0]
    assert low.lower - 1e-7 <= float(least) <= low.upper + 1e-7
    assert high.lower - 1e-7 <= float(most) <= high.upper + 1e-7
    assert max(low.width, high.width) <= 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_lipschitz_constant_is_that_of_enumeration(kind):
    net, region, held = made(kind)
    exact = float(slopes_of(net, region).abs().sum(1).max())
    found = lipschitz_bracket(held, first(net), tolerance=1e-6, seconds=20)
    assert found.lower <= exact * (1 + 1e-9)
    assert found.upper >= exact * (1 - 1e-9)
    assert found.width <= 1e-5 * exact


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize("norm", ["1", "2"])
def test_the_constant_for_other_norms_of_inputs_that_were_divided(kind, norm):
    net, region, held = made(kind)
    scale = torch.tensor([0.5, 2.0, 0.1]).double()
    slopes = slopes_of(net, region) / scale
    exact = float(slopes.abs().max() if norm == "1" else slopes.norm(dim=1).max())
    found = lipschitz_bracket(
        held, first(net), norm=norm, scale=scale, tolerance=1e-6, seconds=20
    )  # fmt: skip
    assert found.lower <= exact * (1 + 1e-9)
    assert found.upper >= exact * (1 - 1e-9)
    assert found.width <= 1e-5 * exact


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_monotonicity_is_that_of_enumeration(kind):
    net, region, held = made(kind)
    slopes = slopes_of(net, region)
    for feature in range(net.d):
        for row, d in ((first(net), slopes), (-first(net), -slopes)):
            answer = sign_along(held, row, feature, seconds=20)
            assert answer == ("verified" if bool((d[:, feature] >= 0).all()) else "falsified")


def test_derivatives_contain_those_of_random_slopes():
    net = network(5, n=6)
    low, high = torch.zeros(3, 6).double(), torch.ones(3, 6).double()
    low[0], low[1, :4], high[2] = 1.0, 1.0, 0.3
    found = derivatives(net, net.C[0], net.D[0], low, high)
    assert bool(torch.isfinite(found.norm[:2]).all())
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        D = low + torch.rand(3, 6, generator=g).double().round() * (high - low)
        system = torch.eye(6).double() - net.W.T * D[:, None]
        lam = torch.linalg.solve(system, net.C[0].expand(3, -1))
        d = net.D[0] + (D * lam) @ net.U
        assert bool(((found.lower <= d) & (d <= found.upper)).all())
        assert bool((d.abs().sum(1) <= found.norm).all())
    # one pattern: the derivative up to rounding
    assert float((found.upper - found.lower)[0].max()) < 1e-12
    assert float(found.norm[0] - found.floor[0]) < 1e-11


def test_without_contraction_nothing_is_claimed():
    net = network(5, n=6, skew=20.0)
    zero, one = torch.zeros(1, 6).double(), torch.ones(1, 6).double()
    found = derivatives(net, net.C[0], net.D[0], zero, one)
    assert float(found.norm) == torch.inf
    assert bool((found.lower == -torch.inf).all())
    assert float(found.floor) == 0


def test_out_of_time_the_lipschitz_bracket_is_wide_but_true():
    net, region, held = made(KINDS[0])
    exact = float(slopes_of(net, region).abs().sum(1).max())
    found = lipschitz_bracket(held, first(net), seconds=0, inputs=0)
    assert found.lower <= exact <= found.upper
    assert found.width > 0.01 * exact


@pytest.mark.parametrize("kind", [*KINDS, {"seed": 3, "n": 6, "skew": 4.0}], ids=str)
def test_guessed_bounds_hold_and_are_narrower(kind):
    net, region, held = made(kind)
    wide = Box(held.scope.lower - 3, held.scope.upper + 3)
    loose = Problem(
        net, held.system, type(held.scope).of(held.system, region, wide), held.wellposed
    )
    scope, guesses = guessed_bounds(loose, Budget(seconds=100, nodes=20_000, batch=16))
    assert guesses[-1].proved
    assert bool((scope.upper <= loose.scope.upper).all() & (scope.lower >= loose.scope.lower).all())
    assert float((scope.upper - scope.lower).sum()) < float((wide.upper - wide.lower).sum())
    _, _, v = states(net, samples(region, 3000))
    assert bool(((v >= scope.lower) & (v <= scope.upper)).all())


def test_a_box_that_is_left_is_not_proved():
    net, region, held = made(KINDS[0])
    _, _, v = states(net, samples(region, 2000))
    low, high = v.amin(0), v.amax(0)
    middle, half = (low + high) / 2, (high - low) / 2
    for factor in (0.5, 0.9, 0.99):
        guess, failed, beyond = _ask(
            held, middle - factor * half, middle + factor * half, Budget(seconds=5, batch=16)
        )
        assert not guess.proved
        assert len(failed)
        assert float(beyond.max()) >= 0


def test_guesses_need_a_budget_and_one_region():
    _, _region, held = made(KINDS[0])
    scope, guesses = guessed_bounds(held, Budget(seconds=0))
    assert scope is held.scope
    assert guesses == []
    index = torch.zeros(2, dtype=torch.long)
    two = Problem(held.network, held.system, held.scope.select(index), held.wellposed)
    with pytest.raises(ShapeError, match="2 regions"):
        guessed_bounds(two)


def test_bad_questions_are_refused():
    net, _region, held = made(KINDS[0])
    with pytest.raises(ShapeError, match="One row"):
        value_brackets(held, output_rows(net))
    with pytest.raises(ShapeError, match="feature"):
        sign_along(held, first(net), net.d)
    for output in (2, -1, (0, 2), (0, 1, 0)):
        with pytest.raises(ShapeError, match="output"):
            output_row(held, output)


def test_deciding_agrees_with_enumeration_from_bounds_that_are_too_wide():
    net, region, held = made({"seed": 3, "n": 5, "skew": 4.0})
    wide = Box(held.scope.lower - 20, held.scope.upper + 20)
    loose = Problem(
        net, held.system, type(held.scope).of(held.system, region, wide), held.wellposed
    )
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + torch.tensor([0.01, -0.01]).double())
    # too little for the first round: the second one has to do it
    answers, better = decide(loose, rows, Budget(seconds=500, nodes=4000, batch=8, root=1, steps=2))
    assert [a.status for a in answers] == ["verified", "falsified"]
    assert bool((better.scope.upper <= wide.upper).all())
    idle, same = decide(loose, rows, Budget(seconds=0))
    assert [a.status for a in idle] == ["unknown", "unknown"]
    assert same is loose
