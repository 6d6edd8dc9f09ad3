"""Properties of certificates over drawn weights."""

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wellposed.certify import bound_l3, equilibrium_box
from wellposed.certify.dominate import Resolvent
from wellposed.certify.loop import Loop
from wellposed.core.activations import GELU, ReLU, SiLU, Tanh
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.core.sets import Box
from wellposed.core.spectra import outward
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Picard

SEEDS = st.integers(0, 2**31)
FAST = settings(max_examples=40, deadline=None)


def _affine(seed, activation, size):
    """Zero-diagonal weights with row sums of at most `size` over the steepest slope."""
    g = torch.Generator().manual_seed(seed)
    n, p = 6, 3
    A = torch.randn(n, n, generator=g, dtype=torch.float64)
    A = A - torch.diag(torch.diagonal(A))
    A = size / activation.steepest * A / A.abs().sum(1, keepdim=True)
    eta = 10 ** (torch.rand(n, generator=g, dtype=torch.float64) * 4 - 2)
    A = eta[:, None] * A / eta
    B = torch.randn(n, p, generator=g, dtype=torch.float64)
    return Affine(Dense(A), Dense(B), torch.randn(n, generator=g, dtype=torch.float64), activation)


def _exact_resolvent(G, f):
    """``(I - G)^-1 f`` in rational arithmetic: a factorisation in float64 is not accurate enough
    in the small components of skewed systems to judge a bound by."""
    n = len(G)
    rows = [[Fraction(int(i == j)) - Fraction(float(G[i, j])) for j in range(n)] for i in range(n)]
    rows = [row + [Fraction(float(b)) for b in f[:, i]] for i, row in enumerate(rows)]
    for i in range(n):
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return torch.tensor([[float(x) for x in row[n:]] for row in rows], dtype=f.dtype).mT


@FAST
@given(SEEDS, st.floats(0.0, 0.999))
def test_resolvent_bounds_are_upper_bounds_and_tight(seed, size):
    affine = _affine(seed, ReLU(), size)
    G = affine.A.matrix.abs()
    f = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f[0, :3] = 0
    exact = _exact_resolvent(G, f)
    for matrix in (G, None):
        bound = Resolvent(lambda e: outward(e @ G.mT, 6), (6,), matrix)(f)
        assert bool((bound >= exact * (1 - 1e-12)).all())
        assert bool((bound.amax(1) <= exact.amax(1) * (1 + 1e-6)).all())


@FAST
@given(SEEDS, st.sampled_from([ReLU(), Tanh(), GELU(), SiLU()]), st.floats(0.1, 0.99))
def test_pairs_obey_the_componentwise_bound(seed, activation, size):
    affine = _affine(seed, activation, size)
    g = torch.Generator().manual_seed(seed + 1)
    u = torch.randn(2, 40, 3, generator=g, dtype=torch.float64) * 3
    z = [
        solve(
            affine.bind(x), torch.zeros(40, 6).double(), Picard(), Stopping(1e-14, 1e-15, 5000)
        ).value
        for x in u
    ]
    bound = Loop(affine).apply((u[0] - u[1]).abs())
    assert bool(((z[0] - z[1]).abs() <= bound + 1e-9).all())
    ratio = (z[0] - z[1]).abs().amax(1) / (u[0] - u[1]).abs().amax(1)
    assert float(ratio.max()) <= bound_l3(affine).value * (1 + 1e-9)


@FAST
@given(
    SEEDS, st.sampled_from([ReLU(), Tanh(), GELU(), SiLU()]), st.integers(0, 5), st.floats(1e-6, 5)
)
def test_boxes_contain_their_equilibria_at_any_time(seed, activation, steps, radius):
    affine = _affine(seed, activation, 0.9)
    g = torch.Generator().manual_seed(seed + 1)
    u = torch.randn(1, 3, generator=g, dtype=torch.float64)
    found = equilibrium_box(affine, Box.around(u, radius), steps=steps)
    x = u + radius * (torch.rand(50, 3, generator=g, dtype=torch.float64) * 2 - 1)
    z = solve(
        affine.bind(x), torch.zeros(50, 6).double(), Picard(), Stopping(1e-14, 1e-15, 5000)
    ).value
    assert bool(((z >= found.state.lower - 1e-10) & (z <= found.state.upper + 1e-10)).all())


@FAST
@given(SEEDS, st.floats(0.1, 0.99))
def test_adjoint_pairs_with_apply(seed, size):
    loop = Loop(_affine(seed, Tanh(), size))
    g = torch.Generator().manual_seed(seed)
    v = torch.rand(1, 3, generator=g, dtype=torch.float64)
    c = torch.rand(1, 6, generator=g, dtype=torch.float64)
    left, right = float((loop.apply(v) * c).sum()), float((loop.adjoint(c) * v).sum())
    assert abs(left - right) <= 1e-6 * left
