"""Bounds of dense chains by slopes and signed weights: closed form, descent, LipSDP, local."""

import sys
from itertools import pairwise
from math import inf

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify import lipschitz
from wellposed.certify import lipsdp as sdp
from wellposed.certify.composed import composed_gains, pair_gains
from wellposed.certify.eclipse import Scaled, propose, prove, uniform
from wellposed.certify.ellipsoid import Slope, Weights, middle_radius, propagate
from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.measuring import METHODS
from wellposed.certify.multipliers import chain_proof
from wellposed.core.norms import TwoNorm
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.normalise import Normalise
from wellposed.testing.rules import SPOILERS, check_rule
from wellposed.verify.audit import audit

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU, "silu": nn.SiLU, "maxmin": MaxMin, "sort3": lambda: GroupSort(group_size=3),
}  # fmt: skip


def dense(*widths, act=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1]).double()


def steps_of(net):
    majorant = majorise(net, Site((net[0].in_features,)))
    return Scaled.of(net[0].in_features, majorant.steps)


def jacobian_norm(net, x):
    """The largest norm of a Jacobian at some points, all taken at once."""
    total = torch.autograd.functional.jacobian(lambda z: net(z).sum(0), x)
    return float(torch.linalg.matrix_norm(total.movedim(1, 0), 2).amax())


def test_dense_chains_conform():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    report = check_rule(
        lambda: dense(3, 6, 6, 2, act=MaxMin),
        x,
        norms=(TwoNorm(),),
        rounds=1,
        outside=[lambda: nn.Sequential(dense(3, 4, 2), nn.LayerNorm(2))],
    )
    assert report.checked == len(SPOILERS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_jacobian_exceeds_the_bound_at_ugly_parameters(name):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    for spoil in SPOILERS.values():
        net = dense(3, 6, 6, 2, act=ACTIVATIONS[name])
        spoil(net, x)
        found = jacobian_norm(net, torch.cat([0.1 * x, x, 10 * x]))
        assert found <= lipschitz(net, norm_in="2", method="eclipse").value
        if spoil is SPOILERS["skewed"]:
            assert found <= lipschitz(net, norm_in="2").value


def test_weights_rounded_to_bfloat16_are_measured_as_they_stand():
    net = dense(4, 16, 16, 3).bfloat16()
    bound = lipschitz(net, norm_in="2").value
    exact = net.double()
    assert jacobian_norm(exact, torch.randn(50, 4).double()) <= bound
    assert bound == lipschitz(exact, norm_in="2").value


def test_the_published_recursion_is_reproduced():
    """ECLipsE-Fast as it stands in the paper; its values on these networks are published."""
    for widths, published in (
        ((5, 16, 16, 2), 0.671), ((5, 32, 32, 2), 0.894), ((10, 32, 32, 32, 1), 0.477),
        ((10, 64, 64, 64, 64, 1), 0.573),
    ):  # fmt: skip
        net = dense(*widths)
        layers = [m.weight.detach() for m in net if isinstance(m, nn.Linear)]
        inverse = torch.eye(widths[0], dtype=torch.float64)
        for W in layers[:-1]:
            G = W @ inverse @ W.mT
            ell = 1 / (0.5 * torch.linalg.eigvalsh(G)[-1])
            inverse = torch.linalg.inv(ell * torch.eye(len(W)).double() - ell**2 * G / 4)
        plain = float(torch.linalg.eigvalsh(layers[-1] @ inverse @ layers[-1].mT)[-1]) ** 0.5
        chain = steps_of(net)
        found = prove(chain, propose(chain, uniform)[1]).two_norm()
        assert found == pytest.approx(plain, rel=1e-7)
        assert found == pytest.approx(published, abs=6e-4)


def test_methods_are_ordered_and_the_smallest_is_returned():
    net = dense(5, 16, 16, 2)
    value = {m: lipschitz(net, norm_in="2", method=m).value for m in METHODS if m != "lipsdp"}
    assert value["auto"] <= min(value["eclipse"], value["product"], value["componentwise"])
    assert value["descent"] <= value["auto"] < value["eclipse"] < value["product"]
    assert value["descent"] == pytest.approx(0.440, abs=2e-3)  # LipSDP-Neuron, as published
    assert jacobian_norm(net, 3 * torch.randn(100, 5).double()) <= value["descent"]


@pytest.mark.parametrize("scale", [1e-120, 1e-3, 1.0, 1e3, 1e60])
def test_a_chain_of_linear_maps_has_the_norm_of_their_product(scale):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 20), nn.Identity(), nn.Linear(20, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(),
        nn.Linear(4, 9),
    ).double()  # fmt: skip
    with torch.no_grad():
        net[0].weight.mul_(scale)
    product = (net[5].weight @ net[2].weight @ net[0].weight).detach() / scale
    exact = float(torch.linalg.matrix_norm(product, 2)) * scale
    bound = lipschitz(net, norm_in="2").value
    assert exact * (1 - 1e-12) <= bound <= exact * (1 + 1e-6)


