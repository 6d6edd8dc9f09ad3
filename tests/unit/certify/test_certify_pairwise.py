"""Two-norm gains of rows: hold for sampled and attacked pairs, tight on witnesses, refusals."""

import pytest
import torch

from wellposed.certify.equilibria import equilibrium, logit_gaps
from wellposed.certify.pairwise import (
    PairwiseL2,
    active_part,
    certified_radius,
    tuned_multiplier,
)
from wellposed.certify.wellposed import monotone_witness, wellposedness
from wellposed.core.activations import LeakyReLU
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(n=6, d=3, q=3, seed=0, margin=0.5, spread=0.0, direct=False, activation=None):
    """A monotone network; with `spread`, only in a norm with weights over that many e-folds."""
    A, B = rand(n, n, seed=seed), rand(n, n, seed=seed + 1)
    M = margin * torch.eye(n).double() + A.mT @ A / n + B - B.mT
    psi = (spread * rand(n, seed=seed + 2)).exp()
    return Network.of(
        torch.eye(n).double() - psi[:, None] * M,
        psi[:, None] * rand(n, d, seed=seed + 3),
        rand(n, seed=seed + 4),
        rand(q, n, seed=seed + 5),
        rand(q, seed=seed + 6),
        D=rand(q, d, seed=seed + 7) if direct else None,
        activation=activation,
    ), 1 / psi


def largest_ratio(net, rows, direct=None, *, steps=8, samples=32, seed=0):
    """The largest `|r dz + s dx| / ||dx||` found by sampling pairs and following the gradient."""
    witness = wellposedness(net)
    x, dx = rand(samples, net.d, seed=seed), rand(samples, net.d, seed=seed + 1)
    size = 10.0 ** (-3 * torch.rand(samples, 1, generator=torch.Generator().manual_seed(seed)))
    best = torch.zeros(len(rows)).double()
    s = torch.zeros(len(rows), net.d).double() if direct is None else direct
    for _ in range(steps):
        dx = dx / dx.norm(dim=1, keepdim=True) * size
        z, other = (equilibrium(net, p, witness).z for p in (x, x + dx))
        move = (other - z) @ rows.mT + dx @ s.mT
        ratio = move.abs() / dx.norm(dim=1, keepdim=True)
        best = torch.maximum(best, ratio.amax(0))
        # power step on the slopes of the pair: row -> direction that it sees most
        v, w = (net.preactivation(p, y) for p, y in ((z, x), (other, x + dx)))
        slope = torch.where((w - v).abs() > 1e-12, (other - z) / (w - v), (v > 0).double())
        J = torch.linalg.solve(
            torch.eye(net.n).double() - slope[..., None] * net.W, slope[..., None] * net.U
        )
        pick = torch.arange(samples) % len(rows)
        dx = (rows[pick][:, None] @ J).squeeze(1) + s[pick] + 1e-9
        x = x + 0.3 * rand(samples, net.d, seed=seed + 2) * (torch.rand(1) > 0.5)
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_gains_hold_for_sampled_and_attacked_pairs(seed, spread):
    net, lam = make(seed=10 * seed, spread=spread)
    rows = torch.cat([net.C, 1e4 * rand(1, net.n, seed=3), 1e-6 * rand(1, net.n, seed=4)])
    gain = PairwiseL2.of(net, lam).gain(rows).gain
    assert bool(torch.isfinite(gain).all())
    assert bool((largest_ratio(net, rows, seed=seed) <= gain).all())


