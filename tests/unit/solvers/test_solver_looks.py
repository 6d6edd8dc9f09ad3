"""When residuals are looked at, and what is kept of samples that are done."""

import pytest
import torch

from wellposed.core.maps import FunctionMap
from wellposed.errors import ConfigError
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Status, Stopping, solve, solve_with_image
from wellposed.solvers.looks import next_look
from wellposed.solvers.picard import Jacobi, Picard
from wellposed.testing.solvers import contractive_map


def looks(limit, first=1):
    out = [first]
    while out[-1] < limit:
        out.append(next_look(out[-1]))
    return out


def test_short_solves_are_looked_at_after_each_evaluation():
    assert looks(64) == list(range(1, 65))


def test_long_solves_are_overdrawn_by_little():
    all_looks = looks(5000)
    for before, after in zip(all_looks, all_looks[1:], strict=False):
        assert after - before <= max(1, before / 18)
        assert (after - before) % 2 == 1


@pytest.mark.parametrize("first", [1, 2, 4, 9])
def test_no_look_before_the_first(first):
    map_ = contractive_map(20, 9)
    free = solve(map_, map_.start(), Jacobi(), Stopping(1e-2, 0.0, 500))
    late = solve(map_, map_.start(), Jacobi(), Stopping(1e-2, 0.0, 500, first))
    assert torch.equal(late.evaluations, free.evaluations.clamp(min=first))
    assert late.converged.all()
    warm = solve(map_, late.value, Jacobi(), Stopping(1e-2, 0.0, 500, first))
    assert (warm.evaluations == first).all()


def test_the_budget_counts_before_the_first_look():
    map_ = contractive_map(5, 9)
    found = solve(map_, map_.start(), Jacobi(), Stopping(1e-12, 0.0, 3, 10))
    assert (found.evaluations == 3).all()
    assert (found.status == Status.BUDGET).all()


@pytest.mark.parametrize("value", [0, -3])
def test_a_first_look_before_the_first_evaluation_is_refused(value):
    with pytest.raises(ConfigError, match="first_look"):
        Stopping(first_look=value)


def test_the_schedule_does_not_depend_on_batch_mates():
    rates = torch.linspace(0.5, 0.995, 40, dtype=torch.float64)[:, None]
    one = torch.ones(40, 3, dtype=torch.float64)

    def part(rows):
        map_ = FunctionMap(lambda z, r, o: r * z + o, (rates[rows], one[rows]), (True, True))
        return solve(map_, 0 * one[rows], Picard(), Stopping(1e-9, 0.0, 9000, 3))

    whole = part(slice(None))
    assert whole.evaluations.max() > 1000
    for i in (0, 17, 39):
        alone = part(slice(i, i + 1))
        assert torch.equal(alone.value[0], whole.value[i])
        assert torch.equal(alone.evaluations[0], whole.evaluations[i])


@pytest.mark.parametrize("solver", [Jacobi(), Auto()], ids=repr)
@pytest.mark.parametrize("samples", [1, 7, 64])
@pytest.mark.parametrize("budget", [2, 9, 2000])
def test_the_image_belongs_to_the_value(solver, samples, budget):
    map_ = contractive_map(samples, 40)
    found, image = solve_with_image(map_, map_.start(), solver, Stopping(1e-9, 0.0, budget))
    torch.testing.assert_close(image, map_.canonical()(found.value), rtol=1e-13, atol=1e-13)
    twin = solve(map_, map_.start(), solver, Stopping(1e-9, 0.0, budget))
    assert torch.equal(twin.value, found.value)
    assert torch.equal(twin.status, found.status)


def test_statuses_of_a_mixed_batch_belong_to_their_samples():
    rates = torch.tensor([0.1, 0.9999, 0.5, float("nan"), 0.9999, 0.2], dtype=torch.float64)
    map_ = FunctionMap(lambda z, r: r * z + 1, (rates[:, None],), (True,))
    found = solve(map_, torch.zeros(6, 2, dtype=torch.float64), Picard(), Stopping(1e-6, 0.0, 60))
    assert found.status.tolist() == [0, 1, 0, 2, 1, 0]
    assert found.evaluations[[1, 4]].tolist() == [60, 60]
    assert found.evaluations[3] == 1


def test_later_looks_are_as_far_apart_as_asked():
    map_ = FunctionMap(lambda z: 0.5 * z + 1)
    start = torch.zeros(3, 2, dtype=torch.float64)
    for first, every in ((1, 1), (2, 3), (6, 5)):
        stopping = Stopping(1e-6, first_look=first, every=every)
        found = solve(map_, start, Picard(), stopping)
        count = int(found.evaluations.max())
        assert bool(found.converged.all())
        assert count >= first
        assert (count - first) % every == 0
    with pytest.raises(ConfigError, match="every"):
        Stopping(every=0)
