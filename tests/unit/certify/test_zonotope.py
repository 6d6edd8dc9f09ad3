"""Assume-guarantee zonotopes: sound everywhere, exact on witnesses, silent without a hypothesis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.fallback import injection, lipschitz_box
from wellposed.certify.growth import Search, grow
from wellposed.certify.relax import relax
from wellposed.certify.system import Neurons
from wellposed.certify.transformer import Transformer
from wellposed.certify.wellposed import Wellposed, wellposedness
from wellposed.certify.zonotope import (
    zonotope,
    zonotope_enclosure,
    zonotope_margins,
)
from wellposed.core.activations import (
    ELU,
    GELU,
    Activation,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Tanh,
)
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

KINDS = [ReLU(), LeakyReLU(0.1), Tanh(), Sigmoid(), Softplus(), ELU()]


def monotone(
    seed: int,
    n: int = 12,
    d: int = 4,
    *,
    activation: Activation | None = None,
    ugly: float = 0.0,
    size: float = 1.2,
) -> Network:
    """A monotone network that is no max-norm contraction; float32 weights; `ugly` skews scales."""
    g = torch.Generator().manual_seed(seed)
    F, S = (size * torch.randn(n, n, generator=g) / n**0.5 for _ in range(2))
    W = torch.eye(n) * 0.2 - F.mT @ F + S - S.mT
    skew = 2.0 ** torch.round(ugly * torch.randn(n, generator=g))
    return Network.of(
        skew[:, None] * W / skew,
        skew[:, None] * torch.randn(n, d, generator=g),
        skew * torch.randn(n, generator=g),
        torch.randn(3, n, generator=g) / skew,
        torch.randn(3, generator=g),
        D=torch.randn(3, d, generator=g),
        activation=activation,
        linear=torch.arange(n) % 5 == 4,
    )


def attacked(network: Network, region: Region, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (count, B, d) and their equilibria: random, corners, and ascent directions."""
    g = torch.Generator().manual_seed(seed)
    box = region.box
    c, r = box.centre, (box.upper - box.lower) / 2
    v = approximate_equilibrium(network, c)
    slope = torch.where(network.linear, 1.0, network.activation.slope(v))
    gain = torch.linalg.solve(torch.eye(network.n).double() - network.W * slope[:, None], network.U)
    rows = gain[:, torch.randint(network.n, (count,), generator=g)].transpose(0, 1)
    sign = torch.where(torch.rand(count, 1, 1, generator=g) < 0.5, -1.0, 1.0).double()
    share = torch.rand(count, len(c), network.d, generator=g).double() * 2 - 1
    kind = torch.arange(count)[:, None, None] % 3
    step = torch.where(kind == 0, share, torch.where(kind == 1, share.sign(), sign * rows.sign()))
    if isinstance(region, Ball):
        c, r = region.centre, region.radius[:, None]
        step = step / (step.norm(dim=-1, keepdim=True) * (1 + 1e-9))
    x = torch.minimum(torch.maximum(c + r * step, box.lower), box.upper)
    return x, approximate_equilibrium(network, x.reshape(-1, network.d)).reshape(count, len(c), -1)


def inside(network: Network, box: Box, x: Tensor, v: Tensor) -> bool:
    """Whether all sampled equilibria lie in the box, up to their own (tiny) error."""
    flat, at = v.reshape(-1, network.n), x.reshape(-1, network.d)
    gap = flat - network.preactivation(network.phi(flat), at)
    size = 1 + flat.abs().amax(1, keepdim=True)
    assert (gap.abs() <= 1e-10 * size).all()  # the samples are equilibria
    slack = 1e-9 * (1e-3 + v.abs())
    return bool(((v >= box.lower - slack) & (v <= box.upper + slack)).all())


