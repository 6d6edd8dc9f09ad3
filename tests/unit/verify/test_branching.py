import pytest
import torch
from tests.unit.verify.small_nets import (
    box,
    exact_minimum,
    network,
    output_rows,
    problem,
    samples,
    states,
)

from wellposed.certify.crown import Lower, crown
from wellposed.certify.dual import Rows, dual_bound
from wellposed.core.sets import Ball, Box
from wellposed.errors import ConfigError, ShapeError
from wellposed.verify import branch as module
from wellposed.verify.bounding import Ascent
from wellposed.verify.branch import Budget, branch
from wellposed.verify.deciding import decide
from wellposed.verify.exact import Programme
from wellposed.verify.extreme import Inputs
from wellposed.verify.reduced import Reduced

BUDGET = Budget(seconds=20, nodes=20_000, batch=16)
NETS = [{"seed": s, "n": 5} for s in range(3)] + [
    {"seed": 20, "n": 6, "leak": 0.2},
    {"seed": 21, "n": 6, "linear": 2},
    {"seed": 22, "n": 4, "leak": 0.6, "linear": 1},
    {"seed": 23, "n": 5, "skew": 4.0},
]


def made(kind):
    net, region = network(**kind), box(seed=kind["seed"], radius=0.8)
    return net, region, problem(net, region)


@pytest.fixture(params=NETS, ids=str, scope="module")
def case(request):
    return made(request.param)


def one(rows, k):
    return rows.select(torch.tensor([k]))


def test_verdicts_are_those_of_enumeration_and_of_the_mixed_integer_programme(case):
    net, region, held = case
    least = exact_minimum(net, region, output_rows(net))
    reduced = Reduced.of(net, Box(held.scope.lower[0], held.scope.upper[0]))
    programme = Programme(reduced, Box(region.lower[0], region.upper[0]))
    for shift in (-0.02, 0.02):
        # the minimum of the shifted row is `-shift`: its sign is known
        rows = output_rows(net, -least - shift)
        answers = branch(held, rows, BUDGET)
        for k, answer in enumerate(answers):
            assert answer.status == ("verified" if shift < 0 else "falsified")
            assert answer.lower <= -shift + 1e-6
            hint = programme.feasible(one(rows, k), seconds=20)
            assert hint.status == ("infeasible" if shift < 0 else "feasible")
            if answer.witness is not None and shift > 0:
                assert bool(region.contains(answer.witness[None]).all())
                z, x, _ = states(net, answer.witness[None])
                value = rows.state[k] @ z[0] + rows.input[k] @ x[0] + rows.offset[k]
                assert float(value) < 0
                assert float(value) <= answer.upper


def test_the_minimum_is_bracketed(case):
    net, region, held = case
    rows = output_rows(net)
    least = exact_minimum(net, region, rows)
    for k, answer in enumerate(branch(held, rows, BUDGET, gap=1e-3)):
        assert answer.status == "verified"
        assert answer.lower <= float(least[k]) + 1e-7
        assert answer.upper >= float(least[k]) - 1e-7
        assert answer.upper - answer.lower <= 1e-3


def test_leaves_cover_and_every_multiplier_proves_its_leaf(case):
    net, region, held = case
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + 0.005)
    z, x, v = states(net, samples(region))
    for k, answer in enumerate(branch(held, rows, BUDGET)):
        assert answer.status == "verified"
        value = z @ rows.state[k] + x @ rows.input[k] + rows.offset[k]
        met = torch.zeros(len(z), dtype=torch.long)
        leaf = 0
        # walk the tree in preorder with the intervals of every node
        stack = [(held.scope.lower[0].clone(), held.scope.upper[0].clone())]
        for neuron in answer.split.tolist():
            low, high = stack.pop()
            if neuron < 0:
                scope = held.scope.within(low[None], high[None])
                p = answer.multipliers[leaf].double()[None]
                bound = dual_bound(held.system, scope, one(rows, k), p)
                assert float(bound) == pytest.approx(float(answer.bounds[leaf]), rel=1e-12)
                assert float(bound) > 0
                inside = ((v >= low) & (v <= high)).all(1)
                assert bool((value[inside] >= bound).all())
                met += inside.long()
                leaf += 1
            else:
                on, off = (low.clone(), high.clone()), (low.clone(), high.clone())
                on[0][neuron], off[1][neuron] = 0.0, 0.0
                stack += [on, off]
        assert not stack
        assert leaf == len(answer.multipliers) == len(answer.bounds)
        assert bool((met >= 1).all())


