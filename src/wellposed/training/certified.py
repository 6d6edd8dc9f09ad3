"""Losses that make a network certifiable: interval, small-box and convex-mix."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.errors import ConfigError
from wellposed.training.crown import crown_margins
from wellposed.training.data import Examples
from wellposed.training.interval import Interval, around, margin_bounds
from wellposed.training.objective import Objective


@final
@dataclass(frozen=True)
class Ramp:
    """``first`` until the part `begin` of a run, linear to ``last`` at `end`, then constant.

    Args:
        first: Value at the start.
        last: Value at the end.
        begin: Part of the run, in [0, 1].
        end: Part of the run, not below `begin`.
    """

    first: float
    last: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= 1:
            raise ConfigError(
                "A ramp needs 0 <= begin <= end <= 1 (parts of the run), got "
                f"begin = {self.begin}, end = {self.end}."
            )

    def __call__(self, done: float) -> float:
        """The value when the part `done` of the run is over."""
        if done >= self.end:
            return self.last
        if done <= self.begin:
            return self.first
        part = (done - self.begin) / (self.end - self.begin)
        return self.first + part * (self.last - self.first)


def worst_case(margins: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the logits ``-m_j``, ``m_y = 0``: an upper bound of that of any point.

    Args:
        margins: Lower bounds ``m_j`` of ``logit_y - logit_j``, shape (batch, classes).
        labels: ``y``.
        label_smoothing: Part of the target that is spread over all classes.
    """
    return F.cross_entropy(-margins, labels, label_smoothing=label_smoothing)


@torch.no_grad()
def box_accuracy(model: nn.Sequential, examples: Examples, eps: float, batch: int = 500) -> float:
    """Part of the examples whose margins stay positive over the box by training's own intervals.

    A figure to watch, rounded like training: the certified accuracy is that of
    `wellposed.certify.box_margins`.
    """
    before = model.training
    model.eval()
    try:
        right = 0
        for x, y in zip(examples.inputs.split(batch), examples.labels.split(batch), strict=True):
            margins = margin_bounds(model, around(x, eps), y)
            right += int((margins.scatter(1, y[:, None], torch.inf).amin(1) > 0).sum())
        return right / len(examples)
    finally:
        model.train(before)


@dataclass(frozen=True)
class _Boxed(Objective):
    """A loss over boxes around the inputs, in pixels.

    Args:
        eps: Radius in the max norm; boxes are cut to [0, 1].
    """

    eps: Ramp

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return {"validation_boxes": box_accuracy(chain(model), held_out, self.eps.last)}


@dataclass(frozen=True)
class _Mixed(_Boxed):
    """``(1 - kappa) CE(f(x)) + kappa CE(-m)`` with margins ``m`` of its own.

    Args:
        eps: Radius in the max norm; boxes are cut to [0, 1].
        kappa: Weight of the worst case.
    """

    kappa: Ramp

    @abstractmethod
    def margins(self, net: nn.Sequential, inputs: Tensor, labels: Tensor, done: float) -> Tensor:
        """Lower bounds of ``logit_y - logit_j``, on the tape, shape (batch, classes)."""

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        net, kappa = chain(model), self.kappa(done)
        with torch.set_grad_enabled(kappa < 1):
            logits = net(inputs)
        clean = F.cross_entropy(logits, labels)
        if kappa == 0:
            return clean, logits
        return _mix(clean, self.margins(net, inputs, labels, done), labels, kappa), logits


def _mix(clean: Tensor, margins: Tensor, labels: Tensor, weight: float) -> Tensor:
    return (1 - weight) * clean + weight * worst_case(margins, labels)


@final
@dataclass(frozen=True)
class IntervalLoss(_Mixed):
    """``(1 - kappa) CE(f(x)) + kappa CE(-m)`` with margins ``m`` of the box around ``x`` [1].

    With ``eps = 0`` and exact solves both terms are the clean cross entropy.

    Args:
        eps: Radius in the max norm, in pixels; the box is cut to [0, 1].
        kappa: Weight of the worst case.

    References:
        [1] Gowal et al. On the effectiveness of interval bound propagation for training verifiably
        robust models. 2018. arXiv 1810.12715.
    """

    @override
    def margins(self, net: nn.Sequential, inputs: Tensor, labels: Tensor, done: float) -> Tensor:
        return margin_bounds(net, around(inputs, self.eps(done)), labels)


