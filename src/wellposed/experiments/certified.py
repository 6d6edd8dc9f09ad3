"""Certified radii of images from Lipschitz bounds of each pair of logits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn

from wellposed.attacks.exact import believable, exact_layers, margins
from wellposed.cells.base import AffineCell
from wellposed.certify.composed import composed_gains
from wellposed.certify.lipschitz import Site, majorise
from wellposed.core.spectra import UNIT, outward
from wellposed.errors import NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.export import export
from wellposed.solvers.base import Stopping

ALLOWANCE = 1e-9
"""Of the size of the logits: many times the rounding of a float64 forward pass."""
RULE = (
    "margin test with the componentwise bound of each difference of logits, "
    "|C_t - C_j| K 1 eps, less the certified distance of the solve to its fixed point"
)

RULE_2 = "margin test with the proved 2-norm gain of each difference of logits, in float64"


@final
@dataclass(frozen=True, eq=False)
class Proof:
    """Certified radii in the max norm, 0 where the network errs or nothing is proved.

    Args:
        radii: Shape (batch,), pixel units, float64.
        margin: Margins that were proved at the images themselves, float64.
        error: Certified distance of each solve to its fixed point; 0 without an equilibrium layer.
        rule: How.
        assumes: What was taken on trust.
    """

    radii: Tensor
    margin: Tensor
    error: Tensor
    rule: str
    assumes: tuple[str, ...]


@torch.no_grad()
def certified_radii(model: nn.Module, x: Tensor, y: Tensor) -> Proof:
    """The radius below which no perturbation changes the (right) class of each image.

    If ``|d(logit_t - logit_j)| <= P_tj eps`` and the margins at the fixed point are ``m_j``, the
    class holds for ``eps < min_j m_j / P_tj``. ``P`` is the bound L3 of the pair,
    ``|C_t - C_j| K 1``, where the last layer is linear, and twice the bound of the logits
    elsewhere. Margins are those of a float64 copy, less what the solver may have left over.

    Args:
        model: `nn.Sequential` from pixels to logits whose modules have Lipschitz rules.
        x: Images in [0, 1], shape (batch, ...).
        y: Labels.

    Raises:
        NotCertifiableError: Some module has no rule or its hypothesis fails.
    """
    double = deepcopy(model).double().eval()
    layers = list(double.children()) if isinstance(double, nn.Sequential) else [double]
    head = layers.pop() if isinstance(layers[-1], nn.Linear) else None
    body = nn.Sequential(*layers)
    majorant = majorise(body, Site(tuple(x.shape[1:])))
    move = majorant.apply(torch.ones(1, *majorant.in_shape, dtype=torch.float64))[0]
    pairs = _pairs(move, head)

    with exact_layers(double, Stopping(rtol=1e-10, max_evaluations=5000)) as solves:
        logits = double(x.double())
        believed = believable(logits, solves)
        error = solves.error_bound(len(x))
    slack = _after(layers, error, head)
    gap = logits.gather(1, y[:, None]) - logits
    gap = gap - slack - ALLOWANCE * logits.abs().amax(1, keepdim=True)
    gap = gap.scatter(1, y[:, None], torch.inf)
    allowed = pairs[y].scatter(1, y[:, None], 1.0)
    radii = (gap / allowed.clamp(min=1e-300)).amin(1)
    good = believed & (margins(logits, y) > 0) & torch.isfinite(error)
    radii = torch.where(good, radii, 0.0).clamp(min=0)
    trust = f"logits computed in float64 are within {ALLOWANCE:g} of their size of the exact ones"
    return Proof(radii, gap.amin(1), error, RULE, (*majorant.assumes, trust))


@torch.no_grad()
def certified_radii_2(model: nn.Sequential, x: Tensor, y: Tensor, batch: int = 1000) -> Tensor:
    """Radii in the 2-norm below which the (right) class of each image holds; 0 for no proof.

    ``min_j ( logit_t - logit_j ) / G_tj`` with the gains ``G`` of `composed_gains`: the cheapest
    certificate there is, for networks without an equilibrium layer. Logits are those of a float64
    copy of the weights as they stand, less `ALLOWANCE` of their size.

    Args:
        model: From pixels to logits.
        x: Images in [0, 1], shape (images, ...).
        y: Labels.
        batch: Images that are evaluated at once.

    Returns:
        Shape (images,), pixel units, float64.

    Raises:
        NotCertifiableError: There is an equilibrium layer, whose solves have errors of their own.
    """
    if any(isinstance(layer, Equilibrium) for layer in model.modules()):
        raise NotCertifiableError(
            "This margin test is for networks without an equilibrium layer.",
            hint="use `wellposed.l2_certified`, which bounds the errors of the solves.",
        )
    # weights made anew in float64 would be those of a slightly different network
    double = export(model).double()
    logits = torch.cat([double(part.double()) for part in x.split(batch)])
    gains = composed_gains(double, tuple(x.shape[1:]), logits.shape[1])
    gap = logits.gather(1, y[:, None]) - logits
    gap = gap - 2 * ALLOWANCE * logits.abs().amax(1, keepdim=True)
    radii = (gap / gains[y].clamp(min=1e-300)) * (1 - 4 * UNIT)
    radii = radii.scatter(1, y[:, None], torch.inf).amin(1)
    return torch.where(torch.isfinite(logits).all(1), radii.nan_to_num(0.0), 0.0).clamp(min=0)


def _pairs(move: Tensor, head: nn.Module | None) -> Tensor:
    """``P_tj``: the most that ``logit_t - logit_j`` moves if no component moves beyond `move`."""
    if not isinstance(head, nn.Linear):
        return 2 * move.flatten().amax().expand(move.numel(), move.numel())
    gaps = (head.weight[:, None] - head.weight[None]).abs()
    return outward(gaps @ move.flatten(), head.in_features + 4)


def _after(layers: list[nn.Module], error: Tensor, head: nn.Module | None) -> Tensor:
    """How much a difference of logits may be off because the state is, a sample."""
    place = [i for i, layer in enumerate(layers) if isinstance(layer, Equilibrium)]
    if not place:
        return torch.zeros(len(error), 1, dtype=torch.float64)
    cell = cast("Equilibrium", layers[place[0]]).cell
    if not isinstance(cell, AffineCell):
        raise NotCertifiableError(
            f"{type(cell).__name__} has no certified distance to equilibrium."
        )
    shape = cell.explicit().A.out_shape
    tail = majorise(nn.Sequential(*layers[place[0] + 1 :]), Site(tuple(shape)))
    most = float(_pairs(tail.apply(torch.ones(1, *shape, dtype=torch.float64))[0], head).amax())
    return error[:, None] * most