@pytest.mark.parametrize("seed", range(6))
def test_every_valid_multiplier_is_a_certificate(seed):
    net, lam = make(seed=seed, margin=2.0)
    generator = torch.Generator().manual_seed(seed)
    lam = lam * (0.4 * torch.randn(net.n, generator=generator).double()).exp()
    proof = PairwiseL2.of(net, lam)
    top = float(torch.linalg.eigvals(torch.linalg.solve(proof.S, proof.Q)).real.max())
    theta = torch.rand(len(net.C), generator=generator).double() / top
    gain, used = proof.gain(net.C, theta=theta)
    assert torch.equal(used, theta)
    assert bool(torch.isfinite(gain).all())
    assert bool((largest_ratio(net, net.C) <= gain).all())


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-9, 2.0, -1.0, 0.0])
def test_a_pair_that_is_not_positive_definite_is_refused(factor):
    net, lam = make()
    proof = PairwiseL2.of(net, lam)
    top = float(torch.linalg.eigvals(torch.linalg.solve(proof.S, proof.Q)).real.max())
    theta = torch.full((len(net.C),), factor / top, dtype=torch.float64)
    # exactly at the limit the matrix is singular: rounding decides which side, the bound must not
    gain = proof.gain(net.C, theta=theta * (1 + 1e-12)).gain
    assert bool((gain == torch.inf).all())


def test_a_multiplier_without_positive_definite_form_is_refused():
    net, _ = make(spread=2.0)
    with pytest.raises(NotCertifiableError, match="no eigenvalue proved above 0"):
        PairwiseL2.of(net)
    assert monotone_witness(net).margin > 0


def test_the_scalar_search_is_the_direct_inverse_and_finds_the_minimum():
    net, lam = make(n=9, seed=4)
    proof = PairwiseL2.of(net, lam)
    gain, theta = proof.gain(net.C)
    for c, g, th in zip(net.C, gain, theta, strict=True):
        direct = c @ torch.linalg.solve(proof.S - th * proof.Q, c) / th
        assert float(g) == pytest.approx(float(direct) ** 0.5, rel=1e-9)
        assert float(g) >= float(direct) ** 0.5 * (1 - 1e-12)
        grid = theta.max() * 2 * torch.linspace(0.01, 1, 300).double()
        others = proof.gain(c.expand(300, -1), theta=grid).gain
        assert float(g) <= float(others.min()) * (1 + 1e-6)


def test_one_neuron_attains_its_gain():
    one = torch.ones(1, 1).double()
    net = Network.of(0 * one, torch.tensor([[3.0, 4.0]]), one[0], 2 * one, one[0])
    # z = relu(3 x + 4 y + 1), output 2 z: the gain is 2 * 5
    assert float(PairwiseL2.of(net).gain(net.C).gain) == pytest.approx(10, rel=1e-9)


def test_a_symmetric_network_attains_its_gain_on_eigenvectors():
    # all neurons active, I - W symmetric with eigenvalue mu for c: |c dz| / |dx| = |c| / mu,
    # found for th = mu, which must lie below twice the smallest eigenvalue
    M = torch.diag(torch.tensor([0.6, 1.0, 1.15])).double()
    V = torch.linalg.qr(rand(3, 3))[0]
    W = torch.eye(3).double() - V @ M @ V.mT
    net = Network.of(W, torch.eye(3), 100 * torch.ones(3), V.mT, torch.zeros(3))
    gain = PairwiseL2.of(net).gain(net.C).gain
    assert torch.allclose(gain, 1 / M.diagonal(), rtol=1e-6)


def test_a_direct_path_adds_its_norm_and_scales_are_undone():
    net, lam = make(direct=True, seed=2)
    rows, direct = net.C, net.D
    gain = PairwiseL2.of(net, lam).gain(rows, direct).gain
    assert bool((largest_ratio(net, rows, direct) <= gain).all())
    scale = torch.tensor([0.3, 2.0, 5.0]).double()
    scaled = PairwiseL2.of(net, lam, scale=scale).gain(rows, direct).gain
    plain = Network.of(net.W, net.U / scale, net.b, net.C, net.c)
    again = PairwiseL2.of(plain, lam).gain(rows, direct / scale).gain
    assert torch.allclose(scaled, again, rtol=1e-9)


def test_the_multiplier_search_improves_on_its_start():
    net, lam = make(n=20, d=8, q=5, seed=1)
    first, second = torch.triu_indices(5, 5, 1)
    rows = net.C[first] - net.C[second]
    before = PairwiseL2.of(net, lam).gain(rows).gain.log().mean()
    tuned = tuned_multiplier(net, rows, lam, steps=40)
    after = PairwiseL2.of(net, tuned).gain(rows).gain.log().mean()
    assert float(after) < float(before) - 0.01
    assert bool((largest_ratio(net, rows) <= PairwiseL2.of(net, tuned).gain(rows).gain).all())


