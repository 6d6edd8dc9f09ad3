"""Gains of differences of logits on the tape: training towards a certificate in the 2-norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.certify.rules import elementwise_activation
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.normalise import Normalise
from wellposed.training.certified import Ramp
from wellposed.training.data import Examples
from wellposed.training.evaluation import predictions
from wellposed.training.objective import Objective
from wellposed.training.regulariser import Term


def logit_gains(model: nn.Module) -> Tensor:
    """Bounds of ``|d(y_t - y_j)| / ||dx||_2`` of a dense chain, differentiable; shape (q, q).

    ``P`` with ``dz dz^T <= ||dx||^2 P`` is carried through the chain: ``W P W^T`` through weights,
    and through an activation with slopes in [0, b]

        ``b^2 lambda ( 2 I - P / lambda )^-1,    lambda = lambda_max(P)``

    which is ECLipsE-Fast [1] from the input on; ``lambda I`` through a `GroupSort`. The gain of a
    pair is ``sqrt( P_tt + P_jj - 2 P_tj )``. Computed in the precision of the weights: what is
    certified is measured again by `wellposed.certify`, in float64 with its rounding.

    Args:
        model: `nn.Sequential` of `nn.Linear`, elementwise activations with slopes of at least 0,
            `GroupSort`, `MaxMin`, and in front `Normalise`, `nn.Flatten`, `nn.Dropout`.

    Raises:
        ConfigError: There is another module, or no linear layer.

    References:
        [1] Xu, Sivaranjani. ECLipsE. NeurIPS 2024, arXiv 2410.04375.
    """
    spread: Tensor | None = None
    scale: Tensor | None = None
    for layer in model if isinstance(model, nn.Sequential) else [model]:
        match layer:
            case nn.Flatten() | nn.Identity() | nn.Dropout():
                pass
            case Normalise() if spread is None and scale is None:
                scale = 1 / layer.std.flatten()
            case nn.Linear():
                weight = layer.weight
                if spread is None and scale is not None:
                    weight = weight * scale.repeat_interleave(weight.shape[1] // len(scale))
                spread = weight @ weight.mT if spread is None else weight @ spread @ weight.mT
            case GroupSort() | MaxMin() if spread is not None:
                spread = _top(spread) * _eye(spread)
            case _ if spread is not None:
                slope, top = _slope(layer), _top(spread)
                spread = slope**2 * top * torch.linalg.inv(2 * _eye(spread) - spread / top)
            case _:
                raise _unknown(layer)
    if spread is None:
        raise ConfigError(f"{type(model).__name__} has no linear layer, expected a dense chain.")
    own = spread.diagonal()
    squares = own[:, None] + own - 2 * spread
    # the root has no derivative at 0, where equal rows and the diagonal lie
    return squares.clamp(min=torch.finfo(spread.dtype).tiny).sqrt() * (1 - _eye(spread))


def _top(spread: Tensor) -> Tensor:
    # a network of zeros has no direction to divide by
    return torch.linalg.eigvalsh(spread)[-1].clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)


def _eye(spread: Tensor) -> Tensor:
    return torch.eye(len(spread), dtype=spread.dtype, device=spread.device)


def _slope(layer: nn.Module) -> float:
    try:
        low, high = elementwise_activation(layer, "").slopes
    except NotCertifiableError as error:
        raise _unknown(layer) from error
    if low < 0:
        raise ConfigError(f"{type(layer).__name__} has slopes down to {low:.3g}, expected >= 0.")
    return high


def _unknown(layer: nn.Module) -> ConfigError:
    return ConfigError(
        f"Gains on the tape need a dense chain, got {type(layer).__name__} in it.",
        hint="use `Flatten`, `Linear`, `ReLU`, `Sigmoid`, `Tanh`, `GroupSort` and the like.",
    )


@final
@dataclass(frozen=True)
class GainMarginLoss(Objective):
    """``CE( y + r G_label )``: logits that the worst point of a ball of radius ``r`` may have [1].

    ``G`` are `logit_gains`, so that a positive margin of these logits certifies the radius. With
    ``r = 0`` it is the clean cross entropy.

    Args:
        radius: In the 2-norm, in pixels, over the run.

    References:
        [1] Tsuzuku, Sato, Sugiyama. Lipschitz-margin training. NeurIPS 2018, arXiv 1802.04034.
    """

    radius: Ramp

    def __post_init__(self) -> None:
        if min(self.radius.first, self.radius.last) < 0:
            raise ConfigError(f"`radius` must not be negative, got {self.radius}.")

    @override
    def loss(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, done: float
    ) -> tuple[Tensor, Tensor]:
        logits, radius = model(inputs), self.radius(done)
        worst = logits + radius * logit_gains(model)[labels] if radius else logits
        return F.cross_entropy(worst, labels), logits

    @override
    def watched(self, model: nn.Module, held_out: Examples) -> dict[str, float]:
        return {"validation_certified": gain_accuracy(model, held_out, self.radius.last)}


@final
class LogitGain(Term):
    """``max_tj G_tj^2`` of `logit_gains`: what CLIP drives down, bounded from above.

    A pair of inputs bounds the Lipschitz constant from below and proves nothing; this bounds every
    difference of two logits from above.
    """

    @override
    def value(self, model: nn.Module) -> Tensor:
        return logit_gains(model).square().amax()

    @override
    @torch.no_grad()
    def figures(self, model: nn.Module) -> dict[str, float]:
        return {"logit_gain": float(logit_gains(model).amax())}


@torch.no_grad()
def gain_accuracy(model: nn.Module, examples: Examples, radius: float) -> float:
    """Part of the examples whose margins exceed ``radius G``, by training's own gains.

    A figure to watch, rounded like training; `wellposed.certify` certifies.
    """
    logits, labels = predictions(model, examples.inputs), examples.labels
    worst = logits + radius * logit_gains(model)[labels]
    own = worst.gather(1, labels[:, None])[:, 0]
    others = worst.scatter(1, labels[:, None], -torch.inf).amax(1)
    return float((own > others).double().mean())
