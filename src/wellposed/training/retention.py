"""Retention: a network's links pass features as strongly as those of a frozen teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.core.spectral import two_norm
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.effective import effective_operator
from wellposed.nn.link import Crossing, Link, watched_links
from wellposed.training.certified import Ramp
from wellposed.training.data import Examples
from wellposed.training.objective import Objective


class Strength(ABC):
    """A frozen value: what is compared at a link."""

    @abstractmethod
    def ratios(self, seen: Sequence[Crossing], teacher: nn.Module, inputs: Tensor) -> list[Tensor]:
        """``sigma_B / sigma_F`` of every link on the tape, with ``sigma_F`` taken as given.

        Args:
            seen: Crossings of the network's own pass, on the tape.
            teacher: In evaluation mode, without gradients.
            inputs: Of that pass.

        Returns:
            One tensor a link, of any shape; entries for which the teacher passes nothing are 1.
        """


@final
@dataclass(frozen=True)
class FeatureStrength(Strength):
    """Largest singular value of ``M = f_in f_out^T / (H W)``, features on both sides of a link [1].

    ``f_in`` is averaged down to the size ``H x W`` of ``f_out``. Power iterations start from the
    mean direction of the step before, which is a buffer of the network's own link.

    Args:
        steps: Multiplications with ``M^T M``.
        per_sample: One matrix a sample; otherwise one for the batch, the mean of them.

    Raises:
        ConfigError: `steps` is below 1.

    References:
        [1] Shang, Xu, Duan, Zong, Nie, Yan. Lipschitz continuity retained binary neural network.
        ECCV 2022, arXiv 2207.06540. There one multiplication of a vector that is not normalised.
    """

    steps: int = 5
    per_sample: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"`steps` must be at least 1, got {self.steps}.")

    @override
    def ratios(self, seen: Sequence[Crossing], teacher: nn.Module, inputs: Tensor) -> list[Tensor]:
        with torch.no_grad(), watched_links(teacher) as passes:
            teacher(inputs)
        out: list[Tensor] = []
        for own, other in zip(seen, passes.crossings, strict=True):
            with torch.no_grad():
                below = self._size(other, own.link, 1)
            above = self._size(own, own.link, 0)
            out.append(_ratio(above, below))
        return out

    def _size(self, crossing: Crossing, keeper: Link, row: int) -> Tensor:
        matrix = retention(crossing.source, crossing.target, per_sample=self.per_sample)
        start = keeper.directions[row].to(matrix.dtype)
        size, right = top_singular(matrix, start, self.steps)
        with torch.no_grad():
            # singular vectors have no sign of their own
            turned = right * torch.where(right @ start < 0, -1.0, 1.0).to(right)[:, None]
            mean = turned.mean(0)
            length = torch.linalg.vector_norm(mean)
            if bool(length.isfinite()) and float(length) > 1e-6:
                keeper.directions[row] = mean / length
        return size


@final
@dataclass(frozen=True, eq=False)
class WeightStrength(Strength):
    """2-norm of the linear map that a link's convolution and normalisation are together.

    Binary weights times their scale times the gain of the normalisation, on images of the size at
    hand; see `wellposed.nn.effective.effective_operator`. For zeros outside the image it is the
    norm of the circular convolution on a grid larger by half a kernel, a few parts in a hundred
    above on small images. The teacher is not run: its norms are found once for each size.
    """

    _known: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Tensor]] = field(
        default_factory=WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Tensor]],
        init=False,
        repr=False,
    )

    @override
    def ratios(self, seen: Sequence[Crossing], teacher: nn.Module, inputs: Tensor) -> list[Tensor]:
        links = [module for module in teacher.modules() if isinstance(module, Link)]
        known = self._known.setdefault(teacher, {})
        out: list[Tensor] = []
        for place, (own, other) in enumerate(zip(seen, links, strict=True)):
            height, width = own.source.shape[-2:]
            key = (place, height, width)
            if key not in known:
                with torch.no_grad():
                    known[key] = two_norm(effective_operator(other.body, (height, width)))
            above = two_norm(effective_operator(own.link.body, (height, width)))
            out.append(_ratio(above, known[key]))
        return out


@final
@dataclass(frozen=True, eq=False)
class RetentionLoss(Objective):
    """Another loss plus ``weight * sum_k beta^(k - K) mean (sigma_B^k / sigma_F^k - 1)^2``.

    ``k`` runs over the `Link` modules in their order, ``sigma_B`` is of the network, ``sigma_F`` of
    a teacher that never changes. The term has no scale: it does not depend on the size of the
    features, their number or that of the batch, and there is nothing in it that could be trained
    apart from the network. It is a regulariser; it bounds nothing.

    The reported training loss contains the term. Each network runs once a step.

    Args:
        base: The loss that is regularised; it must run the network exactly once.
        teacher: A network with as many links as the one that is trained; copied, and kept in
            evaluation mode without gradients.
        weight: Over the run; no term is taken while it is 0.
        strength: What is compared.
        beta: How much more a later link weighs, positive.

    Raises:
        ConfigError: An argument is out of range, or the two networks have other links.

    References:
        [1] Shang, Xu, Duan, Zong, Nie, Yan. Lipschitz continuity retained binary neural network.
        ECCV 2022, arXiv 2207.06540.
    """

    base: Objective
    teacher: nn.Module
    weight: Ramp
    strength: Strength = FeatureStrength()
    beta: float = 2.0

    def __post_init__(self) -> None:
        if min(self.weight.first, self.weight.last) < 0:
            raise ConfigError(f"`weight` must not be negative, got {self.weight}.")
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"`beta` must be positive and finite, got {self.beta}.")
        frozen = deepcopy(self.teacher).eval().requires_grad_(False)
        if not _widths(frozen):
            raise ConfigError(
                "The teacher has no `Link` whose features could be compared.",
                hint="wrap the parts to compare in `wellposed.nn.link.Link`.",
            )
        wrong = [name for name, value in _state(frozen) if not bool(value.isfinite().all())]
        if wrong:
            raise ConfigError(
                f"`{wrong[0]}` of the teacher holds NaN or infinity.",
                hint="train the teacher again; its training diverged.",
            )
        object.__setattr__(self, "teacher", frozen)

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        weight = self.weight(done)
        if not weight:
            return self.base.loss(model, inputs, labels, done)
        self._check_links(model)
        with watched_links(model) as passes:
            loss, logits = self.base.loss(model, inputs, labels, done)
        if len(passes.inputs) != 1:
            raise ConfigError(
                f"{type(self.base).__name__} runs the network {len(passes.inputs)} times a step; "
                "retention needs a loss that runs it once."
            )
        ratios = self.strength.ratios(passes.crossings, self.teacher, passes.inputs[0])
        factors = [self.beta ** (place + 1 - len(ratios)) for place in range(len(ratios))]
        terms = [f * (r - 1).square().mean() for f, r in zip(factors, ratios, strict=True)]
        return loss + weight * torch.stack(terms).sum().to(loss.dtype), logits

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return self.base.watched(model, held_out)

    def _check_links(self, model: nn.Module) -> None:
        own, other = _widths(model), _widths(self.teacher)
        if own != other:
            raise ConfigError(
                f"The links of the network have {own} channels and those of the teacher {other}; "
                "expected the same.",
                hint="build both from one section, the teacher with `binary = false`.",
            )


def retention(source: Tensor, target: Tensor, *, per_sample: bool = True) -> Tensor:
    """Matrices ``f_in f_out^T / (H W)``, shape (samples, channels in, channels out).

    Args:
        source: ``f_in``, shape (samples, channels, height, width) or (samples, channels).
        target: ``f_out``, likewise; `source` is averaged to its height and width.
        per_sample: Otherwise the mean over samples, as a batch of one matrix.

    Raises:
        ShapeError: The shapes do not go together.
    """
    if source.ndim != target.ndim or source.ndim not in (2, 4) or len(source) != len(target):
        raise ShapeError(
            f"Features of shapes {tuple(source.shape)} and {tuple(target.shape)} cannot be "
            "compared; expected two batches of images or two of vectors.",
            hint="a link must neither flatten its input nor change the number of samples.",
        )
    if source.ndim == 4 and source.shape[2:] != target.shape[2:]:
        source = F.adaptive_avg_pool2d(source, (target.shape[2], target.shape[3]))
    if source.ndim == 2:
        source, target = source[:, :, None], target[:, :, None]
    left, right = source.flatten(2), target.flatten(2)
    pixels = left.shape[2]
    if per_sample:
        return left @ right.mT / pixels
    return torch.einsum("bcp,bdp->cd", left, right)[None] / (pixels * len(left))


def top_singular(matrix: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Largest singular values by power iteration with vectors of length 1, from below.

    ``v <- M^T M v / |M^T M v|``; then ``u^T M v`` with ``u = M v / |M v|``, of which ``M`` alone is
    on the tape: the gradient is ``u v^T``.

    Args:
        matrix: ``M``, shape (batch, p, q).
        start: First ``v``, shape (q,) or (batch, q), of any positive length.
        steps: Multiplications with ``M^T M``.

    Returns:
        Values of shape (batch,), 0 for a matrix of zeros, and the last ``v``, shape (batch, q).
    """
    with torch.no_grad():
        held = matrix.detach()
        # vectors only: their squares must neither overflow nor vanish
        size = held.abs().amax((1, 2), keepdim=True)
        held = held / torch.where(size > 0, size, torch.ones_like(size))
        v = _unit(start.detach().to(held)).expand(len(held), -1)[:, :, None]
        for _ in range(steps):
            v = _unit(held.mT @ _unit(held @ v))
        u = _unit(held @ v)
    return (u.mT @ (matrix @ v))[:, 0, 0], v[:, :, 0]


def _unit(v: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(v, dim=-2 if v.ndim == 3 else -1, keepdim=True)
    return v / torch.where(length > 0, length, torch.ones_like(length))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient; 1, without a gradient, where the teacher passes nothing."""
    silent = below <= torch.finfo(below.dtype).tiny
    return torch.where(silent, torch.ones_like(above), above / torch.where(silent, 1.0, below))


def _widths(model: nn.Module) -> list[int]:
    return [m.directions.shape[1] for m in model.modules() if isinstance(m, Link)]


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(k, v) for k, v in model.state_dict().items() if v.is_floating_point()]