@pytest.mark.parametrize("activation", KINDS, ids=lambda a: a.name)
def test_ten_thousand_attacked_points_stay_inside(activation: Activation) -> None:
    network = monotone(1, activation=activation)
    g = torch.Generator().manual_seed(2)
    centre = torch.randn(10, 4, generator=g)
    region = Box.around(centre, torch.tensor([1e-6, 0.003, 0.01, 0.03, 0.1] * 2)[:, None])
    found = zonotope_enclosure(network, region)
    assert int(found.contained.sum()) >= 4
    x, v = attacked(network, region, 1000)
    assert inside(network, found.preactivation, x, v)
    margins = zonotope_margins(
        network, region, found.preactivation, network.C.expand(10, -1, -1),
        inputs=network.D.expand(10, -1, -1), offset=network.c.expand(10, -1),
    )  # fmt: skip
    y = network.output(network.phi(v.reshape(-1, 12)), x.reshape(-1, 4)).reshape(1000, 10, 3)
    assert (y.amin(0) >= margins - 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 60])
def test_sound_at_every_stopping_step_and_ugly_scales(seed: int, steps: int) -> None:
    network = monotone(seed, ugly=3.0)
    g = torch.Generator().manual_seed(seed)
    region = Box.around(torch.randn(3, 4, generator=g), torch.tensor([[0.0], [0.01], [0.05]]))
    for rounds in (0, 1, 20):
        found = zonotope_enclosure(network, region, search=Search(steps, rounds))
        assert inside(network, found.preactivation, *attacked(network, region, 60, seed))
        assert steps or not bool(found.contained.any())


def test_a_ball_is_enclosed_and_tighter_than_its_box() -> None:
    network = monotone(3)
    ball = Ball(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)), 0.03, 0.0, 1.0)
    found = zonotope_enclosure(network, ball)
    assert bool(found.contained.all())
    assert inside(network, found.preactivation, *attacked(network, ball, 300))
    loose = zonotope_enclosure(network, ball.box).preactivation
    tight = found.preactivation
    assert (tight.upper - tight.lower).sum() < 0.9 * (loose.upper - loose.lower).sum()


def test_exact_where_no_neuron_is_open() -> None:
    network = monotone(4)
    region = Box.around(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), 1e-4)
    found = zonotope_enclosure(network, region)
    box = found.preactivation
    assert bool(((box.lower > 0) | (box.upper < 0) | network.linear).all())
    v = approximate_equilibrium(network, region.centre)
    slope = torch.where(network.linear, 1.0, (v > 0).double())[0]
    gain = torch.linalg.solve(torch.eye(12).double() - network.W * slope, network.U).abs()
    exact = gain @ region.radius[0]
    assert torch.allclose(box.upper - v, exact, rtol=1e-7)
    assert torch.allclose(v - box.lower, exact, rtol=1e-7)


def test_exact_for_one_neuron() -> None:
    # v = -2 relu(v) + x + 0.5: v = (x + 0.5) / 3 where that is positive
    one = torch.ones(1, 1)
    network = Network.of(-2 * one, one, 0.5 * one[0], one, torch.zeros(1))
    found = zonotope_enclosure(network, Box(-0.4 * one, one))
    assert bool(found.contained)
    assert float(found.preactivation.lower) == pytest.approx(0.1 / 3, rel=1e-6)
    assert float(found.preactivation.upper) == pytest.approx(0.5, rel=1e-12)


def test_a_wrong_anchor_is_not_contained_or_right() -> None:
    network = monotone(5)
    region = Box.around(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), 0.01)

    def image(index: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return Transformer(network, region.select(index), low, high).bounds()

    true = approximate_equilibrium(network, region.centre)
    wrong = true + 0.5 * torch.randn(20, 12, generator=torch.Generator().manual_seed(2)).double()
    first = grow(image, wrong, torch.full_like(wrong, 0.01), Search(1, 0))
    assert not bool(first.proved.any())
    last = grow(image, wrong, torch.full_like(wrong, 0.01), Search(60, 0))
    holds = ((true >= last.box.lower) & (true <= last.box.upper)).all(1)
    assert bool((holds | ~last.proved).all())


def test_containment_without_the_rounding_slack_is_refused() -> None:
    # with all neurons stable T does not depend on the box: its exact value fits itself exactly
    network = monotone(4)
    region = Box.around(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), 1e-4)
    v = approximate_equilibrium(network, region.centre)
    slope = torch.where(network.linear, 1.0, (v > 0).double())[0]
    reach = torch.linalg.solve(torch.eye(12).double() - network.W * slope, network.U).abs()
    reach = reach @ (region.upper - region.lower)[0] / 2
    low, high = Transformer(network, region, v - reach, v + reach).bounds()
    assert not bool(((low > v - reach) & (high < v + reach)).all())
    assert torch.allclose(high - v, reach, rtol=1e-6)


