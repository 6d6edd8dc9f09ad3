"""FGSM and projected gradient descent through exact implicit gradients."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, final

import torch
from torch import Tensor, nn

from wellposed.attacks.exact import exact_layers
from wellposed.attacks.projections import project_max, project_two
from wellposed.attacks.search import AttackResult as AttackResult
from wellposed.attacks.search import Loss, Search, check_images
from wellposed.errors import ConfigError, ShapeError

Ball = Literal["max", "2"]


@final
@dataclass(frozen=True)
class FGSM:
    """One step of length `eps` along the sign of the loss gradient [1].

    ``x' = clip(x + eps sign(grad L(x)), 0, 1)``

    Args:
        eps: Amplitude in pixel units, pixels being in [0, 1].
        loss: ``"ce"`` (cross-entropy, as published) or ``"margin"``.

    References:
        [1] Goodfellow, Shlens, Szegedy. Explaining and harnessing adversarial examples. 2015.
    """

    eps: float
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        _check(self.eps, 1, self.loss, "max")

    def attack(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> AttackResult:
        """Attack images `x` in [0, 1] with labels `y`; nothing is random here."""
        step = PGD("max", self.eps, 1, self.eps, random_start=False, loss=self.loss)
        return step.attack(model, x, y, generator)


@final
@dataclass(frozen=True)
class PGD:
    """Projected gradient descent on the margin within a ball of the max or the 2-norm [1].

    ``x <- P( x + step * sign(g) )`` in the max norm, ``x <- P( x + step * g / ||g|| )`` in the
    2-norm, with ``P`` the exact projection onto the ball and [0, 1]^n. Every point visited counts,
    the clean image too, so an attacked accuracy can never exceed the clean one. A sample that is
    broken leaves the batch; its result never depends on its batch mates (up to rounding).

    Gradients are the exact implicit ones even for layers trained with a truncated gradient.

    Args:
        norm: ``"max"`` or ``"2"``.
        eps: Radius in pixel units, pixels being in [0, 1].
        steps: Gradient steps a restart.
        step_size: Length of a step; `None` takes ``2.5 eps / steps``.
        restarts: Attempts; later ones only for samples that are not broken.
        random_start: Start at a random point of the ball. Without it the first attempt starts at
            the image (or at `start`), later ones are random all the same.
        loss: ``"margin"`` or ``"ce"``.

    References:
        [1] Madry et al. Towards deep learning models resistant to adversarial attacks. 2018.
    """

    norm: Ball
    eps: float
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        _check(self.eps, self.steps, self.loss, self.norm)
        if self.restarts < 1:
            raise ConfigError(f"`restarts` must be at least 1, got {self.restarts}.")
        if self.step_size is not None and not 0 <= self.step_size < inf:
            raise ConfigError(f"`step_size` must be finite and >= 0, got {self.step_size}.")

    def attack(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        start: Tensor | None = None,
        *,
        radius: Tensor | None = None,
    ) -> AttackResult:
        """Attack images `x` with labels `y`.

        Args:
            model: Takes pixels in [0, 1], returns logits.
            x: Images in [0, 1], shape (batch, ...).
            y: Labels, int64 of shape (batch,).
            generator: Source of random starts; the same one gives the same result.
            start: Points to begin with, such as the result for a smaller `eps` (the accuracy then
                cannot rise with `eps`); projected onto the ball. The first attempt goes on from
                them.
            radius: One radius a sample in place of `eps`, shape (batch,); steps are in proportion.

        Raises:
            ShapeError: The images leave [0, 1] or do not match the labels, or the radii do not
                match the images.
        """
        check_images(x, y)
        reach = _radii(x, self.eps, radius)
        with exact_layers(model) as solves:
            search = Search(model, solves, x, y)
            search.look(torch.arange(len(x), device=x.device), x)
            rows = search.alive()
            if start is not None:
                start = self._project(start.detach(), x, reach)
                search.look(rows, start[rows])
                rows = search.alive()
            for restart in range(self.restarts):
                # drawn for all samples, so that none depends on which others are still alive
                away = self._random(x, reach, generator) if restart or self.random_start else x
                first = start if start is not None and restart == 0 else away
                rows = search.alive()
                self._descend(search, rows, first[rows], x[rows], reach[rows])
            return search.result()

    def _descend(
        self, search: Search, rows: Tensor, point: Tensor, x: Tensor, reach: Tensor
    ) -> None:
        for _ in range(self.steps):
            if not len(rows):
                return
            uphill = search.look(rows, point, self.loss)
            keep = search.margin[rows] > 0
            rows, point, x, uphill = rows[keep], point[keep], x[keep], uphill[keep]
            reach = reach[keep]
            length = 2.5 * reach.to(x) / self.steps if self.step_size is None else self.step_size
            if self.norm == "max":
                point = point + length * uphill.sign()
            else:
                size = torch.linalg.vector_norm(uphill.flatten(1), dim=1).clamp(min=1e-38)
                point = point + length * uphill / size.reshape(-1, *[1] * (x.ndim - 1))
            point = self._project(point, x, reach)
        search.look(rows, point)

    def _project(self, point: Tensor, x: Tensor, reach: Tensor) -> Tensor:
        project = project_max if self.norm == "max" else project_two
        return project(point, x, reach)

    def _random(self, x: Tensor, reach: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.norm == "max":
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype) * 2 - 1
            return self._project(x + reach.to(x) * noise.to(x.device), x, reach)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).flatten(1)
        # uniform in the ball: a radius r has probability proportional to r^(n - 1)
        radius = torch.rand(len(x), 1, generator=generator, dtype=x.dtype) ** (1 / noise.shape[1])
        noise = noise * (radius / torch.linalg.vector_norm(noise, dim=1, keepdim=True))
        return self._project(x + reach.to(x) * noise.to(x.device).reshape(x.shape), x, reach)


def _radii(x: Tensor, eps: float, radius: Tensor | None) -> Tensor:
    """One radius a sample, float64 of shape (batch, 1, ...)."""
    if radius is None:
        radius = torch.full((len(x),), eps, dtype=torch.float64)
    elif radius.shape != x.shape[:1] or not bool((torch.isfinite(radius) & (radius >= 0)).all()):
        raise ShapeError(
            f"`radius` has shape {tuple(radius.shape)}, expected {len(x)} finite numbers that are "
            "not negative: one radius an image."
        )
    return radius.detach().to(x.device, torch.float64).reshape(-1, *[1] * (x.ndim - 1))


def _check(eps: float, steps: int, loss: str, norm: str) -> None:
    if not 0 <= eps < inf:
        raise ConfigError(
            f"`eps` must be finite and not negative, got {eps}.",
            hint="radii are in pixel units, with pixels in [0, 1]: 8/255 is about 0.031.",
        )
    if steps < 1:
        raise ConfigError(f"`steps` must be at least 1, got {steps}.")
    if loss not in ("margin", "ce"):
        raise ConfigError(f'`loss` must be "margin" or "ce", got {loss!r}.')
    if norm not in ("max", "2"):
        raise ConfigError(f'`norm` must be "max" or "2", got {norm!r}.')
