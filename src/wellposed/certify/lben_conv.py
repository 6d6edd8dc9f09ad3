"""Rules for convolutional Lipschitz-bounded networks: the gain is measured on explicit weights."""

from __future__ import annotations

import torch

from wellposed.cells.lben_conv import LbenConv2d
from wellposed.certify.chain import Chain
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.guard import check_genuine, check_owner, refuse
from wellposed.certify.linear import linear_part
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.loop import Loop
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.majorant import Linear, Majorant
from wellposed.certify.monotone import two_norm_gain, two_norm_majorant
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError
from wellposed.nn.lben_conv import LBENConv


@lipschitz_rule.register
@torch.no_grad()
def _network(module: LBENConv, site: Site) -> Majorant:
    cell = _checked(module, site.path)
    affine = cell.explicit()
    site.require(module, affine.B.in_shape)
    part = linear_part(module.readout, f"{site.path}.readout".lstrip("."))
    state = affine.A.out_shape
    try:
        joint = two_norm_gain(affine, module.readout.weight[:, :, 0, 0])
    except NotCertifiableError:
        try:
            loop = Loop(affine)  # edited weights may contract in a max norm still
        except NotCertifiableError:
            loop = None
        if loop is None:
            raise
        behind = Linear(part.absolute, state, part.terms, spectral=part.spectral_on(state))
        return Chain([loop, behind], site.shape)
    return two_norm_majorant(site.shape, (module.readout.out_channels, *state[1:]), joint)


@enclose_rule.register
def _box(module: LBENConv, box: Box) -> Box:
    return enclose(module.readout, enclose(_checked(module, ""), box))


@lower_rule.register
def _lower(module: LBENConv, signal: Signal, builder: Builder) -> Signal:
    _checked(module, "")
    state = lower_module(module.layer, builder.settle(signal), builder)
    return lower_module(module.readout, state, builder)


@infer_shape.register
def _shape(module: LBENConv) -> tuple[int, ...]:
    return module.cell.explicit().B.in_shape


def _checked(module: LBENConv, path: str) -> LbenConv2d:
    """The cell, if it is what runs, and a readout that is a matrix of the channels.

    Raises:
        NotCertifiableError: The layer runs another cell, or something was replaced.
    """
    cell, readout = module.cell, module.readout
    check_owner(module, module.layer, cell, lipschitz_rule.registry, path)
    check_genuine(readout, lipschitz_rule.registry, f"{path}.readout".lstrip("."))
    plain = (readout.kernel_size, readout.stride, readout.groups) == ((1, 1), (1, 1), 1)
    if not plain or readout.padding not in ((0, 0), "valid", "same"):
        raise refuse(module, path, "its readout is no convolution of side 1, stride 1")
    return cell
