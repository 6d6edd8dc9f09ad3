"""Tightening: always contains, never wider, the phase trick allowed, every stage repeatable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from ugly_nets import contracting, descend, monotone, random_rows, regions, scope_of

from wellposed.certify import adjoint
from wellposed.certify import tighten as module
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.tighten import tighten
from wellposed.core.activations import ELU, Activation, LeakyReLU, ReLU, Sigmoid, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box, Region

KINDS: list[Activation] = [ReLU(), LeakyReLU(0.3), Tanh(), Sigmoid(), ELU()]


def neuron_attack(network: Network, region: Region, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (N, k, d) that push every preactivation up and down, and all ``v`` there."""
    n, count = network.n, region.shape[0]
    index = torch.arange(count).repeat_interleave(2 * n)
    sign = torch.tensor([1.0, -1.0]).double().repeat(n * count)[:, None]
    which = torch.arange(n).repeat_interleave(2).repeat(count)
    rows = Rows(sign * network.W[which], sign * network.U[which], sign[:, 0] * network.b[which])
    x = descend(network, region.box.select(index), rows, 3, seed)
    x = x.transpose(0, 1).reshape(count, -1, network.d)
    if isinstance(region, Ball):
        away = x - region.centre[:, None]
        x = region.centre[:, None] + away * (
            region.radius[:, None, None] / away.norm(dim=-1, keepdim=True)
        ).clamp(max=1)
    return x, approximate_equilibrium(network, x.reshape(-1, network.d)).reshape(count, -1, n)


def contains(scope: Scope, v: Tensor) -> bool:
    slack = 1e-9 * (v.abs() + 1e-6 * v.abs().amax(1, keepdim=True))
    low, high = scope.lower[:, None] - slack, scope.upper[:, None] + slack
    return bool(((v >= low) & (v <= high)).all())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("make", [contracting, monotone])
def test_contains_attacked_equilibria_and_is_never_wider(make, kind: Activation) -> None:
    network = make(1, activation=kind)
    system = DenseSystem(network)
    region = regions(1, 6, radius=0.5)
    first = scope_of(network, system, region)
    _, v = neuron_attack(network, region)
    assert contains(first, v)
    before = first
    for rounds in (1, 2, 5):
        tight, _ = tighten(system, first, rounds=rounds)
        assert contains(tight, v)
        assert (tight.lower >= before.lower).all()
        assert (tight.upper <= before.upper).all()
        before = tight
    assert (before.upper - before.lower).sum() < 0.9 * (first.upper - first.lower).sum()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("skew", [0.0, 6.0])
def test_unconverged_multipliers_and_skewed_weights(
    skew: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoint, "STEPS", steps)
    network = contracting(2, activation=LeakyReLU(0.7), skew=skew)
    system = DenseSystem(network)
    region = regions(2, 6, radius=0.5)
    first = scope_of(network, system, region)
    _, v = neuron_attack(network, region)
    tight, _ = tighten(system, first)
    assert contains(tight, v)
    assert (tight.lower >= first.lower).all()


def test_balls_are_tightened_as_balls() -> None:
    network = monotone(3)
    system = DenseSystem(network)
    g = torch.Generator().manual_seed(3)
    ball = Ball(torch.randn(4, 3, generator=g), 0.4)
    scope = scope_of(network, system, ball)
    _, v = neuron_attack(network, ball)
    tight, _ = tighten(system, scope, rounds=4)
    assert contains(tight, v)
    boxed, _ = tighten(system, scope_of(network, system, ball.box), rounds=4)
    assert (tight.upper - tight.lower).sum() < (boxed.upper - boxed.lower).sum()


@pytest.mark.parametrize("kind", [ReLU(), LeakyReLU(0.4)], ids=str)
def test_the_phase_trick_pays_and_holds(kind: Activation) -> None:
    """Without the restriction the same multipliers prove less."""
    network = monotone(4, n=10, activation=kind)
    system = DenseSystem(network)
    region = regions(4, 6, radius=0.4)
    first = scope_of(network, system, region)
    tight, proofs = tighten(system, first, rounds=1)
    _, v = neuron_attack(network, region)
    assert contains(tight, v)
    plain = with_trick = 0.0
    for k, stages in enumerate(proofs):
        for stage in stages:
            scope = first.select(torch.full((len(stage.neuron),), k))
            free, tricked = (repeat(system, scope, stage, trick) for trick in (False, True))
            assert (tricked >= free - 1e-12).all()
            plain, with_trick = plain + float(free.sum()), with_trick + float(tricked.sum())
    assert with_trick > plain + 1e-3


