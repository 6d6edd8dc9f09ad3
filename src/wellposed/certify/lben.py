"""Rules for Lipschitz-bounded equilibrium networks: the bound is measured on explicit weights."""

from __future__ import annotations

import torch
from torch import nn

from wellposed.certify.chain import Chain
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.explicit import bare_linear
from wellposed.certify.gain import Gain, gain_of
from wellposed.certify.guard import check_owner
from wellposed.certify.linear import linear_part
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule, majorise
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.majorant import Linear, Majorant
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.lben import LBEN


@torch.no_grad()
def explicit_network(module: LBEN) -> Network:
    """The network that an `LBEN` runs, its weights embedded exactly in float64."""
    affine, readout = module.cell.explicit(), module.cell.readout
    return Network.of(
        affine.A.weight,
        affine.B.weight,
        affine.bias,
        readout.weight,
        readout.bias,
        D=module.cell.direct(),
        activation=affine.activation,
        metric=affine.metric,
    )


@lipschitz_rule.register
def _lben(module: LBEN, site: Site) -> Majorant:
    check_owner(module, module.layer, module.cell, lipschitz_rule.registry, site.path)
    if site.shape != (module.cell.n_in,):
        raise ShapeError(
            f"`{site.path or 'LBEN'}` takes inputs of shape ({module.cell.n_in},), got "
            f"{site.shape}.",
            hint="put `nn.Flatten()` in front of it.",
        )
    network = explicit_network(module)
    try:
        inner = _componentwise(module, site)
    except NotCertifiableError:
        inner = None  # no contraction in a max norm; the 2-norm says more about these anyway
    try:
        return Gain(gain_of(network), inner)
    except NotCertifiableError:
        if inner is None:
            raise
        return inner


def _componentwise(module: LBEN, site: Site) -> Majorant | None:
    if module.cell.direct() is not None:
        return None
    return Chain([majorise(module.cell, site), _readout(module.cell.readout)], site.shape)


def _readout(module: nn.Linear) -> Linear:
    part = linear_part(module, "readout")
    return Linear(part.absolute, (module.in_features,), part.terms, spectral=part.spectral)


@enclose_rule.register
def _lben_box(module: LBEN, box: Box) -> Box:
    check_owner(module, module.layer, module.cell, lipschitz_rule.registry, "")
    y = enclose(module.cell.readout, enclose(module.cell, box))
    D = module.cell.direct()
    if D is None:
        return y
    straight = enclose(bare_linear(D), box)
    low, high = y.lower + straight.lower, y.upper + straight.upper
    return Box(low - 2 * UNIT * low.abs(), high + 2 * UNIT * high.abs())


@lower_rule.register
def _lben_lower(module: LBEN, signal: Signal, builder: Builder) -> Signal:
    signal = builder.settle(signal)
    state = lower_module(module.layer, signal, builder)
    out = lower_module(module.cell.readout, state, builder)
    D = module.cell.direct()
    if D is None:
        return out
    straight = lower_module(bare_linear(D), signal, builder)
    return Signal(out.shape, (*out.links, *straight.links), out.offset)


@infer_shape.register
def _shape(module: LBEN) -> tuple[int, ...]:
    return (module.cell.n_in,)
