"""Krawczyk boxes: existence and uniqueness without hypotheses, and what they must not claim."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.growth import Search
from wellposed.certify.krawczyk import (
    krawczyk,
    krawczyk_image,
    krawczyk_unique,
    slopes_from,
)
from wellposed.certify.krawczyk_cell import krawczyk_cell
from wellposed.certify.system import Neurons
from wellposed.core.activations import GELU, Activation, LeakyReLU, ReLU, SiLU, Softplus, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import ShapeError


def draw(seed: int, n: int, d: int, size: float, activation: Activation | None = None) -> Network:
    """Float32 weights without any structure: well posed or not as it happens."""
    g = torch.Generator().manual_seed(seed)
    return Network.of(
        size * torch.randn(n, n, generator=g) / n**0.5,
        torch.randn(n, d, generator=g),
        torch.randn(n, generator=g),
        torch.eye(n),
        torch.zeros(n),
        activation=activation,
        linear=torch.arange(n) == n - 1,
    )


def all_equilibria(network: Network, x: Tensor) -> Tensor:
    """All preactivations of equilibria of a ReLU network at one input, by its phases."""
    phases = torch.tensor(list(product((0.0, 1.0), repeat=network.n))).double()
    slope = torch.where(network.linear, 1.0, phases)
    system = torch.eye(network.n).double() - network.W * slope[:, None]
    q = (network.U @ x + network.b).expand(len(slope), -1)
    v = torch.linalg.solve(system, q)
    miss = (network.phi(v) - slope * v).abs().amax(1)
    v = v[miss < 1e-10 * (1 + v.abs().amax(1))]
    rounded = {tuple(round(t, 6) for t in row.tolist()): row for row in v}
    return torch.stack(list(rounded.values())) if rounded else v


def known() -> tuple[Network, Box, Tensor, Tensor]:
    """Existence holds on this box for every input, uniqueness does not at x = 1."""
    W = torch.tensor([[0.36, -2.44], [-1.08, -1.50]]).double()
    U, b = torch.tensor([[1.62], [1.49]]).double(), torch.tensor([-1.5, -1.34]).double()
    network = Network.of(W, U, b, torch.eye(2), torch.zeros(2))
    region = Box(-torch.ones(1, 1).double(), torch.ones(1, 1).double())
    return network, region, b[None], torch.tensor([[2.58, 1.80]]).double()


def test_existence_does_not_mean_uniqueness() -> None:
    network, region, v0, r = known()
    low, high = krawczyk_image(network, region, v0, v0 - r, v0 + r)
    assert ((low > v0 - r) & (high < v0 + r)).all()
    assert ((high - v0) / r)[0].tolist() == pytest.approx([0.917, 0.962], abs=1e-3)
    assert not bool(krawczyk_unique(network, v0 - r, v0 + r))
    assert not bool(krawczyk_unique(network, low, high))
    three = all_equilibria(network, torch.ones(1).double())
    assert len(three) == 3
    assert ((three >= low) & (three <= high)).all()
    found = krawczyk(network, region, start=v0)
    assert bool(found.exists)
    assert not bool(found.unique)
    assert ((three >= found.box.lower) & (three <= found.box.upper)).all()


def test_proved_boxes_agree_with_all_phases_of_small_networks() -> None:
    unique = several = 0
    g = torch.Generator().manual_seed(0)
    for seed in range(40):
        network = draw(seed, 4, 2, 2.0)
        centre = torch.randn(4, 2, generator=g)
        region = Box.around(centre, torch.tensor([[0.003], [0.03], [0.1], [0.3]]))
        found = krawczyk(network, region, search=Search(40, 5, 0.05))
        for k in range(4):
            if not bool(found.exists[k]):
                continue
            for t in torch.rand(4, 2, generator=g).double() * 2 - 1:
                x = region.centre[k] + region.radius[k] * 0.999 * t
                every = all_equilibria(network, x)
                low, high = found.searched.lower[k] + 1e-9, found.searched.upper[k] - 1e-9
                near = every[((every >= low) & (every <= high)).all(1)]
                assert len(near) >= 1
                slack = 1e-9
                assert (near >= found.box.lower[k] - slack).all()
                assert (near <= found.box.upper[k] + slack).all()
                several += len(every) > 1
                if bool(found.unique[k]):
                    assert len(near) == 1
                    unique += 1
    assert unique > 150
    assert several > 20


@pytest.mark.parametrize(
    "activation", [ReLU(), LeakyReLU(0.3), Tanh(), Softplus(), GELU()], ids=lambda a: a.name
)
@pytest.mark.parametrize("steps", [0, 1, 2, 60])
def test_boxes_hold_the_attacked_branch(activation: Activation, steps: int) -> None:
    network = draw(3, 10, 3, 0.8, activation)
    g = torch.Generator().manual_seed(1)
    region = Box.around(torch.randn(5, 3, generator=g), torch.logspace(-5, -1, 5)[:, None])
    found = krawczyk(network, region, search=Search(steps, 5))
    assert bool(found.exists[0]) == (steps > 2) or steps in {1, 2}
    corner = torch.randn(400, 5, 3, generator=g).sign().double()
    x = region.centre + (1 - 1e-12) * region.radius * corner
    v = approximate_equilibrium(network, x.reshape(-1, 3)).reshape(400, 5, 10)
    near = ((v >= found.searched.lower) & (v <= found.searched.upper)).all(-1)
    held = ((v >= found.box.lower - 1e-9) & (v <= found.box.upper + 1e-9)).all(-1)
    assert (held | ~near | ~found.exists).all()
    assert near[:, found.unique].all()  # a contraction: the branch of the samples is the only one


@pytest.mark.parametrize("activation", [GELU(), SiLU()], ids=lambda a: a.name)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_slopes_of_the_box_prove_what_slopes_of_the_line_do_not(
    activation: Activation, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(seed)
    network = draw(seed, 8, 2, 1.5, activation)
    region = Box.around(torch.zeros(1, 2), 0.02)
    found = krawczyk(network, region)
    assert bool(found.unique[0])
    x = region.centre + region.radius * (2 * torch.rand(200, 2, generator=g).double() - 1)
    v = approximate_equilibrium(network, x)
    assert ((v >= found.box.lower) & (v <= found.box.upper)).all()

    def everywhere(_: Activation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = activation.slopes
        return torch.full_like(lower, low), torch.full_like(upper, high)

    monkeypatch.setattr(type(activation), "slope_range", everywhere)
    assert not bool(krawczyk(network, region).exists[0])


def test_exact_where_no_neuron_is_open() -> None:
    network = draw(5, 8, 3, 0.6)
    region = Box.around(torch.zeros(1, 3), 1e-5)
    found = krawczyk(network, region)
    v = approximate_equilibrium(network, region.centre)
    slope = torch.where(network.linear, 1.0, (v > 0).double())[0]
    gain = torch.linalg.solve(torch.eye(8).double() - network.W * slope, network.U).abs()
    assert bool(found.unique)
    assert torch.allclose(found.box.upper - v, gain @ region.radius[0], rtol=1e-6)


def test_a_start_that_solves_nothing_is_paid_for() -> None:
    network = draw(6, 6, 2, 0.5)
    region = Box.around(torch.zeros(1, 2), 1e-3)
    exact = approximate_equilibrium(network, region.centre)
    found = krawczyk(network, region, start=exact + 1e-4)
    assert bool(found.exists)
    assert ((exact >= found.box.lower) & (exact <= found.box.upper)).all()
    outside = krawczyk_image(network, region, exact + 9.0, exact - 1, exact + 1)
    assert bool(torch.isinf(outside[0]).all())


def test_a_network_without_equilibrium_is_not_contained() -> None:
    # v = 2 relu(v) + 1 has no solution
    one = torch.ones(1, 1).double()
    network = Network.of(2 * one, one, one[0], one, torch.zeros(1))
    found = krawczyk(network, Box(-0.1 * one, 0.1 * one))
    assert not bool(found.exists)
    assert not bool(found.unique)


def test_a_ball_is_a_region() -> None:
    network = draw(7, 6, 3, 0.5)
    ball = Ball(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), 0.01, 0.0, 1.0)
    tight, loose = krawczyk(network, ball), krawczyk(network, ball.box)
    assert bool(tight.exists.all())
    assert (tight.box.upper - tight.box.lower).sum() < (loose.box.upper - loose.box.lower).sum()


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_slopes_from_a_point_bound_all_quotients(slope: float) -> None:
    g = torch.Generator().manual_seed(2)
    start = torch.randn(500, 2, generator=g).double()
    low = start - torch.rand(500, 2, generator=g).double() ** 3 * 3
    high = start + torch.rand(500, 2, generator=g).double() ** 3 * 3
    neurons = Neurons(LeakyReLU(slope), torch.tensor([False, True]))
    box = slopes_from(neurons, start, low, high)
    touched = torch.zeros(500, 2, dtype=torch.bool)
    for t in torch.linspace(0, 1, 33).tolist():
        v = low + t * (high - low)
        gap = v - start
        quotient = torch.where(gap.abs() > 1e-9, (neurons(v) - neurons(start)) / gap, box.lower)
        assert ((quotient >= box.lower - 1e-6) & (quotient <= box.upper + 1e-6)).all()
        touched |= (quotient - box.upper).abs() < 1e-6
    assert touched.all()


def smooth_cell(seed: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    A = 0.6 * torch.randn(n, n, generator=g) / n**0.5
    return A.double(), torch.randn(n, d, generator=g).double()


def test_a_general_cell_with_jacobian_bounds() -> None:
    # z = tanh(A z + B x) * x0 + 0.2 sin(z): the Jacobians by interval arithmetic
    A, B = smooth_cell(0, 5, 2)
    slack = 1e-13

    def apply(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ A.mT + x @ B.mT) * x[:, :1] + 0.2 * torch.sin(z)

    def value(z: Tensor, x: Tensor) -> Box:
        return Box.around(apply(z, x), slack)

    def jacobian(z: Box, x: Box) -> tuple[Box, Box]:
        middle = z.centre @ A.mT + x.centre @ B.mT
        reach = z.radius @ A.abs().mT + x.radius @ B.abs().mT + slack
        low, high = Tanh().slope_range(middle - reach, middle + reach)
        ends = torch.stack([s * t for s in (low, high) for t in (x.lower[:, :1], x.upper[:, :1])])
        low, high = ends.amin(0) - slack, ends.amax(0) + slack
        own = torch.diag_embed(0.2 * torch.cos(z.centre))
        own_reach = torch.diag_embed(0.2 * z.radius + slack)
        mid, rad = (low + high)[..., None] / 2, (high - low)[..., None] / 2
        J, J_reach = mid * A + own, rad * A.abs() + slack + own_reach
        K, K_reach = mid * B, rad * B.abs() + slack
        # the input also multiplies: d/dx0 adds tanh itself
        t_low, t_high = torch.tanh(middle - reach), torch.tanh(middle + reach)
        K[..., 0] += (t_low + t_high) / 2
        K_reach[..., 0] += (t_high - t_low) / 2 + slack
        return Box(J - J_reach, J + J_reach), Box(K - K_reach, K + K_reach)

    g = torch.Generator().manual_seed(3)
    region = Box.around(
        torch.rand(4, 2, generator=g), torch.tensor([[1e-4], [1e-2], [0.05], [9.0]])
    )

    def solve(x: Tensor) -> Tensor:
        z = torch.zeros(len(x), 5).double()
        for _ in range(400):
            z = apply(z, x)
        return z

    found = krawczyk_cell(value, jacobian, region, solve(region.centre))
    assert found.exists.tolist() == [True, True, True, False]
    assert torch.equal(found.unique, found.exists)
    t = torch.rand(2000, 4, 2, generator=g).double() * 2 - 1
    t[::2] = t[::2].sign()
    x = region.centre + (1 - 1e-12) * region.radius * t
    z = solve(x[:, :3].reshape(-1, 2)).reshape(2000, 3, 5)
    assert ((z >= found.box.lower[:3] - 1e-9) & (z <= found.box.upper[:3] + 1e-9)).all()
    # the widths are those of the linearisation where the region is small
    assert float((z.amax(0) - z.amin(0))[0].sum()) > 0.7 * float(
        (found.box.upper - found.box.lower)[0].sum()
    )


def test_bad_shapes_are_refused() -> None:
    network = draw(8, 4, 2, 0.5)
    with pytest.raises(ShapeError, match="expected"):
        krawczyk(network, Box.around(torch.zeros(1, 3), 0.1))
    with pytest.raises(ShapeError, match="start"):
        krawczyk_cell(
            lambda z, x: Box(z, z), lambda z, x: (z, x), Box.around(torch.zeros(2, 2), 0.1),
            torch.zeros(3, 4),
        )  # fmt: skip
    with pytest.raises(ShapeError, match="`J` has shape"):
        krawczyk_cell(
            lambda z, x: Box(z, z), lambda z, x: (z, x), Box.around(torch.zeros(2, 2), 0.1),
            torch.zeros(2, 4),
        )  # fmt: skip
