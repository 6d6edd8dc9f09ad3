"""The registered rules of `order`: signs of layers, sums, sorting and equilibria."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from wellposed.cells.base import AffineCell
from wellposed.certify.guard import check_eval, has_rule, refuse
from wellposed.certify.linear import LINEAR_TYPES, linear_part
from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.loop import Loop
from wellposed.certify.order import (
    add_signs,
    check_size,
    compose_signs,
    order_rule,
    signs_of,
    unit_inputs,
)
from wellposed.certify.rules import ACTIVATIONS, elementwise_activation
from wellposed.certify.sorting import Sorting
from wellposed.certify.tilted import effective_tilt
from wellposed.certify.typed import best_route
from wellposed.core.operators import Operator
from wellposed.errors import NotCertifiableError
from wellposed.nn.blend import Blend
from wellposed.nn.equilibrium import Equilibrium
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
    # an entry is one weight, or a sum of some that was rounded: only clear signs count
    signs = torch.where(columns.abs() > 1e-9 * sizes, columns.sign(), _UNKNOWN)
    return torch.where(sizes == 0, 0.0, signs).mT.contiguous()


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


for _kind in LINEAR_TYPES:
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


# --- equilibria -------------------------------------------------------------------------------


@order_rule.register
def _cell(module: AffineCell, site: Site) -> Tensor:
    """Signs of ``sum_k (D A_off)^k D B`` with ``D >= 0``, the resolved slopes.

    For a pair of inputs ``dz = D (A_off dz + B dx)``, and the series converges absolutely where
    ``[g] |A_off|`` has a spectral radius below 1, which `Loop` proves.
    """
    affine = module.explicit()
    site.require(module, affine.B.in_shape)
    if not affine.activation.monotone:
        raise refuse(
            module, site.path, f"its activation {affine.activation.name} is not monotone",
            "use ReLU, tanh or another rising activation.",
        )  # fmt: skip
    loop = Loop(affine)
    check_size(module, site, max(prod(loop.out_shape), 1))
    step = _operator_signs(loop.off, loop.out_shape)
    signs = _operator_signs(loop.affine.B, loop.affine.B.in_shape)
    while True:
        further = add_signs(signs, compose_signs(step, signs))
        if torch.equal(further.nan_to_num(2.0), signs.nan_to_num(2.0)):
            return signs
        signs = further


@order_rule.register
def _equilibrium(module: Equilibrium, site: Site) -> Tensor:
    if not has_rule(module.cell, order_rule.registry):
        raise refuse(module.cell, site.path, "the signs of a general cell are not known")
    return signs_of(module.cell, site)


def _operator_signs(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    units = unit_inputs(shape)
    columns = operator.apply(units).flatten(1)
    sizes = operator.absolute().apply(units).flatten(1)
    signs = torch.where(columns.abs() > 1e-9 * sizes, columns.sign(), _UNKNOWN)
    return torch.where(sizes == 0, 0.0, signs).mT.contiguous()
