"""What the papers and docs/mathematics.md claim about the solvers, shown on numbers."""

from math import ceil, log

import pytest
import torch

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.norms import log_norm_rows
from wellposed.core.operators import Dense
from wellposed.core.spectra import perron
from wellposed.solvers.base import Stopping, solve
from wellposed.solvers.picard import Averaged, Jacobi
from wellposed.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from wellposed.testing.solvers import contractive_map


def factors(A, eta):
    """Certified factors of averaging (uniform, per neuron), forward-backward and Jacobi."""
    mu, a = log_norm_rows(A, eta), torch.diagonal(A)
    top, low = mu.amax(), a.amin()
    average = 1 - (1 - top.clamp(min=0)) / (1 - low.clamp(max=0))
    neuron = (1 - (1 - mu.clamp(min=0)) / (1 - a.clamp(max=0))).amax()
    forward = 1 - (1 - top) / (1 - low)
    jacobi = ((mu - a) / (1 - a)).amax()
    return float(average), float(neuron), float(forward), float(jacobi)


def random_pair(seed, n=9):
    make = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=make, dtype=torch.float64)
    eta = torch.rand(n, generator=make, dtype=torch.float64) + 0.2
    excess = log_norm_rows(A, eta) - (0.95 - torch.rand(n, generator=make, dtype=torch.float64))
    return A - torch.diag(excess), eta


@pytest.mark.claim("docs/mathematics.md", "4.1: order of the certified factors")
@pytest.mark.parametrize("seed", range(40))
def test_jacobi_has_the_smallest_certified_factor(seed):
    average, neuron, forward, jacobi = factors(*random_pair(seed))
    assert jacobi <= forward + 1e-12
    assert forward <= average + 1e-12
    assert jacobi <= neuron + 1e-12
    assert neuron <= average + 1e-12
    assert 0 <= jacobi < 1


@pytest.mark.claim("arXiv 2106.03194", "theorem 5: the average iteration contracts")
@pytest.mark.claim("JMLR 25 (2024)", "forward-backward contracts up to 1/diagL")
@pytest.mark.parametrize("seed", range(10))
def test_measured_contraction_is_below_the_certified_factor(seed):
    A, eta = random_pair(seed)
    average, neuron, forward, jacobi = factors(A, eta)
    make = torch.Generator().manual_seed(100 + seed)
    q = torch.randn(200, len(A), generator=make, dtype=torch.float64)
    map_ = AffineMap(Dense(A), q, ReLU())
    x, y = (3 * torch.randn(2, *q.shape, generator=make, dtype=torch.float64)).unbind()

    def step(solver, z):
        work = solver.prepare(map_)
        return solver.propose(work, z, work(z), solver.init(work, z))[0]

    def ratio(solver):
        top = ((step(solver, x) - step(solver, y)).abs() / eta).amax(1)
        return float((top / ((x - y).abs() / eta).amax(1)).max())

    assert ratio(Averaged()) <= average + 1e-12
    assert ratio(Averaged(per_neuron=True)) <= neuron + 1e-12
    assert ratio(ForwardBackward()) <= forward + 1e-12
    assert ratio(Jacobi()) <= jacobi + 1e-12
    assert ratio(ForwardBackward(per_neuron=True)) <= jacobi + 1e-12


@pytest.mark.claim("JMLR 25 (2024)", "Peaceman-Rachford and Douglas-Rachford contract")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("diagonal", [True, False])
def test_reflected_methods_contract_at_their_factor(seed, diagonal):
    A, eta = random_pair(seed)
    mu, a = log_norm_rows(A, eta), torch.diagonal(A)
    if diagonal:
        g = float(((mu - a) / (1 - a)).amax())
        alpha, peaceman, douglas = None, g / (2 - g), 1 / (2 - g)
    else:
        alpha = float(1 / (1 - a.min()))
        gain = alpha * float(1 - mu.amax())
        peaceman, douglas = (1 - gain) / (1 + gain), 1 / (1 + gain)
    make = torch.Generator().manual_seed(100 + seed)
    q = torch.randn(200, len(A), generator=make, dtype=torch.float64)
    map_ = AffineMap(Dense(A), q, ReLU())
    x, y = (3 * torch.randn(2, *q.shape, generator=make, dtype=torch.float64)).unbind()
    for solver, factor in ((PeacemanRachford(alpha), peaceman), (DouglasRachford(alpha), douglas)):
        state = solver.init(map_, x)
        points = [solver.propose(map_, z, z, state._replace(point=z))[1].point for z in (x, y)]
        top = ((points[0] - points[1]).abs() / eta).amax(1)
        assert float((top / ((x - y).abs() / eta).amax(1)).max()) <= factor + 1e-12


@pytest.mark.claim("docs/mathematics.md", "5.3: alpha = 1 may expand in the max norm")
def test_the_reflected_resolvent_expands_above_the_bound():
    expanding = 0
    for seed in range(30):
        A, eta = random_pair(seed)
        eye = torch.eye(len(A), dtype=torch.float64)
        R = 2 * torch.linalg.inv(eye + (eye - A)) - eye
        expanding += float(((R.abs() @ eta) / eta).amax()) > 1
    assert expanding > 3


@pytest.mark.claim("docs/mathematics.md", "4.3: iterations of Jacobi")
@pytest.mark.parametrize("seed", range(5))
def test_jacobi_obeys_its_iteration_bound_in_perron_weights(seed):
    map_ = contractive_map(16, 12, seed=seed)
    work = map_.canonical()
    contraction = perron(work.operator)
    exact = solve(map_, map_.start(), Jacobi(), Stopping(1e-15, 1e-15, 5000)).value
    z = work.start()
    first = ((z - exact).abs() / contraction.eta).amax()
    budget = ceil(log(1e-8) / log(contraction.factor))
    for _ in range(budget):
        z = work(z)
    assert float(((z - exact).abs() / contraction.eta).amax() / first) <= 1e-8 + 1e-12


@pytest.mark.claim("peers.md", "2: Jacobi against the published average iteration")
def test_jacobi_needs_few_evaluations_where_averaging_needs_many():
    make = torch.Generator().manual_seed(0)
    n = 100
    T = (2 * torch.rand(n, n, generator=make, dtype=torch.float64) - 1) / n**0.5
    T.fill_diagonal_(0)
    A = T - torch.diag(T.abs().sum(1))
    q = torch.randn(64, n, generator=make, dtype=torch.float64)
    map_ = AffineMap(Dense(A.float()), q.float(), ReLU())
    stopping = Stopping(1e-6, 0.0, 1000)
    fast = solve(map_, map_.start(), Jacobi(), stopping)
    slow = solve(map_, map_.start(), Averaged(), stopping)
    assert int(fast.evaluations.max()) <= 8
    assert int(slow.evaluations.max()) >= 5 * int(fast.evaluations.max())
