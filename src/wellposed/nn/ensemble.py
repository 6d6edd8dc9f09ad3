"""The mean of several monotone Lipschitz networks as one network of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from wellposed.errors import ConfigError
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import MonotoneResidual
from wellposed.nn.vector_norm import Kind, constrain, vector_norm_of

_BLOCKWISE = (GroupSort, MaxMin, nn.ReLU, nn.Tanh, nn.Hardtanh, nn.Identity)


@torch.no_grad()
def mean_network(networks: Sequence[MonotoneResidual]) -> MonotoneResidual:
    """One network that says the mean of what K networks of the same architecture say.

    With ``g_k = W_k^n phi( ... W_k^1 x)`` the mean is

        ``1/K [W_1^n ... W_K^n] phi( diag(W_1^j, ..., W_K^j) ... [W_1^1; ...; W_K^1] x )``,

    a network K times as wide whose layers keep the same budgets: rows are only put below each
    other, or beside zeros, and a row of the last layer is the mean of K rows. Hence it is
    order-monotone and has the same constant by construction, can be trained further, and `order`
    proves it like any other: a mean of networks costs no new rule. Outputs are those of the mean
    up to rounding.

    Args:
        networks: Equal in signs, constant, and layers; bodies are sequences of dense layers, the
            first bounded from any norm to the max norm, the others from max to max.

    Raises:
        ConfigError: There are none, they differ, or a layer is none of these.
    """
    if not networks:
        raise ConfigError("The mean of no networks was asked for.")
    first = networks[0]
    for k, net in enumerate(networks):
        if net.constant != first.constant or not torch.equal(net.signs, first.signs):
            raise ConfigError(
                f"Network {k} has other signs or another constant ({net.constant:g}) than network "
                f"0 ({first.constant:g}): their mean is none of this class."
            )
    columns = list(zip(*(_layers(net) for net in networks), strict=False))
    if any(len(_layers(net)) != len(columns) for net in networks):
        raise ConfigError("The networks have different numbers of layers.")
    dense = [k for k, parts in enumerate(columns) if isinstance(parts[0], nn.Linear)]
    if not dense:
        raise ConfigError("There is no dense layer in the networks.")
    layers = [
        _joined(parts, first=k == dense[0], last=k == dense[-1])
        if k in dense
        else _activation(parts)
        for k, parts in enumerate(columns)
    ]
    mean = MonotoneResidual(nn.Sequential(*layers), first.signs, first.constant)
    mean.signs = first.signs.clone()  # in its own dtype, on its own device
    return mean


def _layers(net: MonotoneResidual) -> list[nn.Module]:
    if not isinstance(net.body, nn.Sequential):
        raise ConfigError(f"The body is a {type(net.body).__name__}, expected `nn.Sequential`.")
    return list(net.body)


def _joined(parts: Sequence[nn.Module], *, first: bool, last: bool) -> nn.Linear:
    """The layer of the mean: rows below each other, blocks, or the mean of rows."""
    bounds = {_bound(part, first=first) for part in parts}
    shapes = {tuple(part.weight.shape) for part in parts if isinstance(part, nn.Linear)}
    if len(bounds) > 1 or len(shapes) > 1:
        raise ConfigError(f"The networks differ in a layer: bounds {bounds}, shapes {shapes}.")
    ((kind, budget, pinned),) = bounds
    weights = [part.weight for part in parts if isinstance(part, nn.Linear)]
    biases = [_bias(part) for part in parts if isinstance(part, nn.Linear)]
    if first and last:
        weight = torch.stack(weights).mean(0)
    elif first:
        weight = torch.cat(weights)
    elif last:
        weight = torch.cat(weights, 1) / len(parts)
    else:
        weight = torch.block_diag(*weights)
    bias = torch.stack(biases).mean(0) if last else torch.cat(biases)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    # the mean of pinned rows is shorter than they are, and must stay so
    return constrain(layer, kind, budget, pinned=pinned and not last, restart=False)


def _bound(part: nn.Module, *, first: bool) -> tuple[Kind, float, bool]:
    norm = vector_norm_of(part)
    if not isinstance(part, nn.Linear) or norm is None or norm.fixed is None:
        raise ConfigError(
            f"Expected a dense layer with a fixed budget, got {type(part).__name__}.",
            hint="learned budgets differ from network to network.",
        )
    if norm.kind == "1->1" or (norm.kind != "max->max" and not first):
        raise ConfigError(
            f"A layer is bounded {norm.kind}, expected max->max"
            f"{', 1->max or 2->max' if first else ' behind the first layer'}: columns of layers "
            "put below each other have a larger sum.",
        )
    return norm.kind, norm.fixed, norm.pinned


def _bias(part: nn.Linear) -> Tensor:
    """The bias, zero where there is none: torch's annotation leaves None out."""
    own = cast("Tensor | None", part.bias)
    return part.weight.new_zeros(len(part.weight)) if own is None else own


def _activation(parts: Sequence[nn.Module]) -> nn.Module:
    """What acts on the blocks side by side as on each."""
    one = parts[0]
    if any(repr(part) != repr(one) for part in parts):
        raise ConfigError(
            f"The networks differ in an activation: {[repr(part) for part in parts]}."
        )
    if isinstance(one, GroupSort) and one.n_groups is not None:
        return GroupSort(n_groups=len(parts) * one.n_groups, dim=one.dim)
    if isinstance(one, _BLOCKWISE):
        return deepcopy(one)
    raise ConfigError(
        f"A {type(one).__name__} between the layers is not known to act on blocks side by side.",
        hint="expected sorting, ReLU, Tanh, Hardtanh or nothing.",
    )
