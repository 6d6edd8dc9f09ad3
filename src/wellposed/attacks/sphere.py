"""The attack of the CLIP paper: signs of the gradient, put back onto a sphere."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor, nn

from wellposed.attacks.exact import exact_layers
from wellposed.attacks.search import AttackResult, Search, check_images
from wellposed.errors import ConfigError


@final
@dataclass(frozen=True)
class SpherePGD:
    """``x <- x_0 + eps d / ||d||_2`` with ``d = clip(x + step sign(grad CE), 0, 1) - x_0`` [1].

    A weak attack, kept because published tables were made with it: a step along the signs is
    ``step sqrt(n)`` long (7 for 28 x 28 pixels and a step of .25, where the radius is 2), so that
    it says little of the gradient, points only ever lie on the sphere, and they may leave [0, 1]
    when they are put back onto it. A network that survives it may be broken by `PGD` with the
    2-norm: report both. A sample that is broken leaves the batch.

    Args:
        eps: Radius of the sphere in pixel units; positive.
        steps: At least 1.
        step_size: Length of a step in each pixel; positive.

    Raises:
        ConfigError: An argument is out of range.

    References:
        [1] Bungert, Raab, Roith, Schwinn, Tenbrinck. CLIP: cheap Lipschitz training of neural
        networks. SSVM 2021, arXiv 2103.12531, and the attack in the code beside it.
    """

    eps: float = 2.0
    steps: int = 100
    step_size: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.eps < inf or not 0 < self.step_size < inf or self.steps < 1:
            raise ConfigError(
                f"`eps` and `step_size` must be positive and finite and `steps` at least 1, got "
                f"{self.eps}, {self.step_size} and {self.steps}."
            )

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> AttackResult:
        """Attack images `x` in [0, 1] with labels `y`; nothing is random here.

        Args:
            model: Takes pixels, returns logits.
            x: Shape (batch, ...).
            y: Labels, int64 of shape (batch,).

        Raises:
            ShapeError: The images leave [0, 1] or do not match the labels.
        """
        check_images(x, y)
        with exact_layers(model) as solves:
            search = Search(model, solves, x, y)
            search.look(torch.arange(len(x), device=x.device), x)
            rows = search.alive()
            point, centre = x[rows], x[rows]
            for _ in range(self.steps):
                if not len(rows):
                    break
                uphill = search.look(rows, point, "ce")
                keep = search.margin[rows] > 0
                rows, point, centre = rows[keep], point[keep], centre[keep]
                point = self._step(point, centre, uphill[keep])
            search.look(rows, point)
            return search.result()

    def _step(self, point: Tensor, centre: Tensor, uphill: Tensor) -> Tensor:
        away = (point + self.step_size * uphill.sign()).clamp(0, 1) - centre
        size = torch.linalg.vector_norm(away.flatten(1), dim=1).clamp(min=1e-38)
        return centre + self.eps * away / size.reshape(-1, *[1] * (away.ndim - 1))
