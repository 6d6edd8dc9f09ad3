"""Rules for explicit Lipschitz layers: the matrix inequality, measured on their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wellposed.certify.box import value_slack
from wellposed.certify.chain import Chain
from wellposed.certify.enclose import enclose, enclose_rule
from wellposed.certify.gain import Gain, gain_of
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.majorant import Linear, Majorant, Slopes
from wellposed.certify.residual import Shortcut
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.core.spectra import UNIT
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.explicit import ExplicitLayer, Hidden


@torch.no_grad()
def layer_network(weights: Hidden) -> Network:
    """A layer as the equilibrium network with ``W = 0``, its weights embedded exactly."""
    n, d = weights.L.shape
    q = len(weights.K)
    return Network.of(
        torch.zeros(n, n),
        weights.L,
        weights.b,
        weights.K,
        torch.zeros(q),
        D=torch.eye(q, d) if weights.shortcut else None,
        activation=weights.activation,
        metric=weights.multiplier,
    )


@lipschitz_rule.register
def _layer(module: ExplicitLayer, site: Site) -> Majorant:
    weights = checked_weights(module, site.shape)
    body = Chain(
        [_absolute(weights.L), Slopes(weights.activation.steepest, (len(weights.L),)),
         _absolute(weights.K)],
        site.shape,
    )  # fmt: skip
    inner = Shortcut(body) if weights.shortcut else body
    try:
        return Gain(gain_of(layer_network(weights)), inner)
    except NotCertifiableError:
        return inner


@enclose_rule.register
def _layer_box(module: ExplicitLayer, box: Box) -> Box:
    weights = checked_weights(module, box.shape[1:])
    phi = weights.activation
    v = enclose(bare_linear(weights.L, weights.b), box)
    low, high = phi.image(v.lower, v.upper)
    reach = torch.maximum(v.lower.abs(), v.upper.abs())
    z = Box(low - value_slack(phi, reach, low), high + value_slack(phi, reach, high))
    y = enclose(bare_linear(weights.K), z)
    if not weights.shortcut:
        return y
    low, high = box.lower + y.lower, box.upper + y.upper
    return Box(low - 2 * UNIT * low.abs(), high + 2 * UNIT * high.abs())


@lower_rule.register
def _layer_lower(module: ExplicitLayer, signal: Signal, builder: Builder) -> Signal:
    weights = checked_weights(module, signal.shape)
    signal = builder.settle(signal)
    builder.use(weights.activation, module)
    state = builder.block(lower_module(bare_linear(weights.L, weights.b), signal, builder))
    out = lower_module(bare_linear(weights.K), state, builder)
    if not weights.shortcut:
        return out
    return Signal(out.shape, (*signal.links, *out.links), out.offset)


@infer_shape.register
def _shape(module: ExplicitLayer) -> tuple[int, ...]:
    return (module.explicit().L.shape[1],)


@torch.no_grad()
def checked_weights(module: ExplicitLayer, shape: tuple[int, ...]) -> Hidden:
    """The weights of a layer that takes inputs of a shape.

    Raises:
        ShapeError: It takes others.
        NotCertifiableError: A weight is NaN or infinite.
    """
    weights = module.explicit()
    if tuple(shape) != (weights.L.shape[1],):
        raise ShapeError(
            f"{type(module).__name__} takes inputs of shape ({weights.L.shape[1]},), got {shape}.",
            hint="put `nn.Flatten()` in front of it.",
        )
    for name in ("L", "b", "K"):
        if not bool(torch.isfinite(getattr(weights, name)).all()):
            raise NotCertifiableError(
                f"`{name}` of {type(module).__name__} holds NaN or infinity.",
                hint="training diverged; certify a checkpoint with finite weights.",
            )
    return weights


def _absolute(matrix: Tensor) -> Linear:
    size = matrix.detach().cpu().double().abs()
    return Linear(lambda v: v @ size.mT, (size.shape[1],), max(size.shape))


def bare_linear(matrix: Tensor, bias: Tensor | None = None) -> Any:
    """A linear layer that holds these very numbers."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, dtype=matrix.dtype)
    layer.weight = nn.Parameter(matrix.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer
