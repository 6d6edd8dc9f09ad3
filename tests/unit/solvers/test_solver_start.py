"""Where a solve starts, what runs before the first look, and the tally of a batch that is done."""

import pytest
import torch
from torch.func import vmap

import wellposed as wp
from wellposed.core.activations import ReLU
from wellposed.core.linear_maps import LinearMap
from wellposed.core.maps import AffineMap, FunctionMap
from wellposed.core.operators import Dense
from wellposed.core.peel import wrapped
from wellposed.errors import ShapeError
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Status, Stopping, Tally, first_iterate, rms, solve
from wellposed.solvers.krylov import Stationary
from wellposed.solvers.picard import Averaged, Jacobi, Picard
from wellposed.testing.solvers import contractive_map


def bound(n=20, rows=8, dtype=torch.float64):
    """A map with a strongly negative diagonal, as trained cells have it."""
    torch.manual_seed(1)
    cell = wp.NemonCell(5, n, dtype=dtype)
    with torch.no_grad():
        cell.damping += 4.0
    return cell.bind(torch.randn(rows, 5, dtype=dtype)).detach()


@pytest.mark.parametrize("solver", [Jacobi(), Auto(), Anderson()], ids=repr)
def test_a_solve_starts_where_the_form_that_is_iterated_does(solver):
    map_ = bound()
    seen = []
    found = solve(map_, None, solver, watch=lambda z, _: seen.append(z.clone()))
    start = map_.canonical()(torch.zeros_like(map_.offset))
    torch.testing.assert_close(seen[0], start, rtol=0, atol=1e-15)
    again = solve(map_, map_.canonical().start(), solver)
    assert torch.equal(found.value, again.value)


def test_solvers_of_the_given_form_start_at_its_value_at_zero():
    map_ = bound()
    seen = []
    solve(map_, None, Averaged(), watch=lambda z, _: seen.append(z.clone()))
    assert torch.equal(seen[0], map_(torch.zeros_like(map_.offset)))


def test_the_canonical_start_is_nearer_than_that_of_the_given_form():
    map_ = bound()
    near, far = (solve(map_, start, Jacobi()) for start in (None, map_.start()))
    assert (near.evaluations < far.evaluations).all()
    torch.testing.assert_close(near.value, far.value, rtol=1e-8, atol=1e-10)


def test_a_map_that_does_not_know_where_to_start_is_refused():
    map_ = FunctionMap(lambda z: z / 2)
    with pytest.raises(ShapeError, match="where the iteration of a FunctionMap starts") as caught:
        solve(map_, None, Picard())
    assert "first iterates" in caught.value.hint
    with pytest.raises(ShapeError, match="where the iteration"):
        wp.fixed_point(lambda z: z / 2, None)


def test_a_map_may_be_solved_and_differentiated_without_a_start():
    A = torch.tensor([[-1.0, 0.3], [0.2, -2.0]], dtype=torch.float64, requires_grad=True)
    q = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)

    def value(A, q):
        map_ = AffineMap(Dense(A), q, ReLU())
        tight = Stopping(1e-14, 1e-14)
        return wp.fixed_point(map_, None, solver=Auto(), stopping=tight).value

    assert torch.autograd.gradcheck(value, (A, q))


@pytest.mark.parametrize("times", range(8))
@pytest.mark.parametrize("solver", [Picard(), Jacobi(), Auto(), Anderson(3), Averaged()], ids=repr)
def test_what_nobody_looks_at_is_bitwise_what_the_steps_give(solver, times):
    map_ = solver.prepare(contractive_map(30, 12, dtype=torch.float64))
    z = first_iterate(map_, None)
    with torch.no_grad():
        state = solver.init(map_, z)
        whole, memory = solver.advance(map_, z, state, times)
        for _ in range(times):
            z, state = solver.propose(map_, z, map_(z), state)
        # and both go on alike
        for _ in range(4):
            z, state = solver.propose(map_, z, map_(z), state)
            whole, memory = solver.propose(map_, whole, map_(whole), memory)
            assert torch.equal(whole, z)


@pytest.mark.parametrize("first", [1, 3, 6, 9])
def test_the_first_look_changes_no_adjoint_iterate(first):
    torch.manual_seed(0)
    M = 0.9 * torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    rhs = torch.randn(7, 12, dtype=torch.float64)

    def plain(M):
        return lambda u: u @ M.mT

    def fused(M):
        return lambda u, rhs: u @ M.mT + rhs

    stopping = Stopping(1e-10, 0.0, 400, first_look=first)
    with_steps = Stationary().solve(LinearMap(plain, rhs, (M,), (False,)), stopping)
    at_once = Stationary().solve(LinearMap(plain, rhs, (M,), (False,), fused), stopping)
    assert torch.equal(with_steps.evaluations, at_once.evaluations)
    assert torch.equal(with_steps.value, at_once.value)
    assert at_once.converged.all()


def test_a_tally_read_late_is_the_one_of_the_samples():
    map_ = contractive_map(16, 24, dtype=torch.float64)
    found = solve(map_, None, Jacobi(), Stopping(1e-2, 0.0, 50, first_look=20))
    work = map_.canonical()
    torch.testing.assert_close(found.residual, rms(work(found.value) - found.value))
    assert found.evaluations.tolist() == [20] * 16
    assert found.status.tolist() == [int(Status.CONVERGED)] * 16
    assert found.evaluations.dtype == torch.int64
    assert found.status.dtype == torch.int8
    assert found.clean
    assert found.residual is found.residual  # kept, once read


def test_a_tally_first_read_inside_a_transform_is_not_kept_in_its_form():
    tally = Tally.together(torch.tensor([2.0, 4.0]), 0.5, 3)
    vmap(lambda x: x + tally.read()[0].sum())(torch.zeros(3))
    residual, evaluations, _ = tally.read()
    assert residual.tolist() == [1.0, 2.0]
    assert evaluations.tolist() == [3, 3]
    assert not wrapped(residual)
