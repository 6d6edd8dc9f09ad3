"""The nearest counter-example of an input, by bisection with proofs on both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Literal, final

import torch
from torch import Tensor, nn

from wellposed.attacks.gradient import PGD
from wellposed.core.records import Verdict
from wellposed.core.sets import Ball, Box, Region
from wellposed.core.spectra import UNIT, outward
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.problem import Budget
from wellposed.verify.verdicts import Tier

_HALVINGS = 12  # of the radius of an attack


@final
@dataclass(frozen=True)
class Radius:
    """The distance of the nearest counter-example.

    Args:
        lower: No counter-example within this radius; proved.
        upper: One within this radius; `inf` if none was met.
        witness: It, flat.
    """

    lower: float
    upper: float
    witness: tuple[float, ...] | None


@final
@dataclass(frozen=True)
class Bisection:
    """How the nearest counter-example of an input is searched.

    Args:
        task: The network.
        module: The same with gradients, for inputs in [0, 1]; `None` for no attack.
        norm: Of the distance.
        ends: The largest radius of interest, and the wanted width.
        domain: Smallest and largest value of an input.
        budget: Of branch and bound, for every radius that is tried.
    """

    task: Classifier
    module: nn.Module | None
    norm: Literal["max", "2"]
    ends: tuple[float, float]
    domain: tuple[float, float] | None
    budget: Budget

    def run(self, x: Tensor, y: Tensor) -> Radius:
        """The bracket of one input (1, *in_shape) with its label (1,)."""
        limit, tolerance = self.ends
        found = Radius(0.0, inf, None)
        centre = self._ask(x, y, 0.0)
        if centre.status != "verified":
            return self._nearer(found, x, centre.witness)
        near = self._attacked(x, y, limit)
        if near is not None:
            tried = verify(self.task, near, y, Box(near, near), until=Tier.ATTACK, domain=None)
            found = self._nearer(found, x, tried.verdicts[0].witness)
        ceiling = min(limit, found.upper)
        # from below: small radii are cheap, and without a counter-example large ones are not
        trial = ceiling / 2 if found.upper < inf else limit / 16
        while ceiling - found.lower > tolerance:
            verdict = self._ask(x, y, trial)
            if verdict.status == "verified":
                found = replace(found, lower=trial)
            elif verdict.status == "falsified":
                found = self._nearer(found, x, verdict.witness)
            ceiling = min(ceiling, found.upper, trial if verdict.status != "verified" else inf)
            # an undecided or refuted ceiling: halve; nothing in the way: double
            trial = (found.lower + ceiling) / 2
            if ceiling == limit and verdict.status == "verified":
                trial = min(limit, 2 * found.lower)
        return found

    def _ask(self, x: Tensor, y: Tensor, radius: float) -> Verdict:
        wide = x.detach().cpu().double()
        region: Region = Box(wide, wide)
        if radius and self.norm == "2":
            region = Ball(wide, radius) if self.domain is None else Ball(wide, radius, *self.domain)
        elif radius:
            around = Box.around(wide, radius)
            region = around if self.domain is None else around.clip(*self.domain)
        return verify(self.task, x, y, region, budget=self.budget, domain=self.domain).verdicts[0]

    def _nearer(self, found: Radius, x: Tensor, point: tuple[float, ...] | None) -> Radius:
        if point is None:
            return found
        way = (torch.tensor(point, dtype=torch.float64) - x.double().flatten()).abs()
        size = way.amax() if self.norm == "max" else outward(way.square().sum(), len(way)).sqrt()
        distance = float(size * (1 + 8 * UNIT)) if bool(way.any()) else 0.0
        return Radius(found.lower, distance, point) if distance < found.upper else found

    def _attacked(self, x: Tensor, y: Tensor, limit: float) -> Tensor | None:
        """The nearest point that projected gradient descent at falling radii meets; not proved."""
        if self.module is None:
            return None
        low, high, near = 0.0, limit, None
        for _ in range(_HALVINGS):
            radius = high if near is None else (low + high) / 2
            with torch.enable_grad():
                tried = PGD(self.norm, radius, random_start=False).attack(self.module, x, y)
            if bool(tried.success):
                near, high = tried.inputs.detach().cpu().double(), radius
            elif near is None:
                return None
            else:
                low = radius
        return near
