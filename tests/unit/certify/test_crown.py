"""Fixed-point CROWN: the ordinary one on feed-forward networks, sound however early it stops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from ugly_nets import (
    contracting,
    descend,
    feedforward,
    monotone,
    random_rows,
    regions,
    scope_of,
    values,
)

from wellposed.certify import adjoint
from wellposed.certify.adjoint import PeacemanRachford, jacobi
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.crown import Lower, crown, slopes
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.lower import lower
from wellposed.certify.system import Neurons
from wellposed.core.activations import ELU, Activation, LeakyReLU, ReLU, Sigmoid, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Box

KINDS: list[Activation] = [ReLU(), LeakyReLU(0.1), Tanh(), Sigmoid(), ELU()]


def ordinary_crown(
    layers: list[tuple[Tensor, Tensor]],
    bounds: list[tuple[Tensor, Tensor]],
    row: Tensor,
    region: Box,
) -> Tensor:
    """The backward pass of CROWN with adaptive slopes, written for lists of layers.

    Args:
        layers: Weight and bias of each affine map; ReLU lies between them.
        bounds: Of each preactivation but the last output.
        row: On the outputs, shape (q,).
        region: Of one input, shape (d,).
    """
    weight, bias = layers[-1]
    back, constant = row @ weight, row @ bias
    for (weight, bias), (low, high) in zip(layers[-2::-1], bounds[::-1], strict=True):
        on, off = low >= 0, high <= 0
        rise = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low)))
        start = torch.where(on | off, 0.0, -rise * low)
        lower_slope = torch.where(on, 1.0, torch.where(off, 0.0, (high > -low).double()))
        constant = constant + (back.clamp(max=0) * start).sum()
        back = back.clamp(min=0) * lower_slope + back.clamp(max=0) * rise
        constant = constant + back @ bias
        back = back @ weight
    middle, reach = (region.upper + region.lower) / 2, (region.upper - region.lower) / 2
    return constant + back @ middle - back.abs() @ reach


@pytest.mark.parametrize("seed", range(4))
def test_block_triangular_weights_give_ordinary_crown(seed: int) -> None:
    widths = (7, 5, 6)
    network = feedforward(seed, widths)
    system = DenseSystem(network)
    region = regions(seed, 3, radius=0.5)
    scope = scope_of(network, system, region)
    starts = [0, 7, 12, 18]
    parts = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    layers = [(network.U[parts[0]], network.b[parts[0]])]
    for before, at in zip(parts, parts[1:], strict=False):
        layers.append((network.W[at, before], network.b[at]))
    layers.append((network.C[:, parts[-1]], network.c))
    eye = torch.eye(3).double()
    index = torch.arange(3).repeat_interleave(3)
    rows = Rows(network.C, None, network.c).select(torch.arange(3).repeat(3))
    found, p = crown(system, scope.select(index), rows, (Lower.ADAPTIVE,))
    expected = torch.stack([
        ordinary_crown(
            layers,
            [(scope.lower[k, at], scope.upper[k, at]) for at in parts],
            row,
            Box(region.lower[k], region.upper[k]),
        )
        for k in range(3)
        for row in eye
    ])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (found <= expected + 1e-12).all()
    assert torch.equal(dual_bound(system, scope.select(index), rows, p), found)


def matrix_of(apply: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weight and bias of an affine module as matrices of flat values, in float64."""
    with torch.no_grad():
        eye = torch.eye(int(torch.tensor(shape).prod())).double()
        apply = apply.double()
        bias = apply(torch.zeros(1, *shape).double()).flatten()
        weight = apply(eye.reshape(-1, *shape)).flatten(1) - bias
        apply.float()
    return weight.mT, bias


def test_convolutions_give_ordinary_crown() -> None:
    torch.manual_seed(0)
    first, second, last = (
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(3, 2, 3, stride=2),
        nn.Linear(8, 3),
    )
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last).eval()
    lowered = lower(model, (2, 6, 5))
    region = Box.around(torch.randn(2, 2, 6, 5), 0.15)
    entered = lowered.enter(region)
    bounds = interval_bounds(lowered.system, entered)
    scope = Scope.of(lowered.system, entered, bounds)
    layers = [matrix_of(first, (2, 6, 5)), matrix_of(second, (3, 6, 5)), matrix_of(last, (8,))]
    # a block for each ReLU, then one for the output
    blocks = lowered.system.slices
    assert [b.linear for b in lowered.system.blocks] == [False, False, True]
    state = torch.zeros(3, lowered.system.n).double()
    state[:, lowered.outputs] = torch.eye(3).double()
    index = torch.arange(2).repeat_interleave(3)
    rows = Rows(state, None, torch.zeros(3).double()).select(torch.arange(3).repeat(2))
    found, _ = crown(lowered.system, scope.select(index), rows, (Lower.ADAPTIVE,))
    expected = torch.stack([
        ordinary_crown(
            layers,
            [(bounds.lower[k, at], bounds.upper[k, at]) for at in blocks[:2]],
            row,
            Box(entered.box.lower[k], entered.box.upper[k]),
        )
        for k in range(2)
        for row in torch.eye(3).double()
    ])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 1, 2, 60])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("make", [contracting, monotone])
def test_sound_however_early_the_adjoint_stops(
    make, kind: Activation, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoint, "STEPS", steps)
    network = make(2, activation=kind)
    system = DenseSystem(network)
    region = regions(2, 9)
    scope, rows = scope_of(network, system, region), random_rows(2, 9, network)
    value, error = values(network, rows, descend(network, region, rows))
    found, p = crown(system, scope, rows)
    assert torch.isfinite(found).all()
    assert (found <= value + error).all()
    assert torch.equal(dual_bound(system, scope, rows, p), found)