def test_scaling_layers_are_part_of_the_chain():
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(6).double()
    norm.running_var.uniform_(0.1, 3)
    norm.weight.data.normal_()
    net = nn.Sequential(
        Normalise((0.1, 0.2), (0.5, 2.0)), nn.Flatten(), nn.Linear(8, 6), norm, nn.Linear(6, 3)
    ).double().eval()  # fmt: skip
    J = torch.autograd.functional.jacobian(
        lambda x: net(x.reshape(1, 2, 2, 2))[0], torch.rand(8).double()
    )
    exact = float(torch.linalg.matrix_norm(J, 2))
    bound = lipschitz(net, norm_in="2", in_shape=(2, 2, 2)).value
    assert exact * (1 - 1e-12) <= bound <= exact * (1 + 1e-6)


@pytest.mark.parametrize("act", ["relu", "tanh", "gelu", "maxmin", "sort3"])
def test_any_multipliers_prove_a_bound_or_nothing(act):
    net = dense(4, 12, 12, 2, act=ACTIVATIONS[act])
    chain = steps_of(net)
    _, start = propose(chain, uniform, 0.3)
    low = lipschitz_lower(
        net, torch.randn(8, 4).double(), norm_in=TwoNorm(), norm_out=TwoNorm(), rounds=2
    ).value
    generator = torch.Generator().manual_seed(0)
    proved = 0
    for trial in range(24):
        wild = [
            None if D is None else D * torch.randn(len(D), generator=generator).double().exp()
            for D in start
        ]
        # a generous layer asks more of the next one
        room = 3.0 ** (trial % 4)
        wild = [None if D is None else D * room**k for k, D in enumerate(wild)]
        value = prove(chain, tuple(wild)).two_norm()
        assert value >= low
        proved += value < inf
    assert proved > 0
    assert prove(chain, tuple(None if D is None else 1e-3 * D for D in start)).two_norm() == inf
    wrong = tuple(None if D is None else -D for D in start)
    assert prove(chain, wrong).two_norm() == inf


def test_the_inequality_holds_as_one_block_matrix():
    """LipSDP's matrix, put together apart from the recursion, with the multipliers it used."""
    net = dense(4, 10, 10, 3)
    chain = steps_of(net)
    proof = chain_proof(4, majorise(net, Site((4,))).steps)
    _, multipliers = propose(chain, uniform)
    square = prove(chain, multipliers).ellipsoids[-1].two_norm ** 2
    W1, W2, W3 = (s.matrix for s in chain.steps if isinstance(s, Weights))
    lam1, lam2 = (torch.diag(1 / D) for D in multipliers if D is not None)
    zero = torch.zeros(4, 10, dtype=torch.float64)
    M = torch.cat([
        torch.cat([torch.eye(4).double(), -W1.mT @ lam1 / 2, zero], 1),
        torch.cat([-lam1 @ W1 / 2, lam1, -W2.mT @ lam2 / 2], 1),
        torch.cat([zero.mT, -lam2 @ W2 / 2, lam2 - W3.mT @ W3 / square], 1),
    ])  # fmt: skip
    k = M.diagonal().rsqrt()
    assert float(torch.linalg.eigvalsh(k[:, None] * M * k)[0]) > -1e-9
    assert proof.two_norm() <= prove(chain, multipliers).two_norm()


def test_components_that_are_tied_have_one_multiplier():
    """The mean is kept and the rest does not grow: a multiplier a component would prove less."""
    low = torch.tensor([1.0, -1.0, -1.0]).double()
    step = Slope(low, torch.ones(3).double(), tied=True)
    turned = Weights(torch.tensor([[1.0], [1.0], [0.0]]).double())
    uneven = torch.tensor([0.0, 1.1, 1e-6]).double()
    found = propagate(1, (turned, step), (None, uneven))
    # dv = (1, 1, 0) may become dz = (1, 0, 1), which uneven multipliers would exclude
    assert found is not None
    assert float(found[-1].rows[2]) >= 1
    free = propagate(1, (turned, Slope(low, torch.ones(3).double())), (None, uneven))
    assert free is not None
    assert float(free[-1].rows[2]) < 0.01


def test_zero_and_broken_weights():
    net = dense(3, 5, 2)
    with torch.no_grad():
        net[0].weight.zero_()
    assert lipschitz(net, norm_in="2").value <= 1e-60
    with torch.no_grad():
        net[0].weight[0, 0] = inf
    with pytest.raises(NotCertifiableError, match="NaN or infinite"):
        lipschitz(net, norm_in="2")


def test_wide_layers_are_left_to_their_norms():
    net = dense(3, 1100, 2)
    with pytest.raises(NotCertifiableError, match="two layers") as caught:
        lipschitz(net, norm_in="2", method="eclipse")
    assert caught.value.hint
    assert lipschitz(net, norm_in="2").rule == "product of the bounds of the parts"
    with pytest.raises(NotCertifiableError, match="two layers"):
        lipschitz(net[0], norm_in="2", method="descent")