def test_gains_of_pairs_are_those_of_their_rows():
    net, lam = make(direct=True)
    proof = PairwiseL2.of(net, lam)
    table = proof.pairs()
    assert torch.equal(table, table.mT)
    assert bool((table.diagonal() == 0).all())
    alone = proof.gain(net.C[:1] - net.C[1:2], net.D[:1] - net.D[1:2]).gain
    assert float(table[0, 1]) == pytest.approx(float(alone), rel=1e-9)
    assert float(table[0, 1]) >= float(alone)


@pytest.mark.parametrize("activation", [None, LeakyReLU(0.2)])
def test_no_point_within_a_certified_radius_has_another_class(activation):
    net, lam = make(n=8, d=4, q=4, seed=3, activation=activation)
    witness, x = wellposedness(net), 2 * rand(60, 4, seed=1)
    label = net.output(equilibrium(net, x, witness).z, x).argmax(1)
    proof = PairwiseL2.of(net, lam)
    radius = certified_radius(logit_gaps(net, x, label, witness).lower, label, proof.pairs())
    assert float(radius.min()) > 0
    gaps = certified_radius(
        logit_gaps(net, x, (label + 1) % 4, witness).lower, label, proof.pairs()
    )
    for k in range(8):
        way = rand(60, 4, seed=k + 5)
        near = x + way / way.norm(dim=1, keepdim=True) * radius[:, None] * 0.999
        assert torch.equal(net.output(equilibrium(net, near, witness).z, near).argmax(1), label)
    # gaps of another label are negative somewhere: nothing is certified from them
    assert bool((gaps == 0).all())


def test_the_local_part_is_valid_on_its_region_and_tighter():
    net, lam = make(n=10, seed=8)
    witness, centre = wellposedness(net), torch.tensor([[0.4, -0.2, 0.1]]).double()
    dx = 0.02 * rand(1000, 3, seed=1).clamp(-1, 1)
    z = equilibrium(net, centre + dx, witness).z
    v = net.preactivation(z, centre + dx)
    box = Box(v.amin(0) - 1e-6, v.amax(0) + 1e-6)
    part, keep = active_part(net, box)
    assert 0 < part.n < net.n
    whole, local = PairwiseL2.of(net, lam), PairwiseL2.of(part, lam[keep])
    gain = local.gain(part.C).gain
    assert bool((gain < whole.gain(net.C).gain).all())
    move = (z[1:] - z[:-1]) @ net.C.mT
    assert bool((move.abs() <= gain * (dx[1:] - dx[:-1]).norm(dim=1, keepdim=True)).all())
    again = equilibrium(part, centre + dx, wellposedness(part)).z
    assert torch.allclose(again, z[:, keep], atol=1e-9)
    leaky = Network.of(net.W, net.U, net.b, net.C, net.c, activation=LeakyReLU(0.1))
    assert active_part(leaky, box)[0].n == net.n


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_ugly_units_change_nothing(size):
    net, lam = make(seed=6)
    huge = Network.of(net.W, size * net.U, net.b, net.C / size, net.c)
    plain, other = (PairwiseL2.of(m, lam).gain(m.C).gain for m in (net, huge))
    assert torch.allclose(plain, other, rtol=1e-6)
    tiny = PairwiseL2.of(net, lam * size).gain(net.C).gain
    assert torch.allclose(plain, tiny, rtol=1e-6)


def test_arguments_that_do_not_fit_are_refused():
    net, lam = make()
    with pytest.raises(ShapeError, match="`multiplier`"):
        PairwiseL2.of(net, lam[:-1])
    with pytest.raises(ShapeError, match="`multiplier`"):
        PairwiseL2.of(net, -lam)
    with pytest.raises(ShapeError, match="`scale`"):
        PairwiseL2.of(net, lam, scale=0.0)
    with pytest.raises(ShapeError, match="`rows`"):
        PairwiseL2.of(net, lam).gain(rand(2, net.n + 1))
    assert PairwiseL2.of(net, lam).gain(rand(0, net.n)).gain.shape == (0,)
