"""Intervals through a network, fast and differentiable: what certified training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import final

import torch
from torch import Tensor, nn

from wellposed.cells.base import AffineCell
from wellposed.certify.guard import refuse
from wellposed.core.maps import AffineMap
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.equilibrium import Equilibrium, fixed_point
from wellposed.nn.normalise import Normalise
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Stopping
from wellposed.training.embedded import embedded_map


@final
@dataclass(frozen=True, eq=False)
class Interval:
    """Lower and upper ends of a batch of boxes, on the tape, in the precision of the network.

    Args:
        lower: Smallest values.
        upper: Largest values.
    """

    lower: Tensor
    upper: Tensor

    @property
    def centre(self) -> Tensor:
        """``(upper + lower) / 2``."""
        return (self.upper + self.lower) / 2

    @property
    def radius(self) -> Tensor:
        """``(upper - lower) / 2``."""
        return (self.upper - self.lower) / 2


def around(x: Tensor, eps: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """``[x - eps, x + eps]`` within the range of a pixel."""
    return Interval((x - eps).clamp(min=low), (x + eps).clamp(max=high))


def interval(module: nn.Module, box: Interval) -> Interval:
    """The interval extension of a network; differentiable, and rounded like any other pass.

    It equals the sound box of `wellposed.certify.enclose` up to rounding and the tolerance of the
    solves, and proves nothing by itself.

    Raises:
        NotCertifiableError: Some module has no rule.
    """
    rule = interval_rule.dispatch(type(module))
    owner = next((kind for kind in type(module).__mro__ if kind in interval_rule.registry), None)
    # forward hooks are let through: training itself counts evaluations with them
    if owner not in (None, object) and type(module).forward is not getattr(owner, "forward", None):
        raise refuse(
            module, "", f"it replaces the `forward` of {owner.__name__}, whose rule would apply"
        )
    return rule(module, box)


@singledispatch
def interval_rule(module: nn.Module, box: Interval) -> Interval:
    """The image of a batch of boxes under a module, for training.

    Register a function on your own module type.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(
        module,
        "",
        "no interval rule for training is registered for this type",
        hint="register one with `@wellposed.training.interval_rule.register`.",
    )


@interval_rule.register
def _sequential(module: nn.Sequential, box: Interval) -> Interval:
    for child in module:
        box = interval(child, box)
    return box


@interval_rule.register
def _linear(module: nn.Linear, box: Interval) -> Interval:
    middle = nn.functional.linear(box.centre, module.weight, module.bias)
    spread = nn.functional.linear(box.radius, module.weight.abs())
    return Interval(middle - spread, middle + spread)


@interval_rule.register
def _convolution(module: nn.Conv2d, box: Interval) -> Interval:
    run = module._conv_forward  # pyright: ignore[reportPrivateUsage]
    middle = run(box.centre, module.weight, module.bias)
    spread = run(box.radius, module.weight.abs(), None)
    return Interval(middle - spread, middle + spread)


def _increasing(module: nn.Module, box: Interval) -> Interval:
    return Interval(module(box.lower), module(box.upper))


for _kind in (Normalise, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid,
              nn.Hardtanh, nn.ReLU6, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d):  # fmt: skip
    interval_rule.register(_kind, _increasing)


@interval_rule.register
def _leaky(module: nn.LeakyReLU, box: Interval) -> Interval:
    if module.negative_slope < 0:
        raise refuse(module, "", f"its slope {module.negative_slope} is negative")
    return _increasing(module, box)


@interval_rule.register(nn.Dropout)
def _dropout(module: nn.Dropout, box: Interval) -> Interval:
    if not module.training or not module.p:
        return box
    # one mask for both ends, as in one forward pass
    mask = nn.functional.dropout(torch.ones_like(box.lower), module.p)
    return Interval(box.lower * mask, box.upper * mask)


@interval_rule.register
def _equilibrium(module: Equilibrium, box: Interval) -> Interval:
    return embedded_box(module, box)[0]


@interval_rule.register
def _cell(module: AffineCell, box: Interval) -> Interval:
    return _embedded(module, box, Stopping())[0]


def embedded_box(layer: Equilibrium, box: Interval) -> tuple[Interval, AffineMap]:
    """The box of the equilibria of a layer, and the embedded map whose fixed point it is.

    Raises:
        NotCertifiableError: The cell has no explicit weights, or its activation decreases.
    """
    if not isinstance(layer.cell, AffineCell):
        raise refuse(layer.cell, "", "a general cell has no embedded network")
    stopping = layer.stopping if layer.training else layer.eval_stopping
    return _embedded(layer.cell, box, stopping or Stopping(1e-3 if layer.training else None))


def _embedded(cell: AffineCell, box: Interval, stopping: Stopping) -> tuple[Interval, AffineMap]:
    affine = cell.explicit()
    if box.lower.shape[1:] != affine.B.in_shape:
        raise ShapeError(
            f"The boxes have shape {tuple(box.lower.shape)}, expected (batch, "
            f"{', '.join(map(str, affine.B.in_shape))})."
        )
    if affine.activation.slopes[0] < 0:
        raise refuse(cell, "", f"{affine.activation.name} is not increasing")
    map_ = embedded_map(affine, box.centre, box.radius)
    found = fixed_point(map_, None, solver=Auto(), stopping=stopping)
    lower, upper = found.value.chunk(2, 1)
    return Interval(lower, upper), map_


def margin_bounds(model: nn.Sequential, box: Interval, labels: Tensor) -> Tensor:
    """Lower bounds of ``logit_y - logit_j`` over a box, shape (batch, classes), 0 at ``j = y``.

    The last linear layer is folded in: ``(C_y - C_j) m + c_y - c_j - |C_y - C_j| r``, which is far
    tighter than the difference of two boxes of logits.

    Args:
        model: Ends in `nn.Linear`.
        box: Of inputs.
        labels: ``y``.

    Raises:
        ConfigError: The last layer is not linear.
        NotCertifiableError: Some module has no interval rule.
    """
    *body, head = model
    if type(head) is not nn.Linear:
        raise ConfigError(
            f"The last layer is {type(head).__name__}, expected nn.Linear: margins fold it in."
        )
    for layer in body:
        box = interval(layer, box)
    return folded_margins(head, box, labels)


def folded_margins(head: nn.Linear, box: Interval, labels: Tensor) -> Tensor:
    """``(C_y - C_j) m + c_y - c_j - |C_y - C_j| r`` for the box that enters the last layer."""
    C, classes = head.weight, head.out_features
    pairs = (C[:, None] - C[None]).abs().flatten(0, 1)
    middle = head(box.centre)
    middle = middle.gather(1, labels[:, None]) - middle
    spread = (box.radius @ pairs.mT).reshape(-1, classes, classes)
    rows = labels[:, None, None].expand(-1, 1, classes)
    return middle - spread.gather(1, rows)[:, 0]
