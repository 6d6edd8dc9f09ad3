"""Rules for sums with a linear part: `MonotoneResidual`, its exported form, and `Blend`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.chain import two_norm
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.linear import linear_part, spectral_norm
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule, majorise
from wellposed.certify.majorant import Linear, Majorant
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward, rounding
from wellposed.errors import ShapeError
from wellposed.nn.blend import Blend
from wellposed.nn.export import Tilted
from wellposed.nn.monotone import MonotoneResidual


@final
class Sum(Majorant):
    """``|J + M| <= |J| + |M|`` for two functions between the same spaces.

    Args:
        one: ``J``.
        other: ``M``.
    """

    def __init__(self, one: Majorant, other: Majorant) -> None:
        super().__init__(one.in_shape, one.out_shape)
        self._one, self._other = one, other
        self.assumes = tuple(dict.fromkeys((*one.assumes, *other.assumes)))

    @override
    def apply(self, v: Tensor) -> Tensor:
        return outward(self._one.apply(v) + self._other.apply(v))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return outward(self._one.adjoint(c) + self._other.adjoint(c))

    @property
    @override
    def spectral(self) -> float:
        return (two_norm(self._one) + two_norm(self._other)) * (1 + 4 * UNIT)

    @property
    @override
    def summands(self) -> tuple[Majorant, ...]:
        return self._one, self._other

    @property
    @override
    def rule(self) -> str:
        return "sum of the bounds of a body and a linear part"


def effective_tilt(module: MonotoneResidual | Tilted) -> Tensor:
    """The linear part as the forward pass has it, in float64, shape (1 or outputs, inputs)."""
    if isinstance(module, Tilted):
        return module.skip.weight.detach().cpu().double()
    tilt = module.constant * module.signs.detach().cpu()
    return tilt.double().reshape(-1, module.signs.shape[-1])


def _matrix(matrix: Tensor) -> Linear:
    size = matrix.abs()
    return Linear(
        lambda v: v @ size.mT,
        (size.shape[1],),
        max(size.shape),
        spectral=partial(spectral_norm, matrix),
        signed=lambda x: x @ matrix.mT,
    )


def _tilted(module: MonotoneResidual | Tilted, site: Site) -> Majorant:
    tilt = effective_tilt(module)
    site.require(module, (tilt.shape[1],))
    body = majorise(module.body, replace(site, path=f"{site.path}.body".lstrip(".")))
    tilt = _spread(tilt, body.out_shape, site.path or type(module).__name__)
    return Sum(body, _matrix(tilt))


def _spread(tilt: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """One row an output."""
    if len(shape) != 1 or len(tilt) not in (1, shape[0]):
        raise ShapeError(f"The body of `{name}` gives {shape}, its linear part {(len(tilt),)}.")
    return tilt.expand(shape[0], -1)


def _tilted_box(module: MonotoneResidual | Tilted, box: Box) -> Box:
    body = enclose(module.body, box)
    tilt = _spread(effective_tilt(module), body.shape[1:], type(module).__name__)
    low, high = box.extent(tilt)
    if isinstance(module, Tilted):
        bias = linear_part(module.skip, "skip").offset
        low, high = low + bias, high + bias
        low, high = low - 2 * UNIT * low.abs(), high + 2 * UNIT * high.abs()
    low, high = low + body.lower, high + body.upper
    return Box(low - 2 * UNIT * low.abs(), high + 2 * UNIT * high.abs())


@final
class Average(Majorant):
    """``|[1 - t] I + [t] J| <= [1 - t] + [t] |J|``.

    Args:
        kept: ``1 - t``.
        taken: ``t``.
        body: ``J``, from a space to itself.
    """

    def __init__(self, kept: float, taken: float, body: Majorant) -> None:
        super().__init__(body.in_shape, body.out_shape)
        self._kept, self._taken, self._body = kept, taken, body
        self.assumes = body.assumes

    @override
    def apply(self, v: Tensor) -> Tensor:
        return outward(self._kept * v + self._taken * self._body.apply(v), 2)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return outward(self._kept * c + self._taken * self._body.adjoint(c), 2)

    @property
    @override
    def spectral(self) -> float:
        return (self._kept + self._taken * two_norm(self._body)) * (1 + 2 * rounding(4))

    @property
    @override
    def rule(self) -> str:
        return "average of the identity and the bound of the body"


def _weights(module: Blend) -> tuple[float, float]:
    """``1 - t`` and ``t`` as the forward pass has them."""
    t = module.t.detach()
    return float(1 - t), float(t)


@lipschitz_rule.register
def _blend(module: Blend, site: Site) -> Majorant:
    body = majorise(module.body, replace(site, path=f"{site.path}.body".lstrip(".")))
    if body.in_shape != body.out_shape:
        raise ShapeError(
            f"The body of `{site.path or 'Blend'}` maps {body.in_shape} to {body.out_shape}; a "
            "residual block needs equal shapes."
        )
    return Average(*_weights(module), body)


@enclose_rule.register
def _blend_box(module: Blend, box: Box) -> Box:
    kept, taken = _weights(module)
    body = enclose(module.body, box)
    lower = kept * box.lower + taken * body.lower
    upper = kept * box.upper + taken * body.upper
    reach = kept * torch.maximum(box.lower.abs(), box.upper.abs())
    reach = outward(reach + taken * torch.maximum(body.lower.abs(), body.upper.abs()), 2)
    return Box(lower - 8 * UNIT * reach, upper + 8 * UNIT * reach)


for _kind in (MonotoneResidual, Tilted):
    lipschitz_rule.register(_kind, _tilted)
    enclose_rule.register(_kind, _tilted_box)
    infer_shape.register(_kind, lambda module: (effective_tilt(module).shape[1],))


@infer_shape.register
def _shape(module: Blend) -> tuple[int, ...] | None:
    return infer_shape(module.body)
