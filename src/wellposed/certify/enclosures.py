"""Enclosures of equilibria by a method of one's choice, or the one that the network admits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.certify import krawczyk as bare
from wellposed.certify.box import value_slack
from wellposed.certify.enclose import enclose as enclose_outputs
from wellposed.certify.fallback import checked, confirmed, lipschitz_box
from wellposed.certify.growth import Search
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.interval import interval_enclosure
from wellposed.certify.relax import neurons_of
from wellposed.certify.rules import infer_shape
from wellposed.certify.system import Neurons
from wellposed.certify.wellposed import Wellposed
from wellposed.certify.zonotope import Enclosure, zonotope_enclosure
from wellposed.core.boxes import Box
from wellposed.core.network import Network
from wellposed.core.operators import Dense
from wellposed.core.sets import Ball, Region
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium

_VACUOUS = 1e300
_CUBIC = 512  # up to this size an inverse a sample is cheap


class Method(ABC):
    """A way to enclose the equilibria of a network over regions of inputs."""

    @abstractmethod
    def enclose(self, network: Network, region: Region, wellposed: Wellposed | None) -> Enclosure:
        """The enclosure.

        Args:
            network: The network.
            region: Inputs, flat, shape (B, d).
            wellposed: A witness, if one is at hand; checked against the weights.

        Raises:
            NotCertifiableError: The hypothesis of the method fails.
        """


@final
@dataclass(frozen=True)
class Interval(Method):
    """Boxes iterated from outside: max-norm contractions only, sound at any step.

    Args:
        steps: At most; 0 gives the image of the Lipschitz box.
    """

    steps: int = 100

    @override
    def enclose(self, network: Network, region: Region, wellposed: Wellposed | None) -> Enclosure:
        found = interval_enclosure(network, region, steps=self.steps)
        witness = None if wellposed is None else confirmed(network, wellposed)
        box = _meet(found, lipschitz_box(network, region, witness))
        proved = torch.ones(region.shape[0], dtype=torch.bool)
        return Enclosure(box, proved, proved.clone(), self.steps, "interval")


@final
@dataclass(frozen=True)
class Zonotope(Method):
    """Boxes that contain their closed-form zonotope: any well-posed network.

    Intersected with the interval box where that exists.

    Args:
        search: How long.
    """

    search: Search = field(default_factory=Search)

    @override
    def enclose(self, network: Network, region: Region, wellposed: Wellposed | None) -> Enclosure:
        neurons_of(network)
        witness = confirmed(network, wellposed)
        found = zonotope_enclosure(network, region, witness, search=self.search)
        if witness.kind != "max-norm":
            return found
        box = _meet(found.preactivation, interval_enclosure(network, region))
        return Enclosure(box, found.contained, found.unique, found.steps, found.method)


@final
@dataclass(frozen=True)
class Krawczyk(Method):
    """Boxes that prove existence, and mostly uniqueness: any network, well posed or not.

    A row that is not contained has the Lipschitz box if `wellposed` was given, else a vacuous one.

    Args:
        search: How long.
    """

    search: Search = field(default_factory=Search)

    @override
    def enclose(self, network: Network, region: Region, wellposed: Wellposed | None) -> Enclosure:
        found = bare.krawczyk(network, region, search=self.search)
        lower, upper, unique = found.box.lower, found.box.upper, found.unique
        if wellposed is None:
            base = Box(torch.full_like(lower, -_VACUOUS), torch.full_like(upper, _VACUOUS))
        else:
            base, unique = lipschitz_box(network, region, wellposed), torch.ones_like(unique)
        proved = found.exists[:, None]
        lower = torch.where(proved, torch.maximum(lower, base.lower), base.lower)
        upper = torch.where(proved, torch.minimum(upper, base.upper), base.upper)
        return Enclosure(Box(lower, upper), found.exists, unique, found.steps, "krawczyk")


@final
@dataclass(frozen=True)
class Automatic(Method):
    """By the witness: zonotope (intervals above 512 neurons), zonotope, or Krawczyk.

    In this order for a max-norm witness, a monotone one, and none at all.
    """

    @override
    def enclose(self, network: Network, region: Region, wellposed: Wellposed | None) -> Enclosure:
        try:
            witness = confirmed(network, wellposed)
            neurons_of(network)
        except NotCertifiableError:
            if wellposed is not None:
                raise
            return Krawczyk().enclose(network, region, None)
        if witness.kind == "max-norm" and network.n > _CUBIC:
            return Interval().enclose(network, region, witness)
        return Zonotope().enclose(network, region, witness)


@overload
def enclose(
    subject: Network,
    region: Region,
    method: Method | None = None,
    *,
    wellposed: Wellposed | None = None,
) -> Enclosure: ...
@overload
def enclose(
    subject: nn.Module, region: Region, method: Method, *, wellposed: Wellposed | None = None
) -> Enclosure: ...
@overload
def enclose(subject: nn.Module, region: Box) -> Box: ...
def enclose(
    subject: Network | nn.Module,
    region: Region,
    method: Method | None = None,
    *,
    wellposed: Wellposed | None = None,
) -> Enclosure | Box:
    """Enclose what a network does on every input of a region, rounding included.

    Args:
        subject: A `Network`, an equilibrium layer or cell with dense weights, or, without
            `method`, any module that has box rules.
        region: A batch of boxes or balls; flat for a `Network`.
        method: `Interval`, `Zonotope`, `Krawczyk` or `Automatic`. Absent: `Automatic` for a
            `Network`, and for a module its box rules.
        wellposed: A witness of the network, if one is at hand.

    Returns:
        Bounds of the preactivations; or, for a module without `method`, a box of its outputs.

    Raises:
        NotCertifiableError: A hypothesis of the method fails, or a module has no rule.
        ShapeError: The region does not fit.
    """
    if not isinstance(region, Box | Ball):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(f"`region` must be a Box or a Ball, got {type(region).__name__}.")
    if isinstance(subject, nn.Module):
        if method is None:
            return enclose_outputs(subject, region.box)
        subject = network_of(subject)
        region = region.flatten()
    region = checked(subject, region)
    return (method or Automatic()).enclose(subject, region, wellposed)


def network_of(layer: nn.Module) -> Network:
    """The network whose outputs are the states of a dense equilibrium layer or cell.

    Raises:
        NotCertifiableError: The layer is none, runs other code, or is no matrix.
    """
    check_genuine(layer, infer_shape.registry, "")
    cell = layer.cell if isinstance(layer, Equilibrium) else layer
    if not isinstance(cell, AffineCell):
        raise refuse(cell, "", "it is no equilibrium layer with an affine cell")
    check_genuine(cell, infer_shape.registry, "")
    affine = cell.explicit()
    if not (isinstance(affine.A, Dense) and isinstance(affine.B, Dense)):
        raise refuse(cell, "", "its weights are no matrices",
                     "ask for `enclose(layer, box)`, which never forms the matrix.")  # fmt: skip
    weight = affine.A.weight.detach().double()
    n = len(weight)
    own = torch.zeros(n) if affine.feedback is None else affine.feedback.detach()
    return Network.of(
        weight + torch.diag(own.double().expand(n)),
        affine.B.weight,
        affine.bias.detach().expand(n),
        torch.eye(n),
        torch.zeros(n),
        activation=affine.activation,
    )


def states(network: Network, preactivation: Box) -> Box:
    """Bounds of ``z = phi(v)`` from bounds of ``v``, rounded outward."""
    lower, upper = preactivation.lower.double(), preactivation.upper.double()
    low, high = Neurons(network.activation, network.linear).image(lower, upper)
    reach = torch.maximum(lower.abs(), upper.abs())

    def slack(value: Tensor) -> Tensor:
        return value_slack(network.activation, reach, value)

    return Box(low - slack(low), high + slack(high))


def _meet(a: Box, b: Box) -> Box:
    """The intersection of two proved boxes."""
    return Box(torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper))
