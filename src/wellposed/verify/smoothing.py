"""Randomised smoothing of equilibrium networks: warm starts, and every sample's class proved.

The classifier that is smoothed is that of the exact equilibrium. A warm start only changes how the
equilibrium is approached, and a sample is counted for a class only after a bound of its own error
has proved the class; samples therefore stay independent and identically distributed, and no
correction for the solver is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.equilibria import (
    Fixed,
    Injection,
    gaps_near,
    inject,
    injected_error,
)
from wellposed.certify.lower import lower
from wellposed.certify.resolvent import Resolvent
from wellposed.certify.wellposed import Wellposed, wellposedness
from wellposed.core.network import Network
from wellposed.core.records import Record
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.normalise import Normalise
from wellposed.verify.binomial import proportion_lower

_FIRST = 4
"""Evaluations before the first proof is tried; doubled after each."""


@final
@dataclass(frozen=True)
class Smoothing:
    """How a classifier is smoothed.

    Args:
        sigma: Standard deviation of the noise, in units of the model's inputs.
        samples: For the estimate.
        selection: For the choice of the class.
        alpha: One minus the confidence of a radius.
        batch: Samples solved together.
        budget: Evaluations a sample; one whose class is not proved by then counts as an error.
        warm: Whether a batch starts at the equilibrium of the input itself.
    """

    sigma: float
    samples: int = 10_000
    selection: int = 100
    alpha: float = 1e-3
    batch: int = 1000
    budget: int = 512
    warm: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ConfigError(f"`sigma` must be positive and finite, got {self.sigma}.")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"`alpha` must lie in (0, 1), got {self.alpha}.")
        for name in ("samples", "selection", "batch", "budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


@final
@dataclass(frozen=True)
class Smoothed(Record):
    """What smoothing found for one input.

    Args:
        label: The class of the smoothed classifier; -1 if it abstains.
        radius: With confidence ``1 - alpha`` the class is the same within this 2-norm distance, in
            units of the model's inputs; 0 if it abstains.
        probability: Lower bound of the probability of the class under the noise.
        count: Samples proved to be of the class.
        samples: Of how many.
        proved: Part of them whose class was proved.
        evaluations: Mean number of evaluations a sample.
    """

    label: int
    radius: float
    probability: float
    count: int
    samples: int
    proved: float
    evaluations: float


@final
class SmoothedClassifier:
    """A dense network under Gaussian noise [1].

    Args:
        model: A module that can be lowered, in evaluation mode, or explicit weights.
        in_shape: Of one input.
        settings: The noise and the numbers of samples.

    Raises:
        NotCertifiableError: The model cannot be lowered, or is not shown to be well posed.
        ShapeError: The shape does not fit the model.

    References:
        [1] Cohen, Rosenfeld, Kolter. Certified adversarial robustness via randomized smoothing.
        ICML 2019, theorem 1 and section 3.2.
    """

    def __init__(
        self, model: nn.Module | Network, in_shape: tuple[int, ...], settings: Smoothing
    ) -> None:
        self.scaling: Normalise | None = None
        if isinstance(model, Network):
            self.network = model
        else:
            lowered = lower(model, in_shape)
            self.network, self.scaling = lowered.network(), lowered.scaling
        self.in_shape, self.settings = in_shape, settings
        self.wellposed: Wellposed = wellposedness(self.network)
        self.resolvent = Resolvent.of(self.network)

    @torch.no_grad()
    def certify(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> Smoothed:
        """The class of the smoothed classifier at `x` and a radius within which it is constant.

        Args:
            x: One input, of the shape `in_shape`.
            generator: Of the noise; torch's own by default.
            watch: Called with the number of samples done after each batch.

        Raises:
            ShapeError: `x` has another shape.
        """
        from scipy.special import ndtri

        if tuple(x.shape) != self.in_shape:
            raise ShapeError(f"The input has shape {tuple(x.shape)}, expected {self.in_shape}.")
        # counts for the choice and for the estimate come from separate samples
        some, _ = self._counts(x, self.settings.selection, generator, None)
        top = int(some[:-1].argmax())
        counts, evaluations = self._counts(x, self.settings.samples, generator, watch)
        count, total = int(counts[top]), self.settings.samples
        low = proportion_lower(count, total, self.settings.alpha)
        certain = low > 0.5
        return Smoothed(
            label=top if certain else -1,
            radius=self.settings.sigma * float(ndtri(low)) if certain else 0.0,
            probability=low,
            count=count,
            samples=total,
            proved=1 - int(counts[-1]) / total,
            evaluations=evaluations / total,
        )

    @torch.no_grad()
    def classify(self, x: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The proved class of each input, -1 where none is, and the evaluations spent on it.

        Args:
            x: Inputs of the model, shape (B, *in_shape).
            start: A state to start from, shape (n,); zero by default.
        """
        points = self._enter(x)
        into = inject(self.network, points)
        q = into.value
        u = torch.zeros_like(q)
        if start is not None:
            u = self.resolvent.point(start.expand_as(q), q)
        label = torch.full((len(x),), -1)
        spent = torch.zeros(len(x), dtype=torch.long)
        live, done, target = torch.arange(len(x)), 0, _FIRST
        while len(live) and done < self.settings.budget:
            target = min(target, self.settings.budget)
            for _ in range(target - done):
                u, _ = self.resolvent.advance(u, q)
            spent[live] = target
            done, target = target, 2 * target
            z = self.resolvent.state(u)
            guess, sure = self._prove(points, into, z)
            label[live[sure]] = guess[sure]
            keep = (~sure).nonzero().squeeze(1)
            live, u, points, into = live[keep], u[keep], points[keep], into.select(keep)
            q = into.value
        return label, spent

    def _prove(self, points: Tensor, into: Injection, z: Tensor) -> tuple[Tensor, Tensor]:
        """The class that the states show, and whether it is that of the equilibria."""
        error = injected_error(self.network, into, z, self.wellposed)
        guess = self.network.output(z, points).argmax(1)
        gaps = gaps_near(self.network, points, Fixed(z, error), guess).lower
        own = torch.nn.functional.one_hot(guess, self.network.q).bool()
        return guess, (gaps.masked_fill(own, 1.0) > 0).all(1)

    def _counts(
        self,
        x: Tensor,
        samples: int,
        generator: torch.Generator | None,
        watch: Callable[[int], None] | None,
    ) -> tuple[Tensor, int]:
        """How many samples are proved to be of each class; the last entry is those of none."""
        settings, q = self.settings, self.network.q
        middle = x.double()[None]
        start = None
        if settings.warm:
            start = self.resolvent.run(inject(self.network, self._enter(middle)).value)[0]
        counts, evaluations = torch.zeros(q + 1, dtype=torch.long), 0
        for first in range(0, samples, settings.batch):
            size = min(settings.batch, samples - first)
            noise = torch.randn(size, *self.in_shape, generator=generator, dtype=torch.float64)
            label, spent = self.classify(middle + settings.sigma * noise, start)
            counts += torch.bincount(torch.where(label < 0, q, label), minlength=q + 1)
            evaluations += int(spent.sum())
            if watch is not None:
                watch(first + size)
        return counts, evaluations

    def _enter(self, x: Tensor) -> Tensor:
        """Inputs in the network's coordinates, flat, float64."""
        x = x.double()
        if self.scaling is not None:
            x = (x - self.scaling.mean.double()) / self.scaling.std.double()
        return x.flatten(1)
