"""Chains from one norm to another: sound, tight on witnesses, composed legally or refused."""

from itertools import product as tuples
from math import prod

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import lipschitz
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.records import Certificate
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import lipschitz_monotone
from wellposed.testing.rules import SPOILERS

NORMS = ("1", "2", "max")
PAIRS = [(p, q) for p in NORMS for q in NORMS]
CLOSED = [("1", "max"), ("2", "max"), ("1", "2")]


def exact(J, p, q):
    """The operator norm of a small matrix; the hard pairs by trying all corners."""
    if (p, q) in {("max", "1"), ("max", "2"), ("2", "1")}:
        A = (
            J if p == "max" else J.mT
        )  # the norm from 2 to 1 is that of the transposed from max to 2
        corners = torch.tensor(list(tuples((-1.0, 1.0), repeat=A.shape[1]))).double()
        return float(torch.linalg.vector_norm(corners @ A.mT, 1 if (p, q) == ("max", "1") else 2,
                                              dim=1).amax())  # fmt: skip
    kinds = {"1": OneNorm, "2": TwoNorm, "max": MaxNorm}
    return float(kinds[q]().operator_norm(J, kinds[p]()))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Any multipliers prove a bound: here six steps of their search serve as well as forty."""
    monkeypatch.setattr("wellposed.certify.multipliers._STEPS", 6)


def net_of(act=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6), act(), nn.Linear(6, 6), act(), nn.Linear(6, 3)
    ).double()  # fmt: skip


def jacobians(net, x):
    return torch.autograd.functional.jacobian(lambda z: net(z).sum(0), x).movedim(1, 0)


@pytest.mark.parametrize("act", [nn.GELU, MaxMin])
def test_no_jacobian_exceeds_a_typed_bound_at_ugly_parameters(act):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    for spoil in list(SPOILERS.values())[1::3]:
        net = net_of(act)
        spoil(net, x)
        J = jacobians(net, torch.cat([0.1 * x, 10 * x]))
        for p, q in PAIRS:
            if p == q != "2":
                continue
            bound = lipschitz(net, norm_in=p, norm_out=q).value
            assert max(exact(one, p, q) for one in J) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("pair", CLOSED)
def test_one_linear_layer_is_measured_exactly(pair):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    bound = lipschitz(nn.Sequential(layer), norm_in=pair[0], norm_out=pair[1]).value
    value = exact(layer.weight.detach(), *pair)
    assert value <= bound <= value * (1 + 1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_positive_chains_attain_the_componentwise_pairs(pair):
    """All weights positive, all neurons active: the Jacobian is the product of the weights."""
    net = net_of()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    J = (net[4].weight @ net[2].weight @ net[0].weight).detach()
    value, bound = exact(J, *pair), lipschitz(net, norm_in=pair[0], norm_out=pair[1]).value
    assert value <= bound * (1 + 1e-12)
    # the Perron vector of the pair 2 to 2 is iterated to three digits
    assert bound <= value * (1 + (1e-3 if pair == ("2", "2") else 1e-6))


def test_parts_say_their_norms_and_multiply_to_the_bound():
    found = lipschitz(net_of(), norm_in="max", norm_out="1")
    assert (found.norm_in, found.norm_out) == ("max", "1")
    if found.rule.startswith("best chain"):
        assert prod(part.value for part in found.parts) == pytest.approx(found.value, rel=1e-9)
    assert found.parts[0].norm_in == "max"
    assert found.parts[-1].norm_out == "1"
    for before, after in zip(found.parts, found.parts[1:], strict=False):
        assert before.norm_out == after.norm_in
    assert Certificate.from_json(found.to_json()) == found


def test_a_dimension_factor_is_paid_in_the_open():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 9, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.linalg.qr(torch.randn(9, 9).double())[0])
    pair = (("2", "2"),)
    found = lipschitz(net, norm_in="max", norm_out="2", chain=pair)
    assert found.value == pytest.approx(3.0, rel=1e-6)
    paid = [part for part in found.parts if "paid" in part.rule]
    assert [part.value for part in paid] == [pytest.approx(3.0)]
    assert "sqrt(9)" in paid[0].rule
    with pytest.raises(NotCertifiableError, match="does not fit") as caught:
        lipschitz(net, norm_in="max", norm_out="2", chain=pair, mixed="refuse")
    assert "pays" in caught.value.hint
    # the other way round nothing is paid
    free = lipschitz(net, norm_in="1", norm_out="max", chain=pair, mixed="refuse")
    assert free.value == pytest.approx(1.0, rel=1e-6)


ILLEGAL = [
    ((("max", "max"), ("1", "1"), ("1", "1")), "max"),
    ((("1", "max"), ("1", "1"), ("1", "1")), "max"),
    ((("1", "max"), ("1", "max"), ("1", "max")), "max"),
    ((("2", "max"), ("2", "2"), ("2", "2")), "max"),
    ((("1", "2"), ("1", "1"), ("1", "max")), "2"),
    ((("2", "2"), ("1", "max"), ("max", "max")), "2"),
]
LEGAL = [
    (("1", "1"),) * 3,
    (("1", "1"), ("1", "max"), ("max", "max")),
    (("2", "max"), ("max", "max"), ("max", "max")),
    (("max", "max"),) * 3,
    (("1", "1"), ("max", "max"), ("max", "max")),
    (("1", "2"), ("2", "2"), ("2", "max")),
]


@pytest.mark.parametrize(("chain", "held"), ILLEGAL)
def test_illegal_chains_are_refused_by_name(chain, held):
    net = net_of()
    with pytest.raises(NotCertifiableError, match=f"bounded in the .*{held}.*-norm only") as caught:
        lipschitz(net, norm_in="1", norm_out="max", chain=chain, mixed="refuse")
    assert "smaller one only" in caught.value.hint
    paid = lipschitz(net, norm_in="1", norm_out="max", chain=chain)
    assert any("paid" in part.rule for part in paid.parts)
    product = 1.0
    layers = [m.weight.detach() for m in net if isinstance(m, nn.Linear)]
    for W, (p, q) in zip(layers, chain, strict=True):
        product *= exact(W, p, q)
    assert paid.value >= product * 1.5  # what the chain seems to claim is not what it proves


@pytest.mark.parametrize("chain", LEGAL)
def test_legal_chains_cost_the_product_of_their_norms(chain):
    net = net_of()
    found = lipschitz(net, norm_in="1", norm_out="max", chain=chain, mixed="refuse")
    product = 1.0
    layers = [m.weight.detach() for m in net if isinstance(m, nn.Linear)]
    for W, (p, q) in zip(layers, chain, strict=True):
        product *= exact(W, p, q)
    assert found.value == pytest.approx(product, rel=1e-6)
    assert lipschitz(net, norm_in="1", norm_out="max", mixed="refuse").value <= found.value


def test_the_claim_of_an_illegal_chain_is_false():
    """Rows within the budget entry by entry in all layers: slopes far above the claimed 1."""
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(8, 8), MaxMin())]).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(torch.randint(0, 2, (8, 8)) * 2.0 - 1)
    J = jacobians(net, torch.randn(50, 8).double())
    claimed = 1.0
    assert float(J.abs().amax()) > 10 * claimed
    assert lipschitz(net, norm_in="1", norm_out="max").value >= float(J.abs().amax())


def test_monotone_lipschitz_networks_have_twice_their_constant():
    torch.manual_seed(0)
    for constant in (0.5, 3.0):
        net = lipschitz_monotone([4, 8, 8, 2], [1, -1, 0, 1], constant)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(20)
        body = lipschitz(net.body, norm_in="1", norm_out="max").value
        assert body <= constant * (1 + 1e-5)
        x = torch.randn(200, 4)
        assert float(jacobians(net.body, x).abs().amax()) <= constant * (1 + 1e-5)
        whole = lipschitz(net, norm_in="1", norm_out="max").value
        assert constant < whole <= 2 * constant * (1 + 1e-5)
        assert float(jacobians(net, x).abs().amax()) <= whole
        for name in NORMS:
            assert lipschitz(net, norm_in=name, region=Box.around(torch.zeros(4), 1.0)).value > 0


@pytest.mark.parametrize(
    "module", [MaxMin(), GroupSort(group_size=3), GroupSort(n_groups=1), GroupSort(group_size=2)]
)
def test_sorting_is_nonexpansive_in_every_norm(module):
    for name in NORMS:
        assert lipschitz(module, norm_in=name, in_shape=(12,)).value == pytest.approx(1, rel=1e-9)
    assert lipschitz(module, norm_in="1", norm_out="max", in_shape=(12,)).value <= 1 + 1e-9
    image = lipschitz(module, norm_in="2", in_shape=(12, 3, 3))
    assert image.value == pytest.approx(1, rel=1e-9)
    x = torch.randn(1, 12).double()
    box = wp.enclose(module, Box.around(x, 0.5))
    y = module(x + torch.rand(400, 12).double() - 0.5)
    assert bool(((y >= box.lower) & (y <= box.upper)).all())
    corner = module(x - 0.5)
    assert torch.allclose(corner, box.lower)  # attained


def test_sorting_refuses_what_it_would_mix():
    with pytest.raises(NotCertifiableError, match="across samples"):
        lipschitz(MaxMin(dim=0), in_shape=(4,))
    with pytest.raises(NotCertifiableError, match="across samples"):
        lipschitz(MaxMin(dim=-2), in_shape=(4,))
    with pytest.raises(ShapeError, match="divisible"):
        lipschitz(GroupSort(group_size=3), in_shape=(4,))
    with pytest.raises(ShapeError, match="no axis"):
        lipschitz(MaxMin(dim=2), in_shape=(4,))


def test_equilibria_and_weighted_norms_take_part():
    torch.manual_seed(0)
    cell = wp.NemonCell(4, 6, margin=0.5, dtype=torch.float64)
    net = nn.Sequential(wp.Equilibrium(cell), nn.Linear(6, 3)).double()
    one, top = lipschitz(net, norm_in="1", norm_out="max"), lipschitz(net, norm_in="max")
    assert one.value <= top.value
    eta = torch.tensor([1.0, 2.0, 4.0, 0.5]).double()
    weighted = lipschitz(net, norm_in=MaxNorm(eta), norm_out="2").value
    direct = nn.Sequential(nn.Linear(4, 4, bias=False).double(), *net)
    with torch.no_grad():
        direct[0].weight.copy_(torch.diag(eta))
    assert weighted == pytest.approx(lipschitz(direct, norm_in="max", norm_out="2").value, rel=0.01)


def test_strict_mode_refuses_pairs_that_only_a_factor_reaches():
    for p, q in (("max", "1"), ("max", "2"), ("2", "1")):
        with pytest.raises(NotCertifiableError, match="smaller"):
            lipschitz(net_of(), norm_in=p, norm_out=q, mixed="refuse")
        assert lipschitz(net_of(), norm_in=p, norm_out=q).value > 0


def test_contractive_equilibria_keep_their_quotient():
    """||z(x) - z(y)|| <= Lip_x / (1 - k) ||x - y|| on 10,000 pairs, in the max norm."""
    torch.manual_seed(0)
    cell = wp.InfNormCell(3, 8, bound=0.9, dtype=torch.float64)
    layer = wp.Equilibrium(cell)
    affine = cell.explicit()
    k = float(affine.A.matrix.detach().abs().sum(1).amax())
    quotient = float(affine.B.matrix.detach().abs().sum(1).amax()) / (1 - k)
    certificate = lipschitz(layer).value
    assert certificate <= quotient * (1 + 1e-9)
    x = torch.randn(10_000, 3).double()
    y = x + torch.randn(10_000, 1).double().exp() * torch.randn(10_000, 3).double()
    with torch.no_grad():
        apart = (layer(x) - layer(y)).abs().amax(1) / (x - y).abs().amax(1)
    assert 0 < float(apart.amax()) <= certificate + 1e-6


def test_bad_arguments():
    net = net_of()
    with pytest.raises(ConfigError, match="mixed"):
        lipschitz(net, norm_in="1", norm_out="max", mixed="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one pair of norms for each of the 3"):
        lipschitz(net, norm_in="1", norm_out="max", chain=(("1", "max"),))
    with pytest.raises(ConfigError, match="one pair of norms"):
        lipschitz(net, norm_in="1", norm_out="max", chain=(("1", "inf"),) * 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 1 to max"):
        lipschitz(net, norm_in="1", norm_out="max", method="product")