def repeat(system: DenseSystem, scope: Scope, stage: module.Stage, trick: bool) -> Tensor:
    """The bounds of a stage, from its multipliers alone."""
    sign = torch.where(stage.upper, -1.0, 1.0).double()
    net = system.network
    rows = Rows(
        sign[:, None] * net.W[stage.neuron],
        sign[:, None] * net.U[stage.neuron],
        sign * net.b[stage.neuron],
    )
    at = torch.arange(len(sign))
    low, high = scope.lower.clone(), scope.upper.clone()
    if trick:
        low[at[stage.upper], stage.neuron[stage.upper]] = 0.0
        high[at[~stage.upper], stage.neuron[~stage.upper]] = 0.0
    bound = dual_bound(system, scope.within(low, high), rows, stage.multipliers)
    return bound.clamp(max=0)


@pytest.mark.parametrize("kind", [ReLU(), LeakyReLU(0.2)], ids=str)
def test_every_stage_can_be_repeated_from_its_multipliers(kind: Activation) -> None:
    network = contracting(5, activation=kind)
    system = DenseSystem(network)
    region = regions(5, 4, radius=1.0)
    first = scope_of(network, system, region)
    tight, proofs = tighten(system, first, rounds=3)
    assert max(len(stages) for stages in proofs) >= 2
    for k, stages in enumerate(proofs):
        scope = first.select(torch.tensor([k]))
        for stage in stages:
            bound = repeat(system, scope.select(torch.zeros_like(stage.neuron)), stage, True)
            lower, upper = scope.lower.clone(), scope.upper.clone()
            low, high = stage.neuron[~stage.upper], stage.neuron[stage.upper]
            lower[0, low] = torch.maximum(lower[0, low], bound[~stage.upper])
            upper[0, high] = torch.minimum(upper[0, high], -bound[stage.upper])
            scope = Scope.of(system, scope.region, Box(lower, upper))
        torch.testing.assert_close(scope.lower[0], tight.lower[k], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(scope.upper[0], tight.upper[k], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", [contracting, monotone])
def test_a_region_does_not_depend_on_its_batch_mates(make, monkeypatch) -> None:
    monkeypatch.setattr(module, "BATCH", 7)
    network = make(6)
    system = DenseSystem(network)
    region = regions(6, 6, radius=1.0)
    scope = scope_of(network, system, region)
    together, proofs = tighten(system, scope, rounds=8)
    for k in range(6):
        alone, own = tighten(system, scope.select(torch.tensor([k])), rounds=8)
        assert len(own[0]) == len(proofs[k])
        torch.testing.assert_close(alone.lower[0], together.lower[k], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(alone.upper[0], together.upper[k], rtol=1e-11, atol=1e-12)


def test_nothing_to_do() -> None:
    network = contracting(7)
    system = DenseSystem(network)
    region = regions(7, 3)
    scope = scope_of(network, system, region)
    same, proofs = tighten(system, scope, rounds=0)
    assert same is scope
    assert proofs == [[], [], []]
    far = Scope.of(system, region, Box(scope.lower * 0 + 5, scope.upper * 0 + 6))
    assert tighten(system, far)[0] is far
    none, proofs = tighten(system, scope.select(torch.zeros(0, dtype=torch.long)))
    assert proofs == []
    assert none.lower.shape == (0, network.n)


def test_one_neuron_is_bounded_exactly() -> None:
    """``v = -z/2 + x`` on [-1, 2]: v in [-1, 4/3]."""
    one = torch.ones(1, 1)
    network = Network.of(-0.5 * one, one, torch.zeros(1), one, torch.zeros(1))
    system = DenseSystem(network)
    region = Box(-one.double(), 2 * one.double())
    start = Scope.of(system, region, Box(-9 * one.double(), 9 * one.double()))
    tight, _ = tighten(system, start, rounds=20, shrink=1e-6)
    assert -1 - 1e-9 <= float(tight.lower) <= -1
    assert 4 / 3 <= float(tight.upper) <= 4 / 3 + 1e-9


def test_rows_of_the_margin_profit() -> None:
    network = monotone(8)
    system = DenseSystem(network)
    scope = scope_of(network, system, regions(8, 6, radius=0.5))
    rows = random_rows(8, 6, network)
    tight, _ = tighten(system, scope)
    zero = torch.zeros(6, network.n).double()
    loose, better = (dual_bound(system, s, rows, zero) for s in (scope, tight))
    assert (better >= loose - 1e-12).all()
    assert (better > loose + 1e-6).any()
