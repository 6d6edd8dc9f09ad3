"""The registered rules: layers of `torch.nn` and equilibrium layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.certify.affine import local_loop
from wellposed.certify.box import equilibrium_box, value_slack
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.guard import check_eval, has_rule, refuse
from wellposed.certify.linear import GENERAL_TYPES, LINEAR_TYPES, linear_part
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule, majorise
from wellposed.certify.loop import Loop
from wellposed.certify.majorant import Linear, Majorant, Rearrangement, Slopes
from wellposed.certify.maximum import Maximum
from wellposed.certify.monotone import monotone_majorant
from wellposed.core import activations as act
from wellposed.core.scalar import Activation
from wellposed.core.sets import Box
from wellposed.core.spectra import outward, rounding
from wellposed.errors import ShapeError
from wellposed.nn.equilibrium import Equilibrium

# --- linear layers ----------------------------------------------------------------------------


def _linear(module: nn.Module, site: Site) -> Majorant:
    part = linear_part(module, site.path)
    return Linear(
        part.absolute,
        site.shape,
        part.terms,
        spectral=part.spectral_on(site.shape),
        signed=part.signed,
    )


def _linear_box(module: nn.Module, box: Box) -> Box:
    part = linear_part(module, "")
    middle, offset = box.centre, part.offset
    y = part.signed(middle) + offset
    gamma = 2 * rounding(part.terms + 8)
    spread = outward(part.absolute(box.radius + gamma * middle.abs()), part.terms)
    spread = spread + gamma * (offset.abs() + y.abs())
    spread = outward(spread if part.error is None else spread + part.error, 4)
    return Box(y - spread, y + spread)


for _kind in (*LINEAR_TYPES, *GENERAL_TYPES):
    lipschitz_rule.register(_kind, _linear)
    enclose_rule.register(_kind, _linear_box)

# --- elementwise functions --------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Clamp(Activation):
    """``min(max(v, low), high)``."""

    low: float
    high: float
    name: ClassVar[str] = "clamp"

    @property
    @override
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return v.clamp(self.low, self.high)

    @override
    def slope(self, v: Tensor) -> Tensor:
        return ((v > self.low) & (v < self.high)).to(v)

    @override
    def slope_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        inside = (lower >= self.low) & (upper <= self.high)
        touches = (upper > self.low) & (lower < self.high)
        return inside.to(lower), touches.to(upper)


_JUMP = "`nn.Softplus` is log(1 + exp(v)); PyTorch drops exp(-v) beyond its threshold of 20"


def elementwise_activation(module: Any, path: str) -> Activation:
    """The slope-restricted function that a module applies elementwise."""
    match module:
        case nn.ReLU():
            return act.ReLU()
        case nn.LeakyReLU() if 0 <= module.negative_slope < 1:
            return act.LeakyReLU(module.negative_slope)
        case nn.Tanh():
            return act.Tanh()
        case nn.Sigmoid():
            return act.Sigmoid()
        case nn.Softplus() if module.beta == 1 and module.threshold >= 20:
            return act.Softplus()
        case nn.ELU() if module.alpha == 1:
            return act.ELU()
        case nn.GELU() if module.approximate == "none":
            return act.GELU()
        case nn.SiLU():
            return act.SiLU()
        case nn.Hardtanh() if module.min_val <= module.max_val:  # ReLU6 is one
            return _Clamp(float(module.min_val), float(module.max_val))
        case _:
            raise refuse(module, path, "its options are outside what the slope table covers")


def _elementwise(module: nn.Module, site: Site) -> Majorant:
    phi = elementwise_activation(module, site.path)
    assumes = (_JUMP,) if isinstance(module, nn.Softplus) else ()
    if site.box is None:
        return Slopes(phi.steepest, site.shape, assumes, quotients=phi.slopes)
    low, high = phi.slope_range(site.box.lower, site.box.upper)
    if not phi.homogeneous:
        low = (low - 1e-14).clamp(min=phi.slopes[0])
        high = (high + 1e-14).clamp(max=phi.slopes[1])
    slope = torch.maximum(low.abs(), high.abs())
    return Slopes(slope[0], site.shape, assumes, quotients=(low[0], high[0]))


def _elementwise_box(module: nn.Module, box: Box) -> Box:
    phi = elementwise_activation(module, "")
    low, high = phi.image(box.lower, box.upper)
    reach = torch.maximum(box.lower.abs(), box.upper.abs())
    jump = 1e-8 if isinstance(module, nn.Softplus) else 0.0
    return Box(
        low - value_slack(phi, reach, low) - jump, high + value_slack(phi, reach, high) + jump
    )


ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.GELU, nn.SiLU,
               nn.Hardtanh, nn.ReLU6)  # fmt: skip

for _kind in ACTIVATIONS:
    lipschitz_rule.register(_kind, _elementwise)
    enclose_rule.register(_kind, _elementwise_box)
    infer_shape.register(_kind, lambda module: ())

# --- modules that move components or do nothing -----------------------------------------------


def _moved(module: nn.Module, site: Site) -> Majorant:
    return Rearrangement(module.forward, site.shape)


def _moved_box(module: nn.Module, box: Box) -> Box:
    return Box(module(box.lower), module(box.upper))


def _dropout(module: nn.Module, site: Site) -> Majorant:
    check_eval(module, site.path)
    return Rearrangement(lambda x: x, site.shape)


def _dropout_box(module: nn.Module, box: Box) -> Box:
    check_eval(module, "")
    return box


def _flatten(module: nn.Flatten, site: Site) -> Majorant:
    if module.start_dim < 1:
        raise refuse(module, site.path, "it mixes the batch into the features",
                     "use `start_dim=1` or larger.")  # fmt: skip
    return _moved(module, site)


for _kind in (nn.Identity, nn.Unflatten):
    lipschitz_rule.register(_kind, _moved)
for _kind in (nn.Dropout, nn.Dropout2d):
    lipschitz_rule.register(_kind, _dropout)
    enclose_rule.register(_kind, _dropout_box)
lipschitz_rule.register(nn.Flatten, _flatten)
for _kind in (nn.Identity, nn.Unflatten, nn.Flatten):
    enclose_rule.register(_kind, _moved_box)
for _kind in (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d):
    infer_shape.register(_kind, lambda module: ())

# --- maximum over windows ---------------------------------------------------------------------


@lipschitz_rule.register
def _max_pool(module: nn.MaxPool2d, site: Site) -> Majorant:
    if module.dilation not in (1, (1, 1)) or module.return_indices:
        raise refuse(module, site.path, "dilation and returned indices are not covered")
    if len(site.shape) != 3:
        raise ShapeError(f"nn.MaxPool2d needs inputs (channels, height, width), got {site.shape}.")
    sides = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,)

    def total(x: Tensor) -> Tensor:
        return F.avg_pool2d(
            x,
            module.kernel_size,
            module.stride,
            module.padding,
            ceil_mode=module.ceil_mode,
            divisor_override=1,
        )

    def largest(x: Tensor) -> Tensor:
        return F.max_pool2d(
            x, module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode
        )

    return Maximum(largest, total, site.shape, max(sides) ** 2)


@enclose_rule.register
def _max_pool_box(module: nn.MaxPool2d, box: Box) -> Box:
    return Box(module(box.lower), module(box.upper))


# --- equilibria -------------------------------------------------------------------------------


@lipschitz_rule.register
def _cell(module: AffineCell, site: Site) -> Majorant:
    affine = module.explicit()
    site.require(module, affine.B.in_shape)
    if site.box is None:
        return monotone_majorant(affine)
    return local_loop(Loop(affine), Box(site.box.lower[0], site.box.upper[0]))


@lipschitz_rule.register
def _equilibrium(module: Equilibrium, site: Site) -> Majorant:
    if not has_rule(module.cell, lipschitz_rule.registry):
        raise refuse(
            module.cell,
            site.path,
            "the equilibrium of a general cell has no explicit weights to measure",
            "use an affine cell such as `NemonCell`, or register a rule for the cell's type.",
        )
    return majorise(module.cell, site)


@enclose_rule.register
def _cell_box(module: AffineCell, box: Box) -> Box:
    return equilibrium_box(module.explicit(), box).state


@enclose_rule.register
def _equilibrium_box(module: Equilibrium, box: Box) -> Box:
    if not has_rule(module.cell, enclose_rule.registry):
        raise refuse(module.cell, "", "a general cell has no box rule")
    return enclose(module.cell, box)


@infer_shape.register
def _shape_cell(module: AffineCell) -> tuple[int, ...]:
    return module.explicit().B.in_shape


@infer_shape.register
def _shape_equilibrium(module: Equilibrium) -> tuple[int, ...] | None:
    return infer_shape(module.cell)


@infer_shape.register
def _shape_linear(module: nn.Linear) -> tuple[int, ...]:
    return (module.in_features,)
