"""The registered rules of `order` for layers of `torch.nn`, sums and sorting."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from wellposed.certify.guard import check_eval, refuse
from wellposed.certify.linear import GENERAL_TYPES, LINEAR_TYPES, linear_part
from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.order import (
    add_signs,
    check_size,
    order_rule,
    signs_of,
    unit_inputs,
)
from wellposed.certify.order_equilibria import clear_signs
from wellposed.certify.rules import ACTIVATIONS, elementwise_activation
from wellposed.certify.sorting import Sorting
from wellposed.certify.tilted import effective_tilt
from wellposed.certify.typed import best_route
from wellposed.errors import NotCertifiableError
from wellposed.nn.blend import Blend
from wellposed.nn.export import Tilted
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import MonotoneResidual
from wellposed.nn.normalise import Normalise
from wellposed.nn.residual import Residual

_UNKNOWN = float("nan")

# --- layers -----------------------------------------------------------------------------------


def _linear(module: nn.Module, site: Site) -> Tensor:
    part = linear_part(module, site.path)
    out = part.absolute(torch.zeros(1, *site.shape, dtype=torch.float64))
    check_size(module, site, out.numel())
    units = unit_inputs(site.shape)
    columns, sizes = part.signed(units).flatten(1), part.absolute(units).flatten(1)
    return clear_signs(columns, sizes).mT.contiguous()


def _elementwise(module: nn.Module, site: Site) -> Tensor:
    phi = elementwise_activation(module, site.path)
    check_size(module, site, prod(site.shape))
    low, high = (torch.tensor(s, dtype=torch.float64) for s in phi.slopes)
    if site.box is not None and (phi.homogeneous or not phi.monotone):
        low, high = (s[0].flatten() for s in phi.slope_range(site.box.lower, site.box.upper))
    own = torch.where(low >= 0, 1.0, torch.where(high <= 0, -1.0, _UNKNOWN)).double()
    if phi.homogeneous:
        own = torch.where((low == 0) & (high == 0), 0.0, own)  # exact: no slope was rounded
    return torch.diag(own.expand(prod(site.shape)))


def _unchanged(module: nn.Module, site: Site) -> Tensor:
    if isinstance(module, nn.Dropout | nn.Dropout2d):
        check_eval(module, site.path)
    if isinstance(module, nn.Flatten) and module.start_dim < 1:
        raise refuse(module, site.path, "it mixes the batch into the features",
                     "use `start_dim=1` or larger.")  # fmt: skip
    check_size(module, site, prod(site.shape))
    return torch.eye(prod(site.shape), dtype=torch.float64)


def _sorting(module: GroupSort | MaxMin, site: Site) -> Tensor:
    majorant = majorise(module, site)
    assert isinstance(majorant, Sorting)
    check_size(module, site, prod(site.shape))
    # a rising input cannot lower the k-th smallest of its group
    return majorant.apply(unit_inputs(site.shape)).flatten(1).mT.contiguous()


@order_rule.register
def _max_pool(module: nn.MaxPool2d, site: Site) -> Tensor:
    pooled = majorise(module, site)
    check_size(module, site, prod(pooled.out_shape))
    return pooled.apply(unit_inputs(site.shape)).flatten(1).mT.sign()


for _kind in (*LINEAR_TYPES, *GENERAL_TYPES):
    order_rule.register(_kind, _linear)
for _kind in ACTIVATIONS:
    order_rule.register(_kind, _elementwise)
for _kind in (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, Normalise):
    order_rule.register(_kind, _unchanged)
for _kind in (GroupSort, MaxMin):
    order_rule.register(_kind, _sorting)

# --- sums -------------------------------------------------------------------------------------


def _shortcut(module: Residual | Blend, site: Site) -> Tensor:
    # the weights of a blend are positive
    body = signs_of(module.body, replace(site, path=f"{site.path}.body".lstrip(".")))
    return add_signs(torch.eye(len(body), dtype=torch.float64), body)


for _kind in (Residual, Blend):
    order_rule.register(_kind, _shortcut)


@order_rule.register(MonotoneResidual)
@order_rule.register(Tilted)
def _monotone(module: MonotoneResidual | Tilted, site: Site) -> Tensor:
    """The signs of ``g(x) + t x``: of the tilt wherever it is at least as steep as ``g`` can be.

    How steep is *measured*: entry by entry of the componentwise bound of ``g``, or all together
    from the 1-norm to the max norm.
    """
    inner = replace(site, path=f"{site.path}.body".lstrip("."))
    body = majorise(module.body, inner)
    check_size(module, site, prod(body.out_shape))
    size = body.apply(unit_inputs(site.shape)).flatten(1).mT
    size = size.clamp(max=best_route(body, "1", "max").bound)
    tilt = effective_tilt(module).expand(len(size), -1)
    own = torch.where(size <= tilt.abs(), tilt.sign(), _UNKNOWN)
    own = torch.where((size == 0) & (tilt == 0), 0.0, own)
    try:
        derived = add_signs(signs_of(module.body, inner), tilt.sign())
    except NotCertifiableError:
        return own
    return torch.where(own.isnan(), derived, own)
