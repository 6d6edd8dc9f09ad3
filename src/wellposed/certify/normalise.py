"""Rules for the scaling of pixels: division by the standard deviation of the channel."""

from __future__ import annotations

from torch import Tensor

from wellposed.certify.enclose import enclose_rule
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.majorant import Majorant, Slopes
from wellposed.certify.penalty import spread
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT, outward
from wellposed.nn.normalise import Normalise


@lipschitz_rule.register
def _normalise(module: Normalise, site: Site) -> Majorant:
    scale = 1 / module.std.detach().double()
    high, low = outward(scale), scale * (1 - 4 * UNIT)
    return Slopes(high, site.shape, quotients=(low, high))


@enclose_rule.register
def _normalise_box(module: Normalise, box: Box) -> Box:
    return box.normalised(module.mean, module.std)


@infer_shape.register
def _shape(module: Normalise) -> tuple[int, ...] | None:
    return None


@spread.register
def _spread(module: Normalise, v: Tensor, rtol: float | None = None) -> Tensor:
    del rtol
    return v / module.std