def test_without_split_and_ascent_the_bound_is_the_adjoint_equilibriums(case):
    net, _, held = case
    reduced = Reduced.of(net, Box(held.scope.lower[0], held.scope.upper[0]))
    rows = output_rows(net)
    ascent = Ascent(reduced, Inputs(held.scope.region), reduced.rows(rows), inner=100)
    nodes = ascent.run(ascent.roots(), 1, torch.full((net.q,), torch.inf).double())
    index = torch.zeros(net.q, dtype=torch.long)
    scope = held.scope.select(index)
    expected, _ = crown(held.system, scope, rows, (Lower.ADAPTIVE,))
    assert torch.allclose(nodes.bound, expected, rtol=1e-3, atol=1e-3)
    # brought back to the whole network the multiplier proves what the search computed
    proved = dual_bound(held.system, scope, rows, reduced.expand(rows.state, nodes.p))
    assert torch.allclose(proved, nodes.bound, rtol=1e-9, atol=1e-9)


def test_ascent_reaches_the_linear_programme_and_never_exceeds_it(case):
    net, region, held = case
    reduced = Reduced.of(net, Box(held.scope.lower[0], held.scope.upper[0]))
    rows = output_rows(net)
    programme = Programme(reduced, Box(region.lower[0], region.upper[0]))
    ascent = Ascent(reduced, Inputs(region), reduced.rows(rows))
    goal = torch.full((net.q,), torch.inf).double()
    start = ascent.run(ascent.roots(), 1, goal).bound
    found = ascent.run(ascent.roots(), 200, goal).bound
    for k in range(net.q):
        best = programme.relax(one(rows, k), torch.zeros(reduced.k))
        assert float(found[k]) <= best.value + 1e-7
        gain = best.value - float(start[k])
        assert best.value - float(found[k]) <= 0.2 * gain + 1e-3
        proof = reduced.expand(one(rows, k).state, best.p[None])
        proved = dual_bound(held.system, held.scope, one(rows, k), proof)
        assert float(proved) == pytest.approx(best.value, abs=1e-6)


def test_empty_nodes_are_proved_empty():
    # v_0 = x, v_1 = x + 2 with |x| <= 3: both phases are open, but not "0 on, 1 off"
    net = network(0, n=2, d=1, q=1)
    zero = torch.zeros(2, 2).double()
    net = type(net).of(zero, torch.ones(2, 1).double(), torch.tensor([0.0, 2.0]), net.C, net.c)
    region = Box(torch.tensor([[-3.0]]).double(), torch.tensor([[3.0]]).double())
    held = problem(net, region)
    reduced = Reduced.of(net, Box(held.scope.lower[0], held.scope.upper[0]))
    programme = Programme(reduced, Box(region.lower[0], region.upper[0]))
    rows = Rows(torch.zeros(1, 2).double(), None, torch.tensor([-100.0]).double())
    found = programme.relax(rows, torch.tensor([1.0, -1.0]))
    assert found.value == torch.inf
    low, high = held.scope.lower.clone(), held.scope.upper.clone()
    low[0, 0], high[0, 1] = 0.0, 0.0
    assert found.excess > 0
    proof = reduced.expand(rows.state, found.p[None] * 300 / found.excess)
    assert float(dual_bound(held.system, held.scope.within(low, high), rows, proof)) > 100
    assert programme.relax(rows, torch.tensor([1.0, 1.0])).value == pytest.approx(-100)


@pytest.mark.parametrize("budget", [Budget(seconds=0), Budget(nodes=0)])
def test_without_a_budget_nothing_is_known(budget):
    net, _, held = made(NETS[0])
    for shift in (-1e3, 1e3):
        for answer in branch(held, output_rows(net, shift), budget):
            assert answer.status == "unknown"
            assert answer.lower == -torch.inf
            assert answer.witness is None
            assert len(answer.multipliers) == 1


