"""Bounds of a row where it is small: below every value, closing a gap of the relaxation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ugly_nets import contracting, descend, monotone, random_rows, regions, scope_of, values

from wellposed.certify import adjoint
from wellposed.certify.ascent import improve
from wellposed.certify.assumed import assumed_bound
from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.tighten import tighten
from wellposed.core.activations import ELU, Activation, LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Box

KINDS: list[Activation] = [ReLU(), LeakyReLU(0.3), Tanh(), ELU()]


def nearly_proved(network: Network, system: DenseSystem, scope: Scope, seed: int) -> Rows:
    """Rows of which CROWN misses from 0.1 to 30 % of the range that it leaves them."""
    rows = random_rows(seed, len(scope.lower), network)
    low, high = crown(system, scope, rows)[0], -crown(system, scope, -rows)[0]
    part = 10.0 ** -(3 * torch.rand(len(low), generator=torch.Generator().manual_seed(seed)) - 0.5)
    return replace(rows, offset=rows.offset - low - 0.3 * part.double() * (high - low))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("make", [contracting, monotone])
@pytest.mark.parametrize("rounds", [1, 3])
def test_below_every_value_that_an_attack_finds(make, kind: Activation, rounds: int) -> None:
    gained = 0
    for seed in range(4):
        network = make(seed, activation=kind)
        system, region = DenseSystem(network), regions(seed, 24, radius=0.7)
        scope, _ = tighten(system, scope_of(network, system, region))
        rows = nearly_proved(network, system, scope, seed)
        found = assumed_bound(system, scope, rows, rounds=rounds)
        plain, _ = crown(system, scope, rows)
        assert (found >= plain).all()
        for turn in range(3):
            value, slack = values(network, rows, descend(network, region, rows, 5, turn))
            assert (found <= value + slack).all()
        gained += int(((plain <= 0) & (found > 0)).sum())
    # with pieces that are not linear no phase is ever fixed, and less is gained
    assert gained > 0 or not isinstance(kind, (ReLU, LeakyReLU))


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("skew", [0.0, 6.0])
def test_unconverged_multipliers_and_skewed_weights(
    skew: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = contracting(5, skew=skew)
    system, region = DenseSystem(network), regions(5, 40, radius=0.6)
    scope, _ = tighten(system, scope_of(network, system, region))
    rows = nearly_proved(network, system, scope, 5)
    monkeypatch.setattr(adjoint, "STEPS", steps)
    found = assumed_bound(system, scope, rows)
    value, slack = values(network, rows, descend(network, region, rows, 5))
    assert (found <= value + slack).all()


def step_network(offset: float) -> tuple[DenseSystem, Scope, Rows]:
    """``m(x) = relu(x) - relu(x - 1/2) + offset`` on [-1, 1]; its minimum is `offset`."""
    zero = torch.zeros(2, 2)
    network = Network.of(
        zero, torch.ones(2, 1), torch.tensor([0.0, -0.5]), torch.eye(2), torch.zeros(2)
    )
    system = DenseSystem(network)
    region = Box(torch.full((1, 1), -1.0).double(), torch.ones(1, 1).double())
    bounds = Box(torch.tensor([[-1.0, -1.5]]), torch.tensor([[1.0, 0.5]]))
    rows = Rows(
        torch.tensor([[1.0, -1.0]]).double(), None, torch.tensor([offset], dtype=torch.float64)
    )
    return system, Scope.of(system, region, bounds), rows


@pytest.mark.parametrize("offset", [0.05, 0.1, 0.2])
def test_closes_a_gap_that_no_multiplier_closes(offset: float) -> None:
    """The hull of each neuron leaves ``m >= offset - 1/4``: no linear bound proves ``m > 0``."""
    system, scope, rows = step_network(offset)
    _, p = crown(system, scope, rows)
    _, bound = improve(system, scope, rows, p, steps=200)
    assert offset - 0.3 < float(bound) <= offset - 0.25
    assert 0 < float(assumed_bound(system, scope, rows)) <= offset


@pytest.mark.parametrize("offset", [0.0, -1e-12, -1e-3, -0.1])
def test_never_proves_what_is_false(offset: float) -> None:
    system, scope, rows = step_network(offset)
    for rounds in (0, 1, 2, 10):
        assert float(assumed_bound(system, scope, rows, rounds=rounds)) <= offset


def test_what_crown_proves_is_kept_and_numbers_that_are_none_prove_nothing() -> None:
    system, scope, rows = step_network(1.0)
    assert torch.equal(assumed_bound(system, scope, rows), crown(system, scope, rows)[0])
    for bad in (torch.nan, -torch.inf):
        broken = replace(rows, offset=torch.tensor([bad], dtype=torch.float64))
        assert float(assumed_bound(system, scope, broken)) == -torch.inf