def test_bounds_grow_with_the_radius() -> None:
    network = monotone(6, activation=LeakyReLU(0.2))
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    last = 0.0
    for eps in (0.0, 1e-4, 1e-3, 1e-2, 3e-2):
        box = zonotope_enclosure(network, Box.around(x, eps)).preactivation
        width = float((box.upper - box.lower).sum())
        assert width > last
        last = width


def test_no_sample_depends_on_its_batch_mates() -> None:
    network = monotone(7)
    region = Box.around(torch.randn(6, 4, generator=torch.Generator().manual_seed(4)), 0.02)
    whole = zonotope_enclosure(network, region)
    for k in range(6):
        alone = zonotope_enclosure(network, region.select(torch.tensor([k])))
        assert bool(alone.contained[0] == whole.contained[k])
        assert torch.allclose(alone.preactivation.lower[0], whole.preactivation.lower[k])
        assert torch.allclose(alone.preactivation.upper[0], whole.preactivation.upper[k])


def test_the_inverse_need_not_be_accurate() -> None:
    network = monotone(8)
    region = Box.around(torch.randn(1, 4, generator=torch.Generator().manual_seed(5)), 0.01)
    box = zonotope_enclosure(network, region).preactivation
    t = Transformer(network, region, box.lower, box.upper)
    exact = t.bounds()
    noise = 1e-3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(6)).double()
    t = Transformer(network, region, box.lower, box.upper)
    t.inverse = t.inverse @ (torch.eye(12).double() + noise)
    coarse = t.bounds()
    assert inside(network, Box(*coarse), *attacked(network, region, 300))
    assert (coarse[0] < exact[0]).any()
    t = Transformer(network, region, box.lower, box.upper)
    t.inverse = torch.zeros_like(t.inverse)
    assert bool(torch.isinf(t.bounds()[0]).all())
    assert torch.equal(t.bounds()[1], torch.full_like(box.upper, torch.inf))


@pytest.mark.parametrize("activation", KINDS, ids=lambda a: a.name)
def test_the_lines_hold_the_graph_between_them(activation: Activation) -> None:
    g = torch.Generator().manual_seed(7)
    a = 4 * torch.randn(400, 5, generator=g).double()
    b = a + 10 ** (2 * torch.randn(400, 5, generator=g).double() - 1)
    r = relax(Neurons(activation, torch.arange(5) == 2), a, b)
    assert ((r.slope >= 0) & (r.slope <= 1)).all()
    for t in torch.linspace(0, 1, 101).tolist():
        v = torch.minimum(a + t * (b - a), b)
        phi = torch.where(torch.arange(5) == 2, v, activation(v))
        off = (phi - r.slope * v - r.centre).abs()
        assert (off <= r.radius + 1e-13 * (1 + v.abs())).all()
    assert (r.radius[:, 2] == 0).all()


def test_the_lipschitz_box_holds_for_both_witnesses() -> None:
    g = torch.Generator().manual_seed(8)
    network = monotone(9)
    small = Network.of(0.1 * network.W, network.U, network.b, network.C, network.c)
    for net, kind in ((network, "monotone"), (small, "max-norm")):
        region = Box.around(torch.randn(5, 4, generator=g), 0.3)
        witness = wellposedness(net)
        assert witness.kind == kind
        box = lipschitz_box(net, region, witness)
        assert inside(net, box, *attacked(net, region, 400))
        zonotopes = zonotope_enclosure(net, region, witness).preactivation
        assert (zonotopes.lower >= box.lower).all()
        assert (zonotopes.upper <= box.upper).all()


