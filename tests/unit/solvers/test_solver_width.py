"""States with a few zeros behind them, where products are then faster; rows that are replaced."""

from __future__ import annotations

import pytest
import torch

from wellposed.core.activations import ReLU, Sigmoid
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Stopping, solve, solve_with_image
from wellposed.solvers.broyden import Broyden
from wellposed.solvers.newton import Newton
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.solvers.rows import put_rows


def network(n: int, rows: int = 24, *, dtype: torch.dtype = torch.float64) -> AffineMap:
    """A contraction with a slow positive part, so that every phase of `Auto` is met."""
    torch.manual_seed(n)
    A = torch.rand(n, n, dtype=dtype).fill_diagonal_(0)
    scale = 0.95 / A.sum(1)
    return AffineMap(
        Dense(scale[:, None] * A), torch.randn(rows, n, dtype=dtype), ReLU(), canonical_form=True
    )


@pytest.mark.parametrize("solver", [Picard(), Jacobi(), Auto(), Anderson(), Broyden(), Newton()])
@pytest.mark.parametrize("n", [84, 85, 86, 87, 88])
def test_the_solution_does_not_depend_on_the_width(n: int, solver: object) -> None:
    map_ = network(n)
    assert (map_.widened() is not None) == (n in (85, 86, 87))
    start = torch.zeros_like(map_.offset)
    found, image = solve_with_image(map_, start, solver, Stopping(1e-12))  # pyright: ignore
    assert bool(found.converged.all())
    assert found.value.shape == start.shape
    assert found.value.is_contiguous()
    exact = start
    for _ in range(1000):
        exact = map_(exact)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-9)
    assert image is not None
    torch.testing.assert_close(image, map_(found.value), rtol=0, atol=1e-13)
    residual = (map_(found.value) - found.value).square().mean(1).sqrt()
    torch.testing.assert_close(found.residual, residual, rtol=0.05, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_widened_sample_does_not_depend_on_its_batch_mates(dtype: torch.dtype) -> None:
    map_ = network(87, 40, dtype=dtype)
    start = torch.zeros_like(map_.offset)
    together = solve(map_, start, Jacobi(), Stopping(1e-4))
    assert len(together.evaluations.unique()) > 1
    for rows in (torch.arange(1), torch.arange(3, 12), torch.arange(39, 40)):
        alone = solve(map_.select(rows), start[rows], Jacobi(), Stopping(1e-4))
        assert torch.equal(alone.value, together.value[rows])
        assert torch.equal(alone.residual, together.residual[rows])
        assert torch.equal(alone.evaluations, together.evaluations[rows])


def test_whoever_watches_sees_states_of_their_own_width() -> None:
    map_, seen = network(86), []
    start = torch.zeros_like(map_.offset)
    solve(map_, start, Jacobi(), Stopping(1e-3), watch=lambda z, r: seen.append(z.shape[1]))
    assert set(seen) == {86}


def test_what_zero_does_not_map_to_zero_is_not_widened() -> None:
    map_ = network(87)
    curved = AffineMap(map_.operator, map_.offset, Sigmoid(), canonical_form=True)
    assert curved.widened() is None


def test_samples_that_converge_fast_get_what_jacobi_gives_bit_by_bit() -> None:
    n = 64
    torch.manual_seed(0)
    slow = torch.full((n, n), 0.98 / (n - 1), dtype=torch.float64).fill_diagonal_(0)
    # a negative offset switches every neuron off: solved by the first evaluations
    q = torch.randn(32, n, dtype=torch.float64)
    q[16:] = -q[16:].abs()
    map_ = AffineMap(Dense(slow), q, ReLU(), canonical_form=True)
    start = torch.rand(32, n, dtype=torch.float64)
    stopping = Stopping(1e-9, 1e-12)
    auto, jacobi = (solve(map_, start, solver, stopping) for solver in (Auto(), Jacobi()))
    assert torch.equal(auto.value[16:], jacobi.value[16:])
    assert float(auto.evaluations[:16].double().mean()) < 0.5 * float(
        jacobi.evaluations[:16].double().mean()
    )


def test_rows_are_put_where_the_mask_says() -> None:
    torch.manual_seed(0)
    whole, source = torch.randn(7, 3), torch.randn(7, 3)
    source[0] = torch.nan
    for mask in (torch.arange(7) % 2 == 1, torch.zeros(7, dtype=torch.bool)):
        expected = torch.where(mask[:, None], source, whole)
        assert torch.equal(put_rows(whole, mask, source), expected)
        mapped = torch.func.vmap(put_rows)(whole[None], mask[None], source[None])[0]
        assert torch.equal(mapped, expected)