@final
@dataclass(frozen=True)
class CrownIntervalLoss(_Mixed):
    """`IntervalLoss` with margins ``beta m_linear + (1 - beta) m_box`` [1].

    The tighter linear bound leads early, the cheap one that is certified late: let `beta` fall.

    Args:
        eps: Radius in the max norm, in pixels; the box is cut to [0, 1].
        kappa: Weight of the worst case.
        beta: Weight of the linear bound.

    References:
        [1] Zhang et al. Towards stable and efficient training of verifiably robust neural
        networks. ICLR 2020. arXiv 1906.06316.
    """

    beta: Ramp

    @override
    def margins(self, net: nn.Sequential, inputs: Tensor, labels: Tensor, done: float) -> Tensor:
        beta, box = self.beta(done), around(inputs, self.eps(done))
        if beta <= 0:
            return margin_bounds(net, box, labels)
        boxes, linear = crown_margins(net, box, labels)
        return beta * linear + (1 - beta) * boxes


@final
@dataclass(frozen=True)
class SmallBoxLoss(_Mixed):
    """``(1 - kappa) CE(f(x)) + kappa CE(-m)`` over a small box around an attacked point [1].

    The attack moves ``x`` within ``eps - tau``, ``tau = part eps``; the box of radius ``tau``
    around the result lies inside that of radius ``eps`` around ``x``. Less regularising than the
    whole box; certify such a network by linear bounds. ``part = 1`` is `IntervalLoss`.

    Args:
        eps: Radius in the max norm, in pixels; boxes are cut to [0, 1].
        kappa: Weight of the worst case.
        part: ``tau / eps``, in (0, 1].
        steps: Of the attack.

    References:
        [1] Mueller, Eckert, Fischer, Vechev. Certified training: small boxes are all you need.
        ICLR 2023. arXiv 2210.04871.
    """

    part: float = 0.4
    steps: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise ConfigError(f"`part` must lie in (0, 1], got {self.part}.")

    @override
    def margins(self, net: nn.Sequential, inputs: Tensor, labels: Tensor, done: float) -> Tensor:
        eps = self.eps(done)
        tau = self.part * eps
        middle = attacked(net, inputs, labels, eps - tau, self.steps)
        return margin_bounds(net, around(middle, tau), labels)


@final
@dataclass(frozen=True)
class ConvexMixLoss(_Boxed):
    """``(1 - alpha) CE(f(x')) + alpha CE(-m)``: attacked point and whole box [1].

    ``alpha`` runs from the attacked loss, which bounds the worst case from below, to the interval
    loss, which bounds it from above.

    Args:
        eps: Radius in the max norm, in pixels; boxes are cut to [0, 1].
        alpha: Weight of the interval term.
        steps: Of the attack.

    References:
        [1] De Palma et al. Expressive losses for verified robustness via convex combinations. ICLR
        2024. arXiv 2305.13991.
    """

    alpha: Ramp
    steps: int = 4

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        net, alpha, eps = chain(model), self.alpha(done), self.eps(done)
        moved = attacked(net, inputs, labels, eps, self.steps)
        with torch.set_grad_enabled(alpha < 1):
            found = F.cross_entropy(net(moved), labels)
        with torch.no_grad():
            logits = net(inputs)
        if alpha == 0:
            return found, logits
        margins = margin_bounds(net, around(inputs, eps), labels)
        return _mix(found, margins, labels, alpha), logits


def attacked(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """A point of the box where the cross entropy is large: signed gradient ascent, random start.

    Args:
        model: From pixels to logits; its mode and gradients are left alone.
        inputs: Pixels in [0, 1].
        labels: Classes.
        eps: Radius; the inputs themselves for 0.
        steps: Of length ``2.5 eps / steps``.
    """
    if eps <= 0 or steps < 1:
        return inputs
    box = around(inputs, eps)
    x = _within(inputs + (2 * torch.rand_like(inputs) - 1) * eps, box)
    for _ in range(steps):
        x.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        x = _within(x.detach() + 2.5 * eps / steps * slope.sign(), box)
    return x


def _within(x: Tensor, box: Interval) -> Tensor:
    return torch.minimum(torch.maximum(x, box.lower), box.upper)


def chain(model: nn.Module) -> nn.Sequential:
    """The model as layers in a row.

    Raises:
        ConfigError: It is something else.
    """
    if type(model) is not nn.Sequential:
        raise ConfigError(
            f"Certified training needs an `nn.Sequential`, got {type(model).__name__}.",
            hint="its last layer is folded into the margins, so the layers must be known.",
        )
    return model
