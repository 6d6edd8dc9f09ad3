"""The dual bound: below the minimum for any multiplier, exact where duality is, rounding paid."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from ugly_nets import (
    contracting,
    descend,
    monotone,
    random_rows,
    regions,
    scope_of,
    values,
)

from wellposed.certify import dual
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.crown import multipliers
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound, inner
from wellposed.certify.system import Neurons
from wellposed.certify.wellposed import wellposedness
from wellposed.core.activations import (
    ELU,
    GELU,
    Activation,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.verify.witness import proved_values

KINDS: list[Activation] = [ReLU(), LeakyReLU(0.1), LeakyReLU(0.7), Tanh(), Sigmoid(), ELU()]
SCALES = (0.0, 1e-300, 1e-8, 0.1, 1.0, 30.0, 1e8, 1e300)


def many_multipliers(system: DenseSystem, scope: Scope, rows: Rows, seed: int) -> list[Tensor]:
    """Random ones of all sizes, and those of CROWN, exact and disturbed."""
    g = torch.Generator().manual_seed(seed)
    p = multipliers(system, scope, rows)
    noise = torch.randn(p.shape, generator=g).double()
    return [p, -p, p + 1e-3 * noise, p * 1e6, *[s * noise for s in SCALES]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("make", [contracting, monotone])
def test_any_multiplier_stays_below_random_and_attacked_inputs(make, kind: Activation) -> None:
    network = make(1, activation=kind)
    system = DenseSystem(network)
    region = regions(1, 12)
    scope, rows = scope_of(network, system, region), random_rows(1, 12, network)
    value, error = values(network, rows, descend(network, region, rows))
    for p in many_multipliers(system, scope, rows, 1):
        bound = dual_bound(system, scope, rows, p)
        assert (bound <= value + error).all()


@pytest.mark.parametrize("skew", [4.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_skewed_weights_against_proved_values(seed: int, skew: float) -> None:
    """No tolerance: the value of an input carries its own proved error."""
    network = contracting(seed, activation=LeakyReLU(0.25), skew=skew)
    system = DenseSystem(network)
    region = regions(seed, 9)
    scope, rows = scope_of(network, system, region), random_rows(seed, 9, network)
    x = descend(network, region, rows)
    witness = wellposedness(network)
    upper = torch.stack([proved_values(network, witness, rows, part) for part in x])
    assert torch.isfinite(upper).all()
    for p in many_multipliers(system, scope, rows, seed):
        assert (dual_bound(system, scope, rows, p) <= upper).all()


def test_a_ball_and_its_box() -> None:
    network = contracting(4)
    system = DenseSystem(network)
    ball = Ball(torch.randn(6, 3, generator=torch.Generator().manual_seed(4)), 0.3)
    scope, rows = scope_of(network, system, ball), random_rows(4, 6, network)
    p = multipliers(system, scope, rows)
    round_bound = dual_bound(system, scope, rows, p)
    box = Scope.of(system, ball.box, scope.bounds)
    assert (round_bound >= dual_bound(system, box, rows, p) - 1e-12).all()
    x = descend(network, ball, rows) - ball.centre
    x = ball.centre + x * (0.3 / x.norm(dim=-1, keepdim=True)).clamp(max=1)
    value, error = values(network, rows, x)
    assert (round_bound <= value + error).all()


@pytest.mark.parametrize("kind", [ReLU(), LeakyReLU(0.2), Tanh()], ids=str)
def test_split_intervals_bound_the_inputs_of_their_case(kind: Activation) -> None:
    network = contracting(5, n=6, activation=kind, identities=False)
    system = DenseSystem(network)
    region = Box(-torch.ones(1, 3).double(), torch.ones(1, 3).double())
    scope = scope_of(network, system, region)
    g = torch.Generator().manual_seed(5)
    x = 2 * torch.rand(4000, 3, generator=g).double() - 1
    v = approximate_equilibrium(network, x)
    rows = random_rows(5, 1, network)
    value, error = values(network, Rows(rows.state, rows.input, rows.offset), x[:, None])
    seen = 0
    for case in range(2**6):
        on = torch.tensor([(case >> i) & 1 for i in range(6)]).bool()
        lower = torch.where(on, scope.lower.clamp(min=0), scope.lower)
        upper = torch.where(on, scope.upper, scope.upper.clamp(max=0))
        if not bool((lower <= upper).all()):
            continue
        mine = ((v > 0) == on).all(1)
        seen += int(mine.any())
        part = scope.within(lower, upper)
        for p in many_multipliers(system, part, rows, case)[:6]:
            bound = dual_bound(system, part, rows, p)
            assert (bound <= (value + error)[mine]).all()
    assert seen >= 4


def test_exact_where_every_neuron_is_stable() -> None:
    network = contracting(6)
    network = Network.of(
        network.W, network.U, network.b, network.C, network.c, linear=network.b < 9
    )
    system = DenseSystem(network)
    region = regions(6, 6)
    scope, rows = scope_of(network, system, region), random_rows(6, 6, network)
    system_matrix = torch.eye(network.n).double() - network.W
    gain = rows.state @ torch.linalg.solve(system_matrix, network.U) + rows.input
    shift = rows.offset + rows.state @ torch.linalg.solve(system_matrix, network.b)
    exact = shift + torch.minimum(gain * region.lower, gain * region.upper).sum(1)
    p = torch.linalg.solve(system_matrix.mT, rows.state.mT).mT
    bound = dual_bound(system, scope, rows, p)
    assert (bound <= exact + 1e-13).all()
    torch.testing.assert_close(bound, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("own", [-2.0, 0.0, 0.6])
def test_one_neuron_reaches_the_hull_of_its_graph(slope: float, sign: float, own: float) -> None:
    """Sup over p is the minimum over the convex hull; the interval is the exact one."""
    one = torch.ones(1, 1)
    kind = LeakyReLU(slope)
    network = Network.of(own * one, one, torch.tensor([0.25]), one, torch.zeros(1), activation=kind)
    system = DenseSystem(network)
    region = Box(-one.double(), one.double())
    low, high = -0.75 / (1 - own * slope), 1.25 / (1 - own)
    scope = Scope.of(system, region, Box(low * one.double(), high * one.double()))
    rows = Rows(sign * one.double(), None, torch.zeros(1).double())
    best_p = [sign / (1 - own), sign * slope / (1 - own * slope)]
    p = torch.tensor([*np.linspace(-3, 3, 1201), *best_p], dtype=torch.float64)[:, None]
    index = torch.zeros(len(p), dtype=torch.long)
    best = float(dual_bound(system, scope.select(index), rows.select(index), p).max())
    # the exact minimum: the row is monotone in x, and the hull's extreme points are on the graph
    exact = min(sign * slope * low, sign * high)
    assert best <= exact + 1e-14
    assert best >= exact - 6e-3


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_multiplier_is_the_triangle_relaxation(seed: int, slope: float) -> None:
    network = contracting(seed + 20, n=4, d=2, activation=LeakyReLU(slope), identities=False)
    system = DenseSystem(network)
    region = Box(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    scope, rows = scope_of(network, system, region), random_rows(seed, 1, network)
    low, high = scope.lower[0].numpy(), scope.upper[0].numpy()
    n = network.n
    eye, none = np.eye(n), np.zeros((n, network.d))
    # variables v, z, x; z above both pieces, below the chord
    phi = [np.maximum(e, slope * e) for e in (low, high)]
    rise = (phi[1] - phi[0]) / (high - low)
    triangles = np.vstack([
        np.hstack([eye, -eye, none]),
        np.hstack([slope * eye, -eye, none]),
        np.hstack([-np.diag(rise), eye, none]),
    ])  # fmt: skip
    limits = np.concatenate([np.zeros(2 * n), phi[0] - rise * low])
    found = linprog(
        np.concatenate([np.zeros(n), rows.state[0].numpy(), rows.input[0].numpy()]),
        triangles,
        limits,
        np.hstack([eye, -network.W.numpy(), -network.U.numpy()]),
        network.b.numpy(),
        [*zip(low, high, strict=True), *[(None, None)] * n, *[(-1, 1)] * network.d],
        method="highs",
    )
    assert found.status == 0
    best = float(found.fun) + float(rows.offset)
    p = torch.from_numpy(np.array(found.eqlin.marginals))[None]
    assert abs(float(dual_bound(system, scope, rows, p)) - best) <= 1e-6 * (1 + abs(best))
    for other in many_multipliers(system, scope, rows, seed):
        assert float(dual_bound(system, scope, rows, other)) <= best + 1e-6 * (1 + abs(best))


def test_no_multiplier_no_bound() -> None:
    network = contracting(7)
    system = DenseSystem(network)
    scope, rows = scope_of(network, system, regions(7, 1)), random_rows(7, 1, network)
    for bad in (torch.nan, torch.inf, -torch.inf):
        p = torch.zeros(1, network.n).double()
        p[0, 2] = bad
        assert float(dual_bound(system, scope, rows, p)) == -torch.inf
    broken = Rows(rows.state * torch.nan, rows.input, rows.offset)
    zero = torch.zeros(1, network.n).double()
    assert float(dual_bound(system, scope, broken, zero)) == -torch.inf


def exact_dual(network: Network, scope: Scope, rows: Rows, p: Tensor) -> Fraction:
    """``L(p)`` of one row in rational arithmetic."""

    def exact(t: Tensor) -> list[Fraction]:
        return [Fraction(float(e)) for e in t]

    q, s, r = exact(p[0]), exact(rows.input[0]), exact(rows.state[0])
    slope = exact(network.slope)
    low, high = exact(scope.lower[0]), exact(scope.upper[0])
    box = scope.region.box
    at, to = exact(box.lower[0]), exact(box.upper[0])
    W, U = [exact(row) for row in network.W], [exact(row) for row in network.U]
    total = Fraction(float(rows.offset)) + sum(
        a * b for a, b in zip(q, exact(network.b), strict=True)
    )
    for j in range(network.d):
        d = s[j] + sum(q[i] * U[i][j] for i in range(network.n))
        total += min(d * at[j], d * to[j])
    for i in range(network.n):
        lam = r[i] + sum(q[k] * W[k][i] for k in range(network.n))
        ends = [low[i], high[i], *([Fraction(0)] if low[i] < 0 < high[i] else [])]
        total += min(lam * max(v, slope[i] * v) - q[i] * v for v in ends)
    return total


def rational_case(seed: int, spread: float) -> tuple[DenseSystem, Scope, Rows, Tensor]:
    """Arbitrary numbers, of sizes 10 to ``+-spread``: weak duality asks nothing of a network."""
    g = torch.Generator().manual_seed(seed)
    n, d = int(torch.randint(1, 4, (), generator=g)), int(torch.randint(1, 4, (), generator=g))

    def draw(*shape: int) -> Tensor:
        size = 10.0 ** (spread * (2 * torch.rand(shape, generator=g).double() - 1))
        return size * torch.randn(shape, generator=g).double()

    network = Network.of(draw(n, n), draw(n, d), draw(n), draw(1, n), draw(1),
                         activation=LeakyReLU(float(torch.rand((), generator=g))),
                         linear=torch.rand(n, generator=g) < 0.2)  # fmt: skip
    system = DenseSystem(network)
    ends, sides = (torch.stack([draw(1, k), draw(1, k)]) for k in (n, d))
    region = Box(sides.amin(0), sides.amax(0))
    scope = Scope.of(system, region, Box(ends.amin(0), ends.amax(0)))
    return system, scope, Rows(draw(1, n), draw(1, d), draw(1)), draw(1, n)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 2.0, 8.0, 40.0]))
def test_rounding_never_lifts_the_bound_above_the_exact_value(seed: int, spread: float) -> None:
    system, scope, rows, p = rational_case(seed, spread)
    bound = float(dual_bound(system, scope, rows, p))
    exact = exact_dual(system.network, scope, rows, p)
    assert Fraction(bound) <= exact
    # and what is given away is a matter of rounding
    size = (p.abs() * scope.size + rows.state.abs() * scope.state).sum()
    size = size + rows.offset.abs().sum() + (rows.input.abs() * scope.input).sum()
    assert bound >= float(exact) - 1e-12 * float(size) - 1e-250


def test_without_the_slack_some_bounds_would_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "rounding", lambda terms: 0.0)
    lies = 0
    for seed in range(60):
        system, scope, rows, p = rational_case(seed, 2.0)
        point = Box(scope.region.box.lower * 0, scope.region.box.lower * 0)
        scope = Scope.of(system, point, scope.bounds)
        exact = exact_dual(system.network, scope, rows, p)
        lies += Fraction(float(dual_bound(system, scope, rows, p))) > exact
    assert lies > 0


SMOOTH: list[Activation] = [Tanh(), Sigmoid(), ELU(), Softplus(), GELU(), SiLU()]


@pytest.mark.parametrize("kind", SMOOTH, ids=str)
def test_pieces_of_smooth_functions_lie_below_the_function(kind: Activation) -> None:
    g = torch.Generator().manual_seed(8)
    count = 400
    size = 10.0 ** (4 * torch.rand(2, count, generator=g).double() - 3)
    ends = size * torch.randn(2, count, generator=g).double()
    lower, upper = ends.amin(0), ends.amax(0)
    lower[:20] = upper[:20]
    neurons = Neurons(kind, torch.arange(count) % 7 == 6)
    scale = 10.0 ** (8 * torch.rand(2, count, generator=g).double() - 4)
    lam, p = scale * torch.randn(2, count, generator=g).double()
    p[::3] = lam[::3] * torch.rand(count, generator=g).double()[::3]  # minima inside
    found = inner(neurons, lam, p, lower, upper)
    share = torch.linspace(0, 1, 4001).double()[:, None]
    v = torch.minimum(lower + share * (upper - lower), upper)
    least = (lam * neurons(v) - p * v).amin(0)
    assert (found <= least).all()
    # loose by the change of the slope over an eighth of the interval, at the most
    low, high = neurons.slope_range(lower, upper)
    loss = lam.abs() * (high - low) * (upper - lower) / dual.PIECES
    assert (found >= least - loss - 1e-11 * (lam.abs() + p.abs()) * (1 + v.abs().amax(0))).all()


def test_kink_formula_is_the_minimum_at_ends_and_kink() -> None:
    g = torch.Generator().manual_seed(9)
    ends = torch.randn(2, 500, generator=g).double()
    ends[:, :50] = 0.0
    ends[0, 50:100] = 0.0
    lower, upper = ends.amin(0), ends.amax(0)
    lam, p = torch.randn(2, 500, generator=g).double()
    for slope in (0.0, 0.3):
        neurons = Neurons(LeakyReLU(slope), torch.arange(500) % 5 == 0)
        share = torch.linspace(0, 1, 2001).double()[:, None]
        v = torch.cat([lower + share * (upper - lower), torch.zeros(500).clamp(lower, upper)[None]])
        least = (lam * neurons(v) - p * v).amin(0)
        torch.testing.assert_close(inner(neurons, lam, p, lower, upper), least, rtol=0, atol=1e-14)


def test_a_scope_bounds_every_state_and_sum() -> None:
    network = contracting(10, activation=Tanh(), skew=2.0)
    system = DenseSystem(network)
    region = regions(10, 5)
    scope = scope_of(network, system, region)
    x = descend(network, region, random_rows(10, 5, network))
    v = approximate_equilibrium(network, x.reshape(-1, 3)).reshape(*x.shape[:2], -1)
    z = network.phi(v)
    assert (z.abs() <= scope.state).all()
    assert (x.abs() <= scope.input).all()
    terms = z.abs() @ network.W.abs().mT + x.abs() @ network.U.abs().mT
    assert (terms + network.b.abs() + v.abs() <= scope.size).all()
    twice = scope.select(torch.tensor([2, 2]))
    assert torch.equal(twice.lower[0], scope.lower[2])
    assert torch.equal(twice.region.box.upper[1], region.upper[2])
