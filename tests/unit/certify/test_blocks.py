"""Systems of blocks: products and bounds of the network they stand for, without its matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from ugly_nets import values

import wellposed as wp
from wellposed.certify import adjoint
from wellposed.certify.blocks import INPUT, Block, BlockSystem, Link
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.lower import lower
from wellposed.certify.system import Neurons
from wellposed.core.activations import LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.core.operators import Dense
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError


def link(source: int, matrix: Tensor) -> Link:
    return Link(
        source,
        lambda z: z @ matrix.mT,
        lambda p: p @ matrix,
        lambda z: z @ matrix.abs().mT,
        max(matrix.shape),
    )


def two_layers(seed: int = 0, skew: float = 0.0) -> BlockSystem:
    """Two equilibrium layers and an output that reads both and the input: links that skip."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        size = 10.0 ** (skew * (2 * torch.rand(shape, generator=g).double() - 1))
        return size * torch.randn(shape, generator=g).double()

    def feedback(n: int) -> Dense:
        A = torch.randn(n, n, generator=g).double()
        return Dense(0.7 * A / A.abs().sum(1, keepdim=True))

    first = Block((4,), (link(INPUT, draw(4, 3)),), draw(4), False, feedback(4))
    second = Block(
        (5,), (link(0, draw(5, 4)), link(INPUT, draw(5, 3))), draw(5), False, feedback(5)
    )
    last = Block(
        (2,), (link(1, draw(2, 5)), link(0, draw(2, 4)), link(INPUT, draw(2, 3))), draw(2), True
    )
    linear = torch.cat([torch.zeros(9), torch.ones(2)]) > 0
    return BlockSystem(3, (first, second, last), Neurons(LeakyReLU(0.1), linear))


def as_network(system: BlockSystem, kind: LeakyReLU | Tanh | ReLU | None = None) -> Network:
    n = system.n
    W, U = system.rows(torch.arange(n))
    return Network.of(
        W, U, system.bias, torch.eye(n), torch.zeros(n),
        activation=kind or LeakyReLU(0.1), linear=system.neurons.linear,
    )  # fmt: skip


MODELS = {
    "dense": (lambda: nn.Sequential(wp.Equilibrium(wp.NemonCell(4, 6)), nn.Linear(6, 3)), (4,)),
    "conv": (
        lambda: nn.Sequential(
            wp.Equilibrium(wp.NemonConv2d(1, 2, image=(4, 5))), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (1, 4, 5),
    ),
    "pool": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (1, 4, 6),
    ),
}  # fmt: skip


@pytest.fixture(params=["skipping", *MODELS])
def system(request: pytest.FixtureRequest) -> BlockSystem:
    if request.param == "skipping":
        return two_layers()
    torch.manual_seed(1)
    make, shape = MODELS[request.param]
    return lower(make().eval(), shape).system


def test_pull_is_the_adjoint_and_reach_its_majorant(system: BlockSystem) -> None:
    W, U = system.rows(torch.arange(system.n))
    g = torch.Generator().manual_seed(2)
    p = torch.randn(3, system.n, generator=g).double()
    z, x = system.pull(p)
    torch.testing.assert_close(z, p @ W, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(x, p @ U, rtol=1e-12, atol=1e-13)
    state, inputs = torch.rand(3, system.n).double(), torch.rand(3, system.d).double()
    exact = state @ W.abs().mT + inputs @ U.abs().mT
    found = system.reach(state, inputs)
    assert (found >= exact * (1 - 1e-15)).all()
    # the sum of absolute values of a tournament's links may count an entry twice, never drop one
    assert (found >= 0).all()
    assert system.terms >= int((W != 0).sum(1).max())


def test_links_apply_what_pull_transposes(system: BlockSystem) -> None:
    W, U = system.rows(torch.arange(system.n))
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, system.n, generator=g).double()
    x = torch.randn(2, system.d, generator=g).double()
    parts = []
    for block, at in zip(system.blocks, system.slices, strict=True):
        total = block.bias + torch.zeros(2, block.size).double()
        for one in block.links:
            source = x if one.source == INPUT else z[:, system.slices[one.source]]
            total = total + one.apply(source)
        if block.feedback is not None:
            total = total + block.feedback.apply(z[:, at].reshape(-1, *block.shape)).flatten(1)
        parts.append(total)
    exact = system.bias + z @ W.mT + x @ U.mT
    torch.testing.assert_close(torch.cat(parts, 1), exact, rtol=1e-12, atol=1e-12)


