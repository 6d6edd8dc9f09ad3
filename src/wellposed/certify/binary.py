"""Binary layers: certified as the linear layers they are, refused where they take signs; links."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule, majorise
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.majorant import Majorant
from wellposed.core.sets import Box
from wellposed.nn.binary import BinaryConv2d, BinaryLinear
from wellposed.nn.link import Link

_HINT = (
    "`wellposed.nn.binary.real_stem(net)` is the part in front of the first sign, which can be "
    "certified on its own."
)


def _linear(module: BinaryConv2d | BinaryLinear, path: str) -> nn.Module:
    """The linear layer with the weights that run; refused if the inputs lose their values."""
    if module.binary_inputs:
        raise refuse(
            module,
            path,
            "it takes the sign of its inputs, which jumps from -1 to 1 at zero: there is no finite "
            "Lipschitz constant, and rounding alone may turn a sign",
            _HINT,
        )
    weight = nn.Parameter(module.explicit().detach())
    with torch.device("meta"):
        if isinstance(module, BinaryLinear):
            made: nn.Linear | nn.Conv2d = nn.Linear(weight.shape[1], len(weight), bias=False)
        else:
            made = nn.Conv2d(
                weight.shape[1] * module.groups, len(weight), weight.shape[2], module.stride,
                module.padding, module.dilation, module.groups, bias=False,
            )  # fmt: skip
    made.weight = weight
    return made


def _majorant(module: BinaryConv2d | BinaryLinear, site: Site) -> Majorant:
    return majorise(_linear(module, site.path), site)


def _box(module: BinaryConv2d | BinaryLinear, box: Box) -> Box:
    return enclose(_linear(module, ""), box)


def _lowered(module: BinaryConv2d | BinaryLinear, signal: Signal, builder: Builder) -> Signal:
    return lower_module(_linear(module, ""), signal, builder)


for _kind in (BinaryConv2d, BinaryLinear):
    lipschitz_rule.register(_kind, _majorant)
    enclose_rule.register(_kind, _box)
    lower_rule.register(_kind, _lowered)


@lipschitz_rule.register
def _link(module: Link, site: Site) -> Majorant:
    return majorise(module.body, replace(site, path=f"{site.path}.body".lstrip(".")))


@enclose_rule.register
def _link_box(module: Link, box: Box) -> Box:
    return enclose(module.body, box)


@lower_rule.register
def _link_lower(module: Link, signal: Signal, builder: Builder) -> Signal:
    return lower_module(module.body, signal, builder)


@infer_shape.register
def _dense_shape(module: BinaryLinear) -> tuple[int, ...]:
    return (module.weight.shape[1],)


@infer_shape.register
def _shape(module: Link) -> tuple[int, ...] | None:
    return infer_shape(module.body)
