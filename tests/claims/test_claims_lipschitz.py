"""Claims of docs/mathematics.md sections 7 to 9 and 13: Lipschitz bounds, boxes, convolutions."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify import bound_l0, bound_l1, bound_l2, bound_l3, bound_l4, equilibrium_box
from wellposed.certify.affine import local_loop
from wellposed.certify.loop import Loop
from wellposed.core.activations import LeakyReLU, ReLU, Sigmoid, Tanh
from wellposed.core.affine import Affine
from wellposed.core.norms import log_norm_rows
from wellposed.core.operators import Dense
from wellposed.core.sets import Box
from wellposed.solvers.base import solve
from wellposed.verify.audit import audit

TIGHT = wp.Stopping(1e-15, 0.0, 5000)


def _cell(seed, n=5, p=3, margin=0.5, activation=None):
    torch.manual_seed(seed)
    cell = wp.NemonCell(p, n, margin=margin, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        cell.T.mul_(10 ** (torch.rand(()) * 2))
        cell.log_eta.normal_()
    return cell


def _brute(affine, C):
    """Largest ``|| C (I - D A)^-1 D B ||_inf`` over all 0/1 slopes."""
    A, B = affine.A.matrix, affine.B.matrix
    best = 0.0
    for bits in product((0.0, 1.0), repeat=len(A)):
        D = torch.diag(torch.tensor(bits, dtype=torch.float64))
        J = C @ torch.linalg.solve(torch.eye(len(A)).double() - D @ A, D @ B)
        best = max(best, float(J.abs().sum(1).max()))
    return best


@pytest.mark.claim("arXiv 2106.03194", "order of the Lipschitz bounds, mathematics.md 7")
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.2), Tanh(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("margin", [-2.0, 0.0, 0.9])
def test_bounds_are_ordered_and_hold(margin, activation):
    for seed in range(3):
        affine = _cell(seed, margin=margin, activation=activation).explicit().double()
        C = Dense(torch.randn(2, 5, dtype=torch.float64))
        values = [rule(affine, C).value for rule in (bound_l3, bound_l2, bound_l1, bound_l0)]
        for lower, upper in zip(values, values[1:], strict=False):
            assert lower <= upper * (1 + 1e-12)
        if isinstance(activation, ReLU):
            assert _brute(affine, C.matrix) <= values[0]


@pytest.mark.claim("mathematics.md 7", "eta* = K 1 turns L2 into L3")
def test_l2_with_the_best_weights_is_l3():
    affine = _cell(3).explicit().double()
    e = Loop(affine).apply(torch.ones(1, 3).double())[0]
    C = Dense(torch.rand(1, 5, dtype=torch.float64))
    assert bound_l2(affine, C, eta=e).value == pytest.approx(bound_l3(affine, C).value, rel=1e-9)


@pytest.mark.claim("mathematics.md 7", "witness: nonnegative weights, all neurons active")
@pytest.mark.parametrize("seed", range(5))
def test_l3_is_attained_by_nonnegative_weights(seed):
    torch.manual_seed(seed)
    n = 6
    A = torch.rand(n, n, dtype=torch.float64)
    A = 0.9 * A / torch.linalg.eigvals(A).abs().max()
    A = A - torch.diag(torch.rand(n).double() * 3)
    affine = Affine(Dense(A), Dense(torch.rand(n, 4).double()), torch.ones(n).double() * 5, ReLU())
    C = torch.rand(3, n).double()
    value = bound_l3(affine, Dense(C)).value
    J = C @ torch.linalg.solve(torch.eye(n).double() - A, affine.B.matrix)
    attained = float(J.abs().sum(1).max())
    assert attained <= value <= attained * (1 + 1e-10)


@pytest.mark.claim("mathematics.md 7, L4", "local bound approaches the pointwise majorant")
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=repr)
def test_local_bound_shrinks_to_the_pointwise_one(activation):
    cell = _cell(0, n=8, activation=activation)
    affine = cell.explicit().double()
    u = torch.randn(3, dtype=torch.float64)
    values = [bound_l4(affine, Box.around(u, eps)).value for eps in (10.0, 1.0, 0.1, 1e-2, 1e-9)]
    assert all(a >= b * (1 - 1e-12) for a, b in zip(values, values[1:], strict=False))
    assert values[0] <= bound_l3(affine).value
    map_ = affine.bind(u[None])
    z = solve(map_, torch.zeros(1, 8).double(), wp.Jacobi(), TIGHT).value
    d = activation.slope(affine.A.apply(z, map_.offset))[0]
    A, a = affine.A.matrix, affine.A.diagonal()
    gain = (d / (1 - d * a))[:, None]
    majorant = torch.linalg.solve(
        torch.eye(8).double() - gain * (A - torch.diag(a)).abs(), gain * affine.B.matrix.abs()
    )
    pointwise = float(majorant.sum(1).max())
    assert pointwise <= values[-1] <= pointwise * (1 + 1e-6)


@pytest.mark.claim("mathematics.md 9.4", "boxes are sound at every stopping time")
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(0.3), Tanh(), Sigmoid()], ids=repr)
def test_box_contains_ten_thousand_corners_however_early_it_stops(activation):
    cell = _cell(1, n=7, p=4, activation=activation)
    affine = cell.explicit().double()
    u, eps = torch.randn(4, dtype=torch.float64), 0.4
    g = torch.Generator().manual_seed(0)
    count = 10_000 if activation.homogeneous else 1000
    signs = torch.rand(count, 4, generator=g, dtype=torch.float64) * 2 - 1
    signs[: count // 2] = signs[: count // 2].sign()
    inputs = u + eps * signs
    z = solve(
        affine.bind(inputs), torch.zeros(count, 7).double(), wp.Jacobi(), wp.Stopping(1e-13)
    ).value
    v = affine.A.apply(z) + affine.B.apply(inputs) + affine.bias
    widths = []
    for steps in (0, 1, 2, 3, 10, 200):
        found = equilibrium_box(affine, Box.around(u[None], eps), steps=steps)
        assert bool(((z >= found.state.lower - 1e-11) & (z <= found.state.upper + 1e-11)).all())
        box = found.preactivation
        assert bool(((v >= box.lower - 1e-10) & (v <= box.upper + 1e-10)).all())
        widths.append(float((found.state.upper - found.state.lower).sum()))
    assert all(a >= b * (1 - 1e-12) for a, b in zip(widths, widths[1:], strict=False))
    assert widths[-1] < widths[0]


@pytest.mark.claim("arXiv 2112.05310", "width of the embedded box is at most K times the input's")
def test_box_is_never_wider_than_the_lipschitz_bound_and_matches_the_embedded_network():
    affine = _cell(2, n=9, p=4).explicit().double()
    region = Box.around(torch.randn(5, 4, dtype=torch.float64), 0.2)
    found = equilibrium_box(affine, region, steps=2000, rtol=1e-14)
    bound = Loop(affine).apply(2 * region.radius)
    width = found.state.upper - found.state.lower
    assert bool((width <= bound * (1 + 1e-9) + 1e-12).all())
    # published embedded network, Metzler split, iterated to convergence
    A, B, b = affine.A.matrix, affine.B.matrix, affine.bias
    P = torch.where((torch.eye(9) > 0) | (A >= 0), A, torch.zeros_like(A))
    N, alpha = A - P, 1 / (1 + float((-torch.diagonal(A)).clamp(min=0).max()))
    up = lo = torch.zeros(5, 9).double()
    for _ in range(20_000):
        new_up = torch.relu(up @ P.T + lo @ N.T + region.upper @ B.T.clamp(min=0)
                            + region.lower @ B.T.clamp(max=0) + b)  # fmt: skip
        new_lo = torch.relu(lo @ P.T + up @ N.T + region.lower @ B.T.clamp(min=0)
                            + region.upper @ B.T.clamp(max=0) + b)  # fmt: skip
        if float((new_up - up).abs().max() + (new_lo - lo).abs().max()) < 1e-14:
            break
        up, lo = torch.lerp(up, new_up, alpha), torch.lerp(lo, new_lo, alpha)
    assert torch.allclose(found.state.upper, up, atol=1e-9)
    assert torch.allclose(found.state.lower, lo, atol=1e-9)
    assert bool((found.state.upper >= up - 1e-13).all())


@pytest.mark.claim("mathematics.md 9", "a certificate does not depend on batch mates")
def test_box_of_a_sample_does_not_depend_on_its_batch():
    affine = _cell(4, n=9, p=4).explicit().double()
    u = torch.randn(6, 4, dtype=torch.float64)
    radius = torch.logspace(-4, 1, 6, dtype=torch.float64)[:, None]
    # a fixed number of steps; stopping early is a matter of the whole batch
    together = equilibrium_box(affine, Box.around(u, radius), steps=40, rtol=0.0).state
    for i in range(6):
        alone = equilibrium_box(
            affine, Box.around(u[i : i + 1], radius[i]), steps=40, rtol=0.0
        ).state
        assert torch.allclose(together.upper[i], alone.upper[0], rtol=1e-9, atol=1e-11)
        assert torch.allclose(together.lower[i], alone.lower[0], rtol=1e-9, atol=1e-11)


@pytest.mark.claim("mathematics.md 9.5", "float32 weights are measured in float64")
def test_float32_network_stays_inside_the_box_up_to_its_error_bound():
    torch.manual_seed(0)
    cell = wp.NemonCell(4, 20, margin=0.9)
    layer = wp.Equilibrium(cell).eval()
    u = torch.randn(4)
    found = equilibrium_box(cell.explicit(), Box.around(u[None], 0.1))
    signs = (torch.rand(2000, 4, generator=torch.Generator().manual_seed(1)) < 0.5) * 2.0 - 1
    solution = layer.solve(u + 0.1 * signs)
    slack = solution.error_bound[:, None] + 1e-5  # inputs and canonical weights were rounded too
    z = solution.value.double()
    assert bool((z <= found.state.upper + slack).all() & (z >= found.state.lower - slack).all())


def _attack_kernels(count, c, k, seed):
    g = torch.Generator().manual_seed(seed)
    K = torch.randn(count, c, c, k, k, generator=g, dtype=torch.float64)
    K *= 10 ** (torch.rand(count, 1, 1, 1, 1, generator=g, dtype=torch.float64) * 6 - 3)
    half = count // 2
    K[:half] = K[:half].abs()  # all positive taps: nothing cancels
    K[half : half + count // 4, 0] *= 1e3
    return K


@pytest.mark.claim("mathematics.md 13", "row sums bound the measure of a convolution")
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_nemon_convolution_stays_below_its_margin_on_the_materialised_matrix(padding):
    margin, c, k = 0.3, 2, 3
    for i, K in enumerate(_attack_kernels(60, c, k, 0)):
        cell = wp.NemonConv2d(1, c, image=(5, 4), kernel=k, padding=padding, margin=margin,
                              dtype=torch.float64)  # fmt: skip
        with torch.no_grad():
            cell.K.copy_(K)
            cell.log_eta.copy_(torch.randn(c, generator=torch.Generator().manual_seed(i)) * 2)
            cell.damping.fill_(-20.0)
        affine = cell.explicit().double()
        A = affine.A.materialise()
        eta = affine.witness.expand(c, 5, 4).flatten()
        scale = float(A.abs().max())
        rows = log_norm_rows(A, eta)
        assert float(rows.max()) <= margin + 1e-12 * scale
        assert float(rows.max()) >= margin - 1e-6 - 1e-9 * scale  # and the interior attains it


@pytest.mark.claim("arXiv 2106.03194, released convolution code", "its shift bounds nothing")
def test_published_convolution_formula_is_violated():
    torch.manual_seed(0)
    c, k = 8, 5
    K = torch.randn(c, c, k, k, dtype=torch.float64)
    K = K / K.norm()
    kernel = K.clone()
    shift = -c * K.abs().max()  # one shift for all channels, claimed to give mu <= 0
    kernel[range(c), range(c), k // 2, k // 2] += shift
    from wellposed.core.operators import Convolution

    mu = float(log_norm_rows(Convolution(kernel, (7, 7), "circular").materialise()).max())
    assert mu > 1.0


@pytest.mark.claim("arXiv 2106.03194, section 5", "ten thousand adversarial draws, dense")
def test_ten_thousand_dense_draws_stay_below_the_margin():
    n, count, margin = 6, 10_000, 0.5
    g = torch.Generator().manual_seed(0)
    T = torch.randn(count, n, n, generator=g, dtype=torch.float64)
    T *= 10 ** (torch.rand(count, 1, 1, generator=g, dtype=torch.float64) * 8 - 4)
    T[: count // 2] = T[: count // 2].abs()
    T[: count // 4, 0] *= 1e4
    log_eta = torch.randn(count, n, generator=g, dtype=torch.float64) * 3
    cell = wp.NemonCell(1, n, margin=margin, dtype=torch.float64)

    def matrix(T, log_eta):
        values = {"T": T, "log_eta": log_eta}
        return torch.func.functional_call(
            _Matrix(cell), {f"cell.{k}": v for k, v in values.items()}, ()
        )

    with torch.no_grad():
        A, eta = torch.vmap(matrix)(T, log_eta)
    mu = log_norm_rows_batched(A, eta)
    assert bool((mu <= margin + 1e-12 * (1 + A.abs().amax((1, 2)))).all())
    assert float(mu.max()) > margin - 0.1


class _Matrix(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self):
        affine = self.cell.explicit()
        return affine.A.weight, affine.witness.flatten()


def log_norm_rows_batched(A, eta):
    diagonal = torch.diagonal(A, dim1=1, dim2=2)
    off = A.abs() - torch.diag_embed(diagonal.abs())
    return (diagonal + (off @ eta[:, :, None])[:, :, 0] / eta).amax(1)


@pytest.mark.claim("mathematics.md 13", "ten thousand adversarial draws, convolution")
def test_ten_thousand_kernels_stay_below_the_margin():
    count, c, k, margin = 10_000, 3, 3, 0.0
    K = _attack_kernels(count, c, k, 1)
    cell = wp.NemonConv2d(1, c, image=(5, 5), kernel=k, margin=margin, dtype=torch.float64)
    log_eta = torch.randn(count, c, generator=torch.Generator().manual_seed(2)).double() * 2

    def weight(K, log_eta):
        return torch.func.functional_call(_Matrix(cell), {"cell.K": K, "cell.log_eta": log_eta}, ())

    with torch.no_grad():
        kernel, eta = torch.vmap(weight)(K, log_eta)
    centre = kernel[:, range(c), range(c), k // 2, k // 2]
    sums = torch.einsum("boikl,bi->bo", kernel.abs(), eta) / eta - centre.abs()
    mu = (centre + sums).amax(1)
    assert bool((mu <= margin + 1e-12 * (1 + kernel.abs().amax((1, 2, 3, 4)))).all())


@pytest.mark.claim("mathematics.md 7", "no attacked pair breaks a bound")
def test_attacks_stay_below_every_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), wp.Equilibrium(wp.NemonCell(6, 12)), nn.Linear(12, 4))
    x = torch.randn(10, 6)
    for norm in (wp.core.norms.MaxNorm(), wp.core.norms.OneNorm(), wp.core.norms.TwoNorm()):
        certificate = wp.certify.lipschitz(net, norm_in=norm)
        estimate = lipschitz_lower(net, x, norm_in=norm, rounds=3)
        assert audit([certificate], [estimate]).comparisons[0].ratio >= 1


def test_local_loop_never_has_larger_gains():
    affine = _cell(5).explicit().double()
    loop = Loop(affine)
    local = local_loop(loop, Box.around(torch.randn(3).double(), 0.3))
    assert bool((local.gain <= loop.gain * (1 + 1e-12)).all())
    assert float(F.relu(local.gain).sum()) < float(loop.gain.sum())
