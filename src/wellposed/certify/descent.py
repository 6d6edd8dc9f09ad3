"""Adam on one vector whose gradient is known in closed form."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


@final
class Adam:
    """Steps of Adam with a rate that falls linearly to zero [1].

    Args:
        rate: First rate.
        steps: After which the rate is zero.

    References:
        [1] Kingma, Ba. Adam: a method for stochastic optimization. ICLR 2015.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps, self.done = rate, steps, 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def step(self, gradient: Tensor) -> Tensor:
        """What is to be subtracted from the vector."""
        first = torch.zeros_like(gradient) if self.first is None else self.first
        second = torch.zeros_like(gradient) if self.second is None else self.second
        self.first = 0.9 * first + 0.1 * gradient
        self.second = 0.99 * second + 0.01 * gradient.square()
        rate = self.rate * (1 - self.done / self.steps)
        self.done += 1
        mean = self.first / (1 - 0.9**self.done)
        size = (self.second / (1 - 0.99**self.done)).sqrt()
        return rate * mean / (size + 1e-30)