def test_the_injection_box_is_exact() -> None:
    network = monotone(10)
    region = Box(torch.zeros(1, 4), torch.ones(1, 4))
    q = injection(network, region)
    exact = network.U.clamp(min=0).sum(1) + network.b
    assert (q.upper[0] >= exact).all()
    assert torch.allclose(q.upper[0], exact, rtol=1e-13, atol=1e-13)


def test_refusals() -> None:
    network = monotone(11)
    region = Box.around(torch.zeros(2, 4), 0.1)
    bad = Network.of(network.W + 3 * torch.eye(12), network.U, network.b, network.C, network.c)
    with pytest.raises(NotCertifiableError, match="well posed"):
        zonotope_enclosure(bad, region)
    with pytest.raises(NotCertifiableError, match="witness has margin"):
        zonotope_enclosure(bad, region, Wellposed("monotone", torch.ones(12).double(), 1.0))
    curved = Network.of(
        network.W, network.U, network.b, network.C, network.c, activation=GELU()
    )  # fmt: skip
    with pytest.raises(NotCertifiableError, match="slopes in"):
        zonotope_enclosure(curved, region)
    with pytest.raises(ShapeError, match="expected"):
        zonotope(network, Box.around(torch.zeros(2, 5), 0.1), Box.around(torch.zeros(2, 12), 1.0))
    with pytest.raises(ConfigError, match="steps"):
        Search(-1)


def test_a_search_that_is_cut_short_says_so() -> None:
    network = monotone(12, n=40, size=2.0)
    region = Box.around(torch.zeros(2, 4), torch.tensor([[1e-6], [0.05]]))
    found = zonotope_enclosure(network, region, search=Search(2))
    assert found.contained.tolist() == [True, False]
    base = lipschitz_box(network, region)
    assert torch.equal(found.preactivation.upper[1], base.upper[1])
    assert inside(network, found.preactivation, *attacked(network, region, 100))


def test_a_huge_radius_ends_at_the_lipschitz_box() -> None:
    network = monotone(12, n=40, size=3.0)
    region = Box.around(torch.zeros(1, 4), 3.0)
    found = zonotope_enclosure(network, region)
    assert bool(found.contained)
    base, box = lipschitz_box(network, region), found.preactivation
    assert (box.upper <= base.upper).all()
    assert (box.upper - box.lower).sum() > 0.3 * (base.upper - base.lower).sum()
    assert inside(network, box, *attacked(network, region, 100))


def test_the_phase_trick_holds_and_sharpens() -> None:
    for kind in (ReLU(), LeakyReLU(0.3)):
        network = monotone(13, activation=kind, ugly=2.0)
        region = Box.around(torch.randn(4, 4, generator=torch.Generator().manual_seed(9)), 0.1)
        box = zonotope_enclosure(network, region).preactivation
        t = Transformer(network, region, box.lower, box.upper)
        plain, sharp = t.bounds(), t.conditional()
        assert inside(network, Box(*sharp), *attacked(network, region, 500))
        open_ = (box.lower < 0) & (box.upper > 0) & ~network.linear
        assert (sharp[1] < plain[1] - 1e-3 * (plain[1] - plain[0]))[open_].any()


def test_the_phase_trick_is_exact_for_one_neuron() -> None:
    # v = -2 relu(v) + x + 0.5 on [-1, 1]: v = (x + 0.5) / 3 for x > -0.5, else x + 0.5
    one = torch.ones(1, 1)
    network = Network.of(-2 * one, one, 0.5 * one[0], one, torch.zeros(1))
    box = zonotope_enclosure(network, Box(-one, one)).preactivation
    assert float(box.lower) == pytest.approx(-0.5, rel=1e-9)
    assert float(box.upper) == pytest.approx(0.5, rel=1e-9)
