"""First weights for interval training: the width of a box neither explodes nor vanishes."""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import nn

from wellposed.cells.nemon import NemonCell


@torch.no_grad()
def interval_initialise(model: nn.Module) -> None:
    """Draw the weights in front of ReLUs from ``N(0, 2 pi / fan_in^2)``, biases 0 [1].

    ``E |w| = 2 / fan_in`` then, so that a layer ``|W| r`` followed by ReLU, which halves the width
    of a centred interval, keeps the mean width. The input weights of a `NemonCell` are scaled up by
    ``sqrt(n) / 2``, about what its self-damping ``1 - a_ii`` at the start takes away. The last
    layer keeps its weights.

    Args:
        model: The random state of torch decides its weights.

    References:
        [1] Shi, Wang, Zhang, Yi, Hsieh. Fast certified robust training with short warmup. NeurIPS
        2021. arXiv 2103.16700.
    """
    linear = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    inside = {id(cell.inject): cell for cell in model.modules() if isinstance(cell, NemonCell)}
    last = next(reversed(linear), None)
    for layer in linear:
        if layer is last and id(layer) not in inside:
            continue
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        nn.init.normal_(weight, 0.0, sqrt(2 * pi) / weight[0].numel())
        if id(layer) in inside:
            weight.mul_(sqrt(inside[id(layer)].n_state) / 2)
        if isinstance(layer.bias, torch.Tensor):
            nn.init.zeros_(layer.bias)
