"""The one loop: who is counted, who leaves, what is refused."""

import pytest
import torch
from torch.func import vmap

from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap, FunctionMap
from wellposed.core.operators import Dense
from wellposed.errors import NonConvergenceError, ShapeError
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Status, Stopping, rms, solve
from wellposed.solvers.broyden import Broyden
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.testing.solvers import contractive_map


def rowwise(rates, seen, batched=True):
    """z -> rate z + 1, a rate a sample; `seen` collects how many rows each call had."""

    def call(z, rate, one):
        seen.append(len(z))
        return rate * z + one

    flags = (True, True) if batched else None
    return FunctionMap(call, (rates[:, None], torch.ones(len(rates), 3, dtype=rates.dtype)), flags)


def test_one_hard_sample_costs_its_own_evaluations_only():
    rates = torch.full((64,), 0.5, dtype=torch.float64)
    rates[17] = 0.999
    stopping = Stopping(0.0, 1e-3, 20000)
    seen = []
    found = solve(rowwise(rates, seen), torch.zeros(64, 3, dtype=torch.float64), Picard(), stopping)
    assert found.converged.all()
    assert int(found.evaluations[17]) > 6000
    assert int(found.evaluations.sum()) <= sum(seen)
    assert sum(seen) <= 0.03 * 64 * int(found.evaluations.max())


def test_an_easy_sample_is_bitwise_what_it_is_alone():
    rates = torch.linspace(0.1, 0.99, 64, dtype=torch.float64)
    stopping = Stopping(1e-8, 0.0, 5000)
    start = torch.zeros(64, 3, dtype=torch.float64)
    whole = solve(rowwise(rates, []), start, Picard(), stopping)
    for i in (0, 5, 40, 63):
        alone = solve(rowwise(rates[i : i + 1], []), start[:1], Picard(), stopping)
        assert torch.equal(alone.value[0], whole.value[i])
        assert alone.evaluations[0] == whole.evaluations[i]


@pytest.mark.parametrize("solver", [Jacobi(), Auto()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_a_matrix_product_are_bitwise_independent_of_the_batch(solver, dtype):
    # an odd number of columns would leave a float64 register half filled, and round by position
    map_ = contractive_map(100, 86, dtype=dtype)
    stopping = Stopping(1e-5, 0.0, 500)
    whole = solve(map_, map_.start(), solver, stopping)
    for rows in (range(1), range(3, 10), range(7, 38), range(1, 100)):
        part = map_.select(torch.tensor(list(rows)))
        found = solve(part, part.start(), solver, stopping)
        assert torch.equal(found.value, whole.value[list(rows)])


def test_the_tolerance_does_not_depend_on_the_dimension():
    counts = []
    for n in (10, 1000, 100000):
        q = torch.ones(1, n, dtype=torch.float64)
        map_ = FunctionMap(lambda z, q: 0.9 * z + q, (q,), (True,))
        found = solve(map_, torch.zeros_like(q), Picard(), Stopping(0.0, 1e-3, 500))
        counts.append(int(found.evaluations))
    assert len(set(counts)) == 1


def test_without_known_rows_results_are_the_same_and_stay_together():
    rates = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    start = torch.zeros(8, 3, dtype=torch.float64)
    stopping = Stopping(1e-9, 0.0, 1000)
    seen = []
    free = solve(rowwise(rates, seen, batched=False), start, Picard(), stopping)
    cut = solve(rowwise(rates, []), start, Picard(), stopping)
    assert set(seen) == {8}
    assert torch.equal(free.value, cut.value)
    assert torch.equal(free.evaluations, cut.evaluations)
    assert torch.equal(free.residual, cut.residual)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), Auto()], ids=repr)
@pytest.mark.parametrize("which", ["offset", "weights"])
def test_vmap_gives_what_a_loop_gives(solver, which):
    base = contractive_map(5, 6).canonical()
    factors = torch.tensor([0.5, 1.0], dtype=torch.float64)
    stopping = Stopping(1e-10, 0.0, 500)

    def run(factor):
        weight, offset = base.tensors
        if which == "offset":
            map_ = base.with_tensors((weight, factor * offset))
        else:
            map_ = base.with_tensors((factor * weight, offset))
        return solve(map_, torch.zeros_like(offset), solver, stopping).value

    torch.testing.assert_close(
        vmap(run)(factors), torch.stack([run(f) for f in factors]), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_end(dtype):
    map_ = contractive_map(6, 8).canonical()
    low = map_.with_tensors(tuple(t.to(dtype) for t in map_.tensors))
    for solver in (Jacobi(), Anderson(), Broyden(), Auto()):
        found = solve(low, low.start(), solver, Stopping(max_evaluations=200))
        assert found.value.dtype == dtype
        assert found.residual.dtype == torch.float32
        assert found.converged.all()


def test_a_map_that_changes_the_shape_is_refused():
    map_ = FunctionMap(lambda z: z[:, :1])
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(4, 1\)"):
        solve(map_, torch.zeros(4, 3), Picard())


def test_infinite_and_nan_samples_are_named():
    q = torch.ones(4, 3)
    q[1], q[2] = float("nan"), float("inf")
    map_ = FunctionMap(lambda z, q: 0.5 * z + q, (q,), (True,))
    found = solve(map_, torch.zeros(4, 3), Picard())
    assert found.status.tolist() == [
        Status.CONVERGED, Status.NONFINITE, Status.NONFINITE, Status.CONVERGED,
    ]  # fmt: skip
    with pytest.raises(NonConvergenceError, match="2 of 4"):
        found.require()


@pytest.mark.parametrize("budget", [1, 2, 3, 1000])
def test_the_error_bound_holds_for_solves_stopped_early(budget):
    map_ = contractive_map(20, 15)
    exact = solve(map_, map_.start(), Jacobi(), Stopping(1e-15, 1e-15, 3000)).value
    for solver in (Jacobi(), Anderson(), Broyden(), Auto()):
        found = solve(map_, map_.start(), solver, Stopping(1e-10, 0.0, budget))
        bound = found.error_bound
        assert bound is not None
        true = (found.value - exact).abs().amax(1)
        assert (true <= bound).all()
        assert (bound <= 1e4 * true + 1e-8).all()


def test_the_reported_residual_belongs_to_the_reported_value():
    map_ = contractive_map(30, 15)
    found = solve(map_, map_.start(), Jacobi(), Stopping(1e-4, 0.0, 4))
    work = map_.canonical()
    torch.testing.assert_close(found.residual, rms(work(found.value) - found.value))


def test_an_empty_state_ends_at_once():
    q = torch.zeros(3, 0)
    map_ = AffineMap(Dense(torch.zeros(0, 0)), q, ReLU(), canonical_form=True)
    assert solve(map_, q, Picard()).converged.all()