def test_a_budget_that_ends_early_leaves_unknown_with_a_true_bound():
    net, region, held = made(NETS[6])
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + 1e-6)
    answers = branch(held, rows, Budget(nodes=2, root=1, steps=1))
    assert any(a.status == "unknown" for a in answers)
    for answer in answers:
        assert -torch.inf < answer.lower <= 1e-6
        assert answer.status == ("verified" if answer.lower > 0 else "unknown")


def test_interruption_keeps_what_is_decided(monkeypatch):
    net, region, held = made(NETS[6])
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + torch.tensor([100.0, 1e-4]).double())
    run, calls = module.Ascent.run, []

    def interrupted(self, nodes, steps, enough):
        calls.append(len(nodes))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, nodes, 1, enough)

    monkeypatch.setattr(module.Ascent, "run", interrupted)
    first, second = branch(held, rows, Budget(batch=2))
    assert (first.status, second.status) == ("verified", "unknown")
    assert second.lower <= 1e-4
    assert second.interrupted
    calls[:] = [0, 0]
    assert [a.status for a in branch(held, rows)] == ["unknown", "unknown"]


def test_the_first_counter_example_ends_the_search():
    net, region, held = made(NETS[6])
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + torch.tensor([-0.5, 1e-5]).double())
    early = branch(held, rows, BUDGET, every=False)
    assert early[0].status == "falsified"
    assert sum(a.nodes for a in early) < sum(a.nodes for a in branch(held, rows, BUDGET))


def test_balls():
    net = network(3, n=4)
    centre = box(seed=3).centre
    ball = Ball(centre, 0.8, low=centre - 0.5, high=centre + 0.6)
    held = problem(net, ball)
    rows = output_rows(net)
    answers = branch(held, rows, Budget(seconds=20, nodes=3000), gap=0.05)
    x = samples(ball.box, 3000)
    z, x, _ = states(net, x[ball.contains(x)])
    value = net.output(z, x)
    for k, answer in enumerate(answers):
        assert answer.lower <= float(value[:, k].min())
        assert bool(ball.contains(answer.witness[None]).all())
        assert answer.upper <= float(value[:, k].min()) + 0.05


def test_a_wide_interval_of_bounds_changes_nothing_but_the_work(case):
    net, region, held = case
    least = exact_minimum(net, region, output_rows(net))
    rows = output_rows(net, -least + 0.01)
    wide = Box(held.scope.lower - 2, held.scope.upper + 2)
    scope = type(held.scope).of(held.system, region, wide)
    answers = branch(module.replace(held, scope=scope), rows, BUDGET)
    assert [a.status for a in answers] == ["verified"] * net.q


def test_no_question_has_no_answer(case):
    net, _, held = case
    nothing = torch.zeros(0, dtype=torch.long)
    assert branch(held, output_rows(net).select(nothing), BUDGET) == ()


def test_bad_input():
    net, region, held = made(NETS[0])
    with pytest.raises(ConfigError):
        Budget(batch=0)
    with pytest.raises(ConfigError):
        Budget(seconds=-1)
    with pytest.raises(ConfigError, match="gap"):
        branch(held, output_rows(net), gap=0.0)
    with pytest.raises(ShapeError):
        branch(held, Rows(torch.zeros(1, 7).double(), None, torch.zeros(1).double()))
    with pytest.raises(ShapeError):
        Inputs(Box(region.lower.expand(2, -1), region.upper.expand(2, -1)))
    reduced = Reduced.of(net, Box(held.scope.lower[0], held.scope.upper[0]))
    with pytest.raises(ConfigError, match="one box"):
        Programme(reduced, region)


@pytest.mark.parametrize("seconds", [1e-9, 1e-4])
def test_a_budget_that_the_first_search_overdraws_ends_without_an_error(case, seconds):
    net, _, held = case
    answers, _ = decide(held, output_rows(net), Budget(seconds=seconds, batch=4))
    assert {a.status for a in answers} <= {"verified", "falsified", "unknown"}
