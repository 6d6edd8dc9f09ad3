"""Boxes and balls: rigorous minima, clipping, normalisation, refusals."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from wellposed.core.sets import Ball, Box
from wellposed.errors import ShapeError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_box_minimum(row: Tensor, box: Box, sample: int) -> Fraction:
    total = Fraction(0)
    for j, c in enumerate(row.tolist()):
        end = box.lower[sample, j] if c >= 0 else box.upper[sample, j]
        total += Fraction(c) * Fraction(float(end))
    return total


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_the_minimum_over_a_box_is_below_the_exact_one_and_close(scale: float) -> None:
    g = generator(0)
    middle = scale * torch.randn(3, 40, generator=g).double()
    radius = scale * torch.rand(3, 40, generator=g).double() * 10.0 ** -torch.arange(40).double()
    box = Box(middle - radius, middle + radius)
    rows = torch.randn(3, 5, 40, generator=g).double() * 10 ** torch.randn(3, 5, 40, generator=g)
    found = box.minimum(rows)
    size = (rows.abs() @ (middle.abs() + radius)[..., None])[..., 0]
    for i in range(3):
        for r in range(5):
            exact = exact_box_minimum(rows[i, r], box, i)
            gap = exact - Fraction(float(found[i, r]))
            assert 0 <= gap <= Fraction(float(size[i, r])) * Fraction(1, 10**12)


def test_cancellation_does_not_break_the_minimum_over_a_box() -> None:
    # the exact value is 2^-40; the sum in floating point may well be zero
    x = torch.tensor([[1e16, -1e16, 2.0**-40]]).double()
    found = Box(x, x).minimum(torch.ones(1, 1, 3).double())
    assert float(found) <= 2.0**-40


def test_a_row_that_is_no_number_gives_no_bound() -> None:
    box = Box(torch.zeros(1, 2), torch.ones(1, 2))
    ball = Ball(torch.zeros(1, 2), 1.0, -1.0, 1.0)
    rows = torch.tensor([[[float("nan"), 1.0], [float("inf"), 1.0]]])
    assert (box.minimum(rows) == -torch.inf).all()
    assert (ball.minimum(rows) == -torch.inf).all()


def attack_ball(ball: Ball, row: Tensor, steps: int = 400) -> Tensor:
    """The smallest `row x` found by projected descent and alternating projections."""
    c, s, r = ball.centre, ball.scale, ball.radius[:, None]

    def project(x: Tensor) -> Tensor:
        for _ in range(60):
            step = (x - c) / s
            norm = step.norm(dim=1, keepdim=True)
            x = c + s * step * (r / norm.clamp(min=1e-300)).clamp(max=1)
            if ball.low is not None and ball.high is not None:
                x = torch.maximum(torch.minimum(x, ball.high), ball.low)
        step = (x - c) / s
        # pulled towards the centre it stays in the box and is surely inside the ball
        return c + s * step * (r / step.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    x, best = c, (row * c).sum(1)
    for k in range(steps):
        x = project(x - row * s**2 * 3 * r / (row * s).norm(dim=1, keepdim=True) / (1 + k))
        best = torch.minimum(best, (row * x).sum(1))
    return best


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_minimum_over_a_ball_is_below_and_near_what_an_attack_finds(
    clipped: bool, uneven: bool
) -> None:
    g = generator(1)
    centre = torch.rand(4, 12, generator=g).double()
    scale = 0.2 + torch.rand(4, 12, generator=g).double() if uneven else 1.0
    edges = (0.0, 1.0) if clipped else (None, None)
    ball = Ball(centre, torch.tensor([0.0, 0.3, 1.0, 10.0]), *edges, scale=scale)
    rows = torch.randn(4, 1, 12, generator=g).double()
    found, attacked = ball.minimum(rows)[:, 0], attack_ball(ball, rows[:, 0])
    assert (found <= attacked + 1e-12).all()
    assert torch.allclose(found, attacked, atol=4e-3 * (1 if clipped else 10))
    assert (found >= ball.box.minimum(rows)[:, 0] - 1e-12).all()


def test_the_mixed_bound_beats_ball_and_box() -> None:
    # one component is clipped at once, the other one is free
    ball = Ball(torch.tensor([[0.1, 0.5]]).double(), 0.4, 0.0, 1.0)
    row = torch.tensor([[[1.0, 1.0]]]).double()
    exact = 0.0 + 0.5 - (0.4**2 - 0.1**2) ** 0.5
    assert float(ball.minimum(row)) == pytest.approx(exact, abs=1e-7)
    assert float(Ball(ball.centre, 0.4).minimum(row)) < exact - 0.01
    assert float(ball.box.minimum(row)) < exact - 0.01


def test_sampled_points_of_a_ball_stay_above_the_minimum() -> None:
    g = generator(2)
    ball = Ball(torch.rand(1, 6, generator=g).double(), 0.7, 0.0, 1.0)
    x = ball.centre + 0.7 * torch.randn(20000, 6, generator=g).double() / 6**0.5
    x = x[Ball(ball.centre.expand(20000, 6), 0.7, 0.0, 1.0).contains(x)]
    rows = torch.randn(1, 50, 6, generator=g).double()
    assert len(x) > 50
    assert ((x @ rows[0].mT).amin(0) >= ball.minimum(rows)[0]).all()


@pytest.mark.parametrize("kind", ["box", "ball"])
def test_normalisation_maps_every_point_into_the_image(kind: str) -> None:
    g = generator(3)
    x = torch.rand(200, 3, 2, 2, generator=g).double()
    mean = torch.tensor([0.1, 0.5, 0.13]).reshape(-1, 1, 1)
    std = torch.tensor([0.3081, 1e-3, 7.0]).reshape(-1, 1, 1)
    region = (
        Box(x, x) if kind == "box" else Ball(x, 0.1, 0.0, 1.0)
    ).normalised(mean, std)  # fmt: skip
    box = region.box
    for k in range(0, 200, 10):
        exact = (Fraction(float(x[k, 1, 0, 1])) - Fraction(0.5)) / Fraction(float(std[1]))
        assert Fraction(float(box.lower[k, 1, 0, 1])) <= exact
        assert exact <= Fraction(float(box.upper[k, 1, 0, 1]))
    if kind == "box":
        assert ((box.upper - box.lower) <= 1e-14 * (1 + box.upper.abs())).all()


def test_a_normalised_ball_is_the_ellipsoid() -> None:
    g = generator(4)
    ball = Ball(torch.rand(1, 3, 2, 2, generator=g).double(), 0.2)
    mean, std = torch.zeros(3, 1, 1), torch.tensor([0.25, 1.0, 4.0]).reshape(-1, 1, 1)
    row = torch.randn(1, 1, 12, generator=g).double()
    pulled = (row.reshape(1, 3, 2, 2) / std.double()).reshape(1, 1, 12)
    image = ball.normalised(mean, std).flatten()
    assert float(image.minimum(row)) == pytest.approx(float(ball.flatten().minimum(pulled)))
    assert float(image.minimum(row)) <= float(ball.minimum(pulled)) + 1e-15


def test_select_repeats_and_scaled_grows() -> None:
    ball = Ball(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), -5.0, 5.0)
    picked = ball.select(torch.tensor([1, 1, 0]))
    assert picked.radius.tolist() == [2.0, 2.0, 1.0]
    assert picked.box.select(torch.tensor([2])).upper.max() < 1.001
    assert (ball.scaled(3.0).radius >= 3 * ball.radius).all()
    rows = torch.ones(2, 1, 3)
    assert (ball.scaled(3.0).minimum(rows) < ball.minimum(rows)).all()


def test_a_point_on_the_rim_is_not_certainly_inside() -> None:
    ball = Ball(torch.zeros(1, 2), 5.0)
    assert not bool(ball.contains(torch.tensor([[3.0, 4.0000001]])))
    assert bool(ball.contains(torch.tensor([[3.0, 3.999999]])))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Ball(torch.zeros(3), 1.0), "batch"),
        (lambda: Ball(torch.zeros(1, 3), -1.0), "negative"),
        (lambda: Ball(torch.zeros(1, 3), float("nan")), "finite"),
        (lambda: Ball(torch.zeros(1, 3), 1.0, 0.5, 1.0), "outside"),
        (lambda: Ball(torch.zeros(1, 3), 1.0, 0.0), "neither"),
        (lambda: Ball(torch.zeros(1, 3), 1.0, scale=0.0), "positive"),
    ],
)
def test_a_ball_refuses_what_is_none(make: object, word: str) -> None:
    with pytest.raises(ShapeError, match=word):
        make()  # type: ignore[operator]