def test_an_unknown_layer_is_used_by_its_gain():
    torch.manual_seed(0)
    cell = wp.NemonCell(8, 6, margin=0.5, dtype=torch.float64)
    net = nn.Sequential(dense(4, 12, 8), wp.Equilibrium(cell), nn.ReLU(), dense(6, 12, 2)).double()
    bound = lipschitz(net, norm_in="2")
    assert bound.value <= lipschitz(net, norm_in="2", method="product").value
    found = lipschitz_lower(
        net, torch.randn(4, 4).double(), norm_in=TwoNorm(), norm_out=TwoNorm(), rounds=2
    )
    audit([bound], [found])


@pytest.mark.parametrize("act", ["relu", "tanh", "gelu", "maxmin"])
def test_local_bounds_hold_and_become_the_norm_of_the_jacobian(act):
    net = dense(4, 12, 12, 2, act=ACTIVATIONS[act])
    x = torch.randn(4, generator=torch.Generator().manual_seed(3)).double()
    whole = lipschitz(net, norm_in="2").value
    for eps in (0.5, 0.05):
        region = Box.around(x, eps)
        local = lipschitz(net, norm_in="2", region=region)
        assert local.value <= whole
        points = x + eps * (torch.rand(50, 4).double() * 2 - 1)
        assert jacobian_norm(net, points) <= local.value
    if act in ("relu", "tanh"):
        exact = jacobian_norm(net, x[None])
        assert lipschitz(net, norm_in="2", region=Box.around(x, 1e-9)).value <= exact * (1 + 1e-5)


def test_slopes_that_are_one_number_up_to_rounding_cost_no_multiplier():
    low = torch.tensor([0.0, 1.0, 1.0, -0.5], dtype=torch.float64)
    high = torch.tensor([1.0, 1.0, 1 + 1e-15, 0.5], dtype=torch.float64)
    m, r, slip = middle_radius(Slope(low, high))
    assert r.tolist()[1:3] == [0, 0]
    assert float(slip[2]) > 0
    assert bool((m - r - slip <= low).all())


def test_pairs_of_logits_share_the_recursion():
    net = nn.Sequential(nn.Flatten(), *dense(8, 16, 16, 4)).eval()
    gains = composed_gains(net, (2, 4), 4)
    one = majorise(net[:-1], Site((2, 4)))
    assert bool((gains <= pair_gains(one, net[-1].weight.detach())).all())
    assert torch.equal(gains.diagonal(), torch.zeros(4).double())
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
    C = net[-1].weight.detach()
    for t, j in ((0, 1), (2, 3), (1, 3)):
        row = nn.Linear(16, 1, bias=False).double()
        row.weight = nn.Parameter((C[t] - C[j])[None])
        pair = nn.Sequential(*net[1:-1], row)
        assert jacobian_norm(pair, x) <= float(gains[t, j])
        # a recursion of its own is better, but not by much
        assert float(gains[t, j]) <= 1.5 * lipschitz(pair, norm_in="2").value
    body = lipschitz(net[:-1], norm_in="2", in_shape=(2, 4)).value
    tilted = float(torch.linalg.vector_norm(C[0] - C[1])) * body
    assert float(gains[0, 1]) < tilted


def test_estimates_stay_below_the_certificate_while_training():
    net = dense(2, 16, 16, 2)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    for step in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
        if step % 8 == 0:
            with torch.no_grad():
                apart = torch.cdist(x, x) + torch.eye(len(x)).double()
                steepest = float((torch.cdist(net(x), net(x)) / apart).max())
            assert 0 < steepest <= lipschitz(net, norm_in="2").value


def test_a_semidefinite_programme_is_checked_and_never_worse():
    pytest.importorskip("cvxpy")
    for act in ("relu", "maxmin", "sort3"):
        net = dense(3, 6, 6, 2, act=ACTIVATIONS[act])
        found = lipschitz(net, norm_in="2", method="lipsdp").value
        assert found <= lipschitz(net, norm_in="2").value
        assert found <= lipschitz(net, norm_in="2", method="descent").value * (1 + 1e-4)
        assert jacobian_norm(net, 3 * torch.randn(50, 3).double()) <= found


def test_a_solver_that_lies_proves_nothing(monkeypatch):
    pytest.importorskip("cvxpy")
    net = dense(3, 4, 2)
    honest = lipschitz(net, norm_in="2").value
    true = sdp._solve

    def lie(chain, verbose):
        return tuple(None if D is None else 0.1 * D for D in true(chain, verbose))

    monkeypatch.setattr(sdp, "_solve", lie)
    assert lipschitz(net, norm_in="2", method="lipsdp").value == honest


def test_a_missing_solver_and_too_large_networks_say_what_to_do(monkeypatch):
    with pytest.raises(NotCertifiableError, match="unknowns") as caught:
        lipschitz(dense(3, 250, 250, 2), norm_in="2", method="lipsdp")
    assert "descent" in caught.value.hint
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ConfigError, match="cvxpy") as missing:
        lipschitz(dense(3, 4, 2), norm_in="2", method="lipsdp")
    assert "sdp" in missing.value.hint


def test_methods_of_the_two_norm_are_refused_in_others():
    for method in ("eclipse", "descent", "lipsdp"):
        with pytest.raises(ConfigError, match="2-norm"):
            lipschitz(dense(3, 4, 2), norm_in="max", method=method)
