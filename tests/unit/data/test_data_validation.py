"""Records and the validation part: disjoint, complete, repeatable, groups in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wellposed.data import Split, split_validation
from wellposed.errors import ConfigError, DataError, ShapeError


def numbered(n: int, group: torch.Tensor | None = None) -> Split:
    """Images whose only pixel is their number, so that a mix-up shows."""
    at = torch.arange(n)
    return Split(at.to(torch.uint8)[:, None, None, None], at % 3, group=group)


@pytest.mark.parametrize(("size", "count"), [(25, 25), (0.25, 50), (1, 1), (199, 199)])
def test_the_parts_are_disjoint_complete_and_in_order(size, count):
    train, validation = split_validation(numbered(200), size, seed=3)
    assert (len(train), len(validation)) == (200 - count, count)
    assert sorted([*train.index.tolist(), *validation.index.tolist()]) == list(range(200))
    for part in (train, validation):
        assert (part.index.diff() > 0).all()
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.index)
        assert torch.equal(part.labels, part.index % 3)


def test_the_seed_decides():
    one, same, other = (split_validation(numbered(200), 50, seed)[1].index for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    generator = np.random.default_rng(7)
    assert torch.equal(split_validation(numbered(200), 50, generator)[1].index, one)
    assert not torch.equal(split_validation(numbered(200), 50, generator)[1].index, one)


def test_the_draw_of_a_seed_does_not_drift():
    # every published number that was chosen on a validation part rests on this draw
    assert split_validation(numbered(20), 5, seed=0)[1].index.tolist() == [2, 4, 6, 13, 19]


def test_indices_survive_a_second_cut():
    train, _ = split_validation(numbered(200), 50, seed=1)
    again, validation = split_validation(train, 50, seed=2)
    for part in (again, validation):
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.index)


@pytest.mark.parametrize("by_group", [None, True])
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_in_one_piece(seed, by_group):
    group = torch.from_numpy(np.random.default_rng(seed).integers(0, 12, 200))
    train, validation = split_validation(numbered(200, group), 40, seed, by_group)
    assert not set(train.group.tolist()) & set(validation.group.tolist())
    assert len(train) + len(validation) == 200
    # enough images, and not one group more than that takes
    assert 40 <= len(validation) < 40 + torch.bincount(group).max()


def test_groups_may_be_torn_apart_on_request():
    group = torch.arange(200) // 50
    train, validation = split_validation(numbered(200, group), 40, seed=0, by_group=False)
    assert len(validation) == 40
    assert set(train.group.tolist()) & set(validation.group.tolist())


def test_no_track_of_gtsrb_is_on_both_sides(image_set):
    train, validation = split_validation(image_set("gtsrb32").train, 0.1, seed=0)
    assert not set(train.group.tolist()) & set(validation.group.tolist())
    assert 1_307 <= len(validation) < 1_317


@pytest.mark.parametrize("size", [0, -1, 200, 201, 0.0, 1.0, -0.5, 1e-6, 0.9999, True, "10%"])
def test_a_size_that_leaves_a_part_empty_is_refused(size):
    with pytest.raises(ConfigError, match="`size`"):
        split_validation(numbered(200), size, seed=0)


def test_groups_too_few_to_cut_are_refused():
    with pytest.raises(ConfigError, match="whole groups for 10 images, which are all 20"):
        split_validation(numbered(20, torch.zeros(20, dtype=torch.int64)), 10, seed=0)


def test_groups_where_there_are_none_are_refused():
    with pytest.raises(DataError, match="`by_group` needs groups"):
        split_validation(numbered(20), 10, seed=0, by_group=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_pixels_between_0_and_1(dtype):
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    part = Split(images, torch.zeros(4, dtype=torch.int64))
    found = part.floats(dtype)
    assert found.dtype == dtype
    assert torch.equal(found.flatten(), torch.arange(256, dtype=dtype) / 255)
    assert torch.equal(part.images, torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8))


def test_floats_of_an_integer_type_are_refused():
    with pytest.raises(ConfigError, match=r"must be a floating-point type, got torch\.int64"):
        numbered(3).floats(torch.int64)


def test_a_split_shows_its_shape():
    assert repr(numbered(3, torch.zeros(3, dtype=torch.int64))) == "Split(3 x 1 x 1 x 1, group)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(3, 1, 2, 2)}, "`images` must be uint8"),
        ({"images": torch.zeros(3, 2, 2, dtype=torch.uint8)}, r"got torch.uint8 of shape \(3, 2"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"`labels` must be int64 of shape \(3,\)"),
        ({"labels": torch.zeros(3)}, r"got torch\.float32"),
        ({"group": torch.zeros(2, dtype=torch.int64)}, "`group` must be"),
        ({"index": torch.zeros(3, dtype=torch.int32)}, "`index` must be"),
    ],
)
def test_a_split_that_does_not_fit_together_is_refused(fields, message):
    sound = {
        "images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(ShapeError, match=message):
        Split(**(sound | fields))
