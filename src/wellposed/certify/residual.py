"""Rules for residual blocks ``y = x + body(x)``."""

from __future__ import annotations

from dataclasses import replace
from typing import final

from torch import Tensor
from typing_extensions import override

from wellposed.certify.chain import two_norm
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule, majorise
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.majorant import Majorant
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import ShapeError
from wellposed.nn.residual import Residual


@final
class Shortcut(Majorant):
    """``|I + J| <= I + |J|``.

    Args:
        body: ``J``, from a space to itself.
    """

    def __init__(self, body: Majorant) -> None:
        super().__init__(body.in_shape, body.out_shape)
        self._body = body
        self.assumes = body.assumes

    @override
    def apply(self, v: Tensor) -> Tensor:
        return outward(v + self._body.apply(v))

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return outward(c + self._body.adjoint(c))

    @property
    @override
    def spectral(self) -> float:
        return (1 + two_norm(self._body)) * (1 + 4 * UNIT)

    @property
    @override
    def rule(self) -> str:
        return "identity plus the bound of the body"


@lipschitz_rule.register
def _residual(module: Residual, site: Site) -> Majorant:
    body = majorise(module.body, replace(site, path=f"{site.path}.body".lstrip(".")))
    if body.in_shape != body.out_shape:
        raise ShapeError(
            f"The body of `{site.path or 'Residual'}` maps {body.in_shape} to {body.out_shape}; "
            "a residual block needs equal shapes."
        )
    return Shortcut(body)


@enclose_rule.register
def _residual_box(module: Residual, box: Box) -> Box:
    body = enclose(module.body, box)
    lower, upper = box.lower + body.lower, box.upper + body.upper
    return Box(lower - 2 * UNIT * lower.abs(), upper + 2 * UNIT * upper.abs())


@lower_rule.register
def _residual_lower(module: Residual, signal: Signal, builder: Builder) -> Signal:
    signal, scaling = builder.settle(signal), builder.scaling
    body = lower_module(module.body, signal, builder)
    if builder.scaling is not scaling:
        # it acts on regions: the shortcut would be scaled as well
        raise refuse(module, "", "its body scales the inputs", "put `Normalise` in front of it.")
    if body.shape != signal.shape:
        raise refuse(module, "", f"its body maps {signal.shape} to {body.shape}")
    return Signal(signal.shape, (*signal.links, *body.links), body.offset)


@infer_shape.register
def _shape(module: Residual) -> tuple[int, ...] | None:
    return infer_shape(module.body)