def test_the_adjoint_solves_its_equation(
    system: BlockSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoint, "STEPS", 2000)
    monkeypatch.setattr(adjoint, "RTOL", 1e-13)
    g = torch.Generator().manual_seed(4)
    row = torch.randn(3, system.n, generator=g).double()
    below, above = torch.rand(2, 3, system.n, generator=g).double()
    one = system.neurons.linear
    below[:, one] = above[:, one] = 1.0
    p = system.adjoint(row, below, above)
    lam = row + system.pull(p)[0]
    torch.testing.assert_close(p, torch.where(lam >= 0, below, above) * lam, rtol=1e-9, atol=1e-9)
    dense = DenseSystem(as_network(system)).adjoint(row, below, above)
    torch.testing.assert_close(p, dense, rtol=1e-8, atol=1e-8)


def test_bounds_equal_those_of_the_matrix(system: BlockSystem) -> None:
    kind = system.neurons.activation
    network = as_network(system, kind)  # type: ignore[arg-type]
    dense = DenseSystem(network)
    g = torch.Generator().manual_seed(5)
    region = Box.around(torch.rand(4, system.d, generator=g), 0.05)
    bounds = interval_bounds(system, region)
    mine, other = (Scope.of(s, region, bounds) for s in (system, dense))
    rows = Rows(torch.randn(4, system.n, generator=g).double(), None, torch.zeros(4).double())
    p = torch.randn(4, system.n, generator=g).double()
    torch.testing.assert_close(
        dual_bound(system, mine, rows, p), dual_bound(dense, other, rows, p), rtol=1e-7, atol=1e-7
    )
    found, proof = crown(system, mine, rows)
    assert (dual_bound(dense, other, rows, proof) >= found - 1e-6).all()


@pytest.mark.parametrize("skew", [0.0, 3.0])
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_intervals_contain_sampled_equilibria_of_all_blocks(steps: int, skew: float) -> None:
    for seed in range(3):
        system = two_layers(seed, skew)
        network = as_network(system)
        g = torch.Generator().manual_seed(seed)
        region = Box.around(
            torch.randn(5, 3, generator=g), torch.tensor([1e-6, 0.01, 0.1, 1, 3])[:, None]
        )
        bounds = interval_bounds(system, region, steps=steps)
        share = torch.rand(200, 5, 3, generator=g).double()
        share[:100] = share[:100].round()
        x = region.lower + share * (region.upper - region.lower)
        v = approximate_equilibrium(network, x.reshape(-1, 3)).reshape(200, 5, -1)
        slack = 1e-9 * (v.abs() + 1e-3)
        assert ((v >= bounds.lower - slack) & (v <= bounds.upper + slack)).all()


def test_many_links_of_opposite_signs_are_rounded_outward() -> None:
    """``(a - a) x + tiny``: the sum cancels, the bound must not."""
    big = torch.full((1, 3), 1e8).double()
    block = Block(
        (1,),
        (link(INPUT, big), link(INPUT, -big), link(INPUT, big / 3)),
        torch.ones(1).double(),
        True,
    )
    system = BlockSystem(3, (block,), Neurons(ReLU(), torch.ones(1) > 0))
    x = torch.tensor([[0.1, 0.7, 1 / 3]]).double()
    bounds = interval_bounds(system, Box(x, x))
    from fractions import Fraction

    exact = 1 + sum(
        Fraction(float(a)) * Fraction(float(b)) for a, b in zip(big[0] / 3, x[0], strict=True)
    )
    assert Fraction(float(bounds.lower)) <= exact <= Fraction(float(bounds.upper))


def test_a_block_that_is_no_contraction_is_refused() -> None:
    wild = Block((2,), (link(INPUT, torch.eye(2).double()),), torch.zeros(2).double(), False,
                 Dense(torch.tensor([[0.0, 2.0], [2.0, 0.0]]).double()))  # fmt: skip
    system = BlockSystem(2, (wild,), Neurons(ReLU(), torch.zeros(2) > 0))
    with pytest.raises(NotCertifiableError):
        interval_bounds(system, Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double()))


def test_bounds_of_a_module_hold_for_its_own_outputs() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(
        wp.Equilibrium(wp.NemonCell(4, 6, activation=Tanh())), nn.Linear(6, 5), nn.Tanh(),
        nn.Linear(5, 2),
    ).double().eval()  # fmt: skip
    lowered = lower(model, (4,))
    region = Box.around(torch.rand(3, 4), 0.2)
    bounds = interval_bounds(lowered.system, region)
    scope = Scope.of(lowered.system, region, bounds)
    state = torch.zeros(3, lowered.system.n).double()
    state[:, lowered.outputs.start] = 1
    rows = Rows(state, None, torch.zeros(3).double())
    found, _ = crown(lowered.system, scope, rows)
    network = lowered.network()
    x = region.lower + torch.rand(300, 3, 4).double() * (region.upper - region.lower)
    read = Rows(network.C[:1].expand(3, -1), None, network.c[:1].expand(3))
    value, error = values(network, read, x)
    assert (found <= value + error).all()
    with torch.no_grad():
        y = model(x.reshape(-1, 4))[:, 0].reshape(300, 3)
    torch.testing.assert_close(y, value, rtol=1e-6, atol=1e-6)
