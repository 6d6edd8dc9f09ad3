"""A classifier prepared for verification: a system, bounds of its neurons, rows of its margins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.assume import crown_enclosure
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.composed import composed_gains
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.interval import interval_enclosure, loop_of
from wellposed.certify.loop import Loop
from wellposed.certify.lower import Lowered, lower
from wellposed.certify.points import Points
from wellposed.certify.system import System
from wellposed.certify.wellposed import Wellposed, wellposedness
from wellposed.certify.zonotope import zonotope_enclosure
from wellposed.core.network import Network
from wellposed.core.sets import Box, Region
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.verify.two_norm import better_gains

DENSE_LIMIT = 1500  # neurons up to which a network is used as a matrix
CUBIC = 200  # neurons up to which a linear system an input is cheap


@final
@dataclass(frozen=True, eq=False)
class Classifier:
    """Logits of a network over regions of its inputs.

    Args:
        system: What is bounded.
        lowered: How a module became the system; `None` for a `Network`.
        network: The same as matrices; `None` if it is too large, has no states
            or its weights are rounded.
        in_shape: Of one input.
        classes: Logits.
        witness: That the dense network is well posed; `None` if there is no dense network.
    """

    system: System
    lowered: Lowered | None
    network: Network | None
    in_shape: tuple[int, ...]
    classes: int
    witness: Wellposed | None = None

    @staticmethod
    def of(model: nn.Module | Network, in_shape: tuple[int, ...], *, least: int = 2) -> Classifier:
        """Prepare a model once for any number of inputs.

        Args:
            model: A module with rules for all its layers, in evaluation mode, or explicit weights.
            in_shape: Of one input, without the batch.
            least: Fewest outputs that make sense.

        Raises:
            NotCertifiableError: A layer has no rule (it is named), or nothing shows that the
                network is well posed.
            ShapeError: The layers do not fit `in_shape`.
        """
        if isinstance(model, Network):
            if in_shape != (model.d,):
                raise ShapeError(f"The network has {model.d} inputs, got samples of {in_shape}.")
            return _dense(model, None, in_shape)
        lowered = lower(model, in_shape)
        outputs = lowered.system.blocks[-1]
        if len(outputs.shape) != 1 or outputs.size < least:
            raise ShapeError(
                f"The model's outputs have shape {outputs.shape}, expected a vector of {least} or "
                "more."
            )
        stateless = len(lowered.system.blocks) == 1  # as matrices it would have no neurons at all
        if stateless or lowered.system.n > DENSE_LIMIT or not lowered.exact:
            return Classifier(lowered.system, lowered, None, in_shape, outputs.size)
        return _dense(lowered.network(), lowered, in_shape)

    @property
    def wellposed(self) -> Wellposed:
        """A verified witness that the dense network is well posed.

        Raises:
            NotCertifiableError: There is no dense network.
        """
        if self.witness is None:
            raise NotCertifiableError("The network has no exact matrix here, hence no witness.")
        return self.witness

    def pair_gains(self, scale: Tensor) -> Tensor | None:
        """Proved 2-norm gains of all differences of logits; searched once for a scale and kept.

        Args:
            scale: What inputs are divided by before the dense network, shape (d,).

        Returns:
            Shape (classes, classes), or `None` for a network that is not shown to be monotone. Of
            a network that is too large for matrices they are those of its layers, composed.
        """
        key = scale.numpy().tobytes()
        if key not in self._gains and self.network is None:
            found = self._composed(scale)
            finite = found is not None and bool(torch.isfinite(found).all())
            self._gains[key] = found if finite else None
        if key not in self._gains and self.network is not None:
            start = self.wellposed.weights if self.wellposed.kind == "monotone" else None
            try:
                composed = self._composed(scale)
                self._gains[key] = better_gains(self.network, composed, start, scale=scale)
            except NotCertifiableError:
                self._gains[key] = None
        return self._gains.get(key)

    def _composed(self, scale: Tensor) -> Tensor | None:
        """Gains by the bounds of the layers, for balls that are round in the model's inputs."""
        if self.lowered is None or self.lowered.module is None:
            return None
        scaling = self.lowered.scaling
        std = torch.ones(1) if scaling is None else scaling.std.detach().cpu()
        round_ones = std.double().expand(self.in_shape).flatten()
        if not torch.allclose(scale, round_ones, rtol=1e-14, atol=0.0):
            return None
        slack = 1 + 1e-12  # the scale was rounded on its way here
        return composed_gains(self.lowered.module, self.in_shape, self.classes) * slack

    @cached_property
    def points(self) -> Points | None:
        """Proved outputs at single points of a network without matrices; `None` without a proof."""
        if self.network is not None or self.lowered is None:
            return None
        try:
            return Points(self.lowered)
        except NotCertifiableError:
            return None

    @cached_property
    def _gains(self) -> dict[bytes, Tensor | None]:
        return {}

    def enter(self, region: Region) -> Region:
        """A batch of regions of inputs in the system's coordinates."""
        if self.lowered is not None:
            return self.lowered.enter(region)
        if region.box.shape[1:] != self.in_shape:
            raise ShapeError(
                f"The region holds samples of shape {region.box.shape[1:]}, expected "
                f"{self.in_shape}."
            )
        return region

    def leave(self, x: Tensor) -> Tensor:
        """Inputs (N, *in_shape) whose images are near the points (N, d) of the system."""
        x = x.reshape(-1, *self.in_shape)
        scaling = None if self.lowered is None else self.lowered.scaling
        return x if scaling is None else x * scaling.std.double() + scaling.mean.double()

    def scope(self, region: Region) -> Scope:
        """First preactivation bounds over regions in the system's coordinates, all of them proved.

        A max-norm contraction has boxes iterated from outside. Any other network has boxes grown
        from a point, by zonotopes and where these fail by fixed-point CROWN, or the Lipschitz box.
        """
        box = self._intervals(region)
        if box is None:
            assert self.network is not None
            assert isinstance(self.system, DenseSystem)
            found = zonotope_enclosure(self.network, region, self.wellposed)
            box, left = found.preactivation, (~found.contained).nonzero()[:, 0]
            # the anchor of the second method is proved for one kink an activation only
            if len(left) and self.branches:
                grown, proved = crown_enclosure(self.system, region.select(left), self.wellposed)
                lower, upper, at = box.lower.clone(), box.upper.clone(), left[proved]
                lower[at] = torch.maximum(lower[at], grown.lower[proved])
                upper[at] = torch.minimum(upper[at], grown.upper[proved])
                box = Box(lower, upper)
        return Scope.of(self.system, region, box)

    def _intervals(self, region: Region) -> Box | None:
        """Boxes iterated from outside; `None` if the network is no max-norm contraction."""
        if self.lowered is not None and self._contracts:
            box = interval_bounds(self.lowered.system, region)
            keep = slice(0, self.system.n)  # the dense network reads its outputs elsewhere
            return Box(box.lower[:, keep], box.upper[:, keep])
        if self.network is not None and self._contracts:
            return interval_enclosure(self.network, region, steps=30, rtol=1e-3, loop=self._loop)
        return None

    @cached_property
    def _loop(self) -> Loop:
        assert self.network is not None
        return loop_of(self.network)

    @cached_property
    def _contracts(self) -> bool:
        if self.network is None:
            return True  # its blocks say so, or refuse by name
        return self.wellposed.kind == "max-norm"

    @property
    def branches(self) -> bool:
        """Whether branch and bound applies: dense, and piecewise linear with one kink."""
        return self.network is not None and self.system.neurons.kink is not None

    def guess(self, x: Tensor) -> Tensor | None:
        """Predicted classes of points (N, d) of the system; `None` where that is not cheap."""
        net = self.network
        if net is None or not (self.branches or net.n <= CUBIC):
            return None
        if self.branches:
            z = equilibrium(net, x, self.wellposed).z
        else:
            z = net.phi(approximate_equilibrium(net, x))
        return net.output(z, x).argmax(1)

    def rows(self, labels: Tensor) -> Rows:
        """``y_label - y_j`` for every other class, shape (B * (classes - 1), ...)."""
        count = self.classes - 1
        label = labels.repeat_interleave(count)
        other = torch.arange(count).repeat(len(labels))
        other = other + (other >= label)
        if self.network is not None:
            net = self.network
            direct = net.D[label] - net.D[other] if bool(net.D.any()) else None
            # a difference is rounded by one unit, which the slack of `dual_bound` covers
            return Rows(net.C[label] - net.C[other], direct, net.c[label] - net.c[other])
        assert self.lowered is not None
        first = self.lowered.outputs.start
        row = torch.zeros(len(label), self.system.n, dtype=torch.float64)
        at = torch.arange(len(label))
        row[at, first + label] = 1
        row[at, first + other] = -1
        return Rows(row, None, torch.zeros(len(label), dtype=torch.float64))


def _dense(network: Network, lowered: Lowered | None, in_shape: tuple[int, ...]) -> Classifier:
    witness = wellposedness(network)
    metric = witness.weights if witness.kind == "monotone" else None
    return Classifier(DenseSystem(network, metric), lowered, network, in_shape, network.q, witness)