@pytest.mark.parametrize("make", [contracting, monotone])
def test_regions_without_unstable_neurons_are_bounded_exactly(make, monkeypatch) -> None:
    monkeypatch.setattr(adjoint, "STEPS", 4000)
    monkeypatch.setattr(adjoint, "RTOL", 1e-12)
    network = make(3)
    system = DenseSystem(network)
    region = Box.around(torch.randn(5, 3, generator=torch.Generator().manual_seed(3)), 1e-5)
    scope, rows = scope_of(network, system, region), random_rows(3, 5, network)
    stable = ~((scope.lower < 0) & (scope.upper > 0) & (network.slope != 1)).any(1)
    assert int(stable.sum()) >= 3
    value, _ = values(network, rows, descend(network, region, rows))
    found, _ = crown(system, scope, rows)
    # the descent ends in the worst corner of a linear function
    torch.testing.assert_close(found[stable], value.amin(0)[stable], rtol=1e-10, atol=1e-10)


def test_the_two_iterations_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjoint, "STEPS", 4000)
    monkeypatch.setattr(adjoint, "RTOL", 1e-13)
    network = contracting(4, n=10)
    n = network.n
    g = torch.Generator().manual_seed(4)
    row = torch.randn(6, n, generator=g).double()
    below, above = torch.rand(2, 6, n, generator=g).double()
    W = network.W * 0.6  # monotone in the 2-norm as well
    off = W - torch.diag(W.diagonal())
    one = jacobi(lambda p, r: r + p @ off, W.diagonal(), row, below, above)
    other = PeacemanRachford.of(W)(row, below, above)
    metric = PeacemanRachford.of(W, 0.5 + torch.rand(n, generator=g).double())(row, below, above)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(one, metric, rtol=1e-9, atol=1e-10)
    lam = row + one @ W
    torch.testing.assert_close(
        one, torch.where(lam >= 0, below, above) * lam, rtol=1e-9, atol=1e-10
    )


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    for network in (contracting(5), monotone(5)):
        system = DenseSystem(network)
        scope = scope_of(network, system, regions(5, 8, radius=1.0))
        rows = random_rows(5, 8, network)
        together, _ = crown(system, scope, rows)
        for k in range(8):
            index = torch.tensor([k])
            alone, _ = crown(system, scope.select(index), rows.select(index))
            torch.testing.assert_close(alone, together[index], rtol=1e-12, atol=1e-12)


def test_the_best_choice_counts() -> None:
    network = contracting(6)
    system = DenseSystem(network)
    scope, rows = scope_of(network, system, regions(6, 9, radius=2.0)), random_rows(6, 9, network)
    best, _ = crown(system, scope, rows)
    each = torch.stack([crown(system, scope, rows, (choice,))[0] for choice in Lower])
    assert torch.equal(best, each.amax(0))
    assert (each.argmax(0) != each.argmax(0)[0]).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_slopes_of_lines(kind: Activation) -> None:
    """The lines with these slopes touch the graph from below and above."""
    g = torch.Generator().manual_seed(7)
    ends = 2 * torch.randn(2, 300, generator=g).double()
    ends[:, :10] = ends[:1, :10]
    low, high = ends.amin(0), ends.amax(0)
    neurons = Neurons(kind, torch.arange(300) % 6 == 0)
    v = low + torch.linspace(0, 1, 201).double()[:, None] * (high - low)
    for choice in Lower:
        below, above = slopes(neurons, low, high, choice)
        for slope in (below, above):
            assert ((slope >= 0) & (slope <= 1)).all()
        if neurons.kink is not None:
            line = neurons(low) + above * (v - low)
            assert (neurons(v) <= line + 1e-12).all()
            open_ = (low < 0) & (high > 0)
            if choice is not Lower.PARALLEL:
                assert (neurons(v) >= below * v - 1e-12)[:, open_].all()


def test_huge_rows_on_an_ill_posed_network() -> None:
    """The iteration may overflow, but weak duality needs no well-posedness: z(-1) = 0 is seen."""
    W = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    one = torch.ones(2, 1)
    network = Network.of(W, one, torch.zeros(2), one.mT, torch.zeros(1))
    system = DenseSystem(network)
    unit = torch.ones(1, 2).double()
    scope = Scope.of(system, Box(-unit[:, :1], unit[:, :1]), Box(-unit, unit))
    rows = Rows(1e300 * unit, None, torch.zeros(1).double())
    found, p = crown(system, scope, rows)
    assert torch.isfinite(p).all()
    assert float(found) <= 0


def test_exact_without_an_activation() -> None:
    """A purely linear model has no activation: CROWN is exact on it."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)).eval()
    lowered = lower(model, (3,))
    region = Box.around(torch.randn(2, 3), 0.5)
    scope = Scope.of(lowered.system, region, interval_bounds(lowered.system, region))
    state = torch.zeros(2, lowered.system.n).double()
    state[:, lowered.outputs.start] = 1
    found, _ = crown(lowered.system, scope, Rows(state, None, torch.zeros(2).double()))
    first, last = matrix_of(model[0], (3,)), matrix_of(model[2], (4,))
    gain = (last[0] @ first[0])[0]
    shift = (last[0] @ first[1] + last[1])[0]
    exact = shift + torch.minimum(gain * region.lower, gain * region.upper).sum(1)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
