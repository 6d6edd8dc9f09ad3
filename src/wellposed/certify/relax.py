"""Parallel-line relaxations of activations: ``phi(v) = s v + c + mu eta`` with ``|eta| <= 1``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.dual import inner
from wellposed.certify.system import Neurons
from wellposed.core.network import Network
from wellposed.core.spectra import TINY, UNIT
from wellposed.errors import NotCertifiableError

_LINE = 8 * UNIT  # relative error of a difference of two lines


@final
@dataclass(frozen=True, eq=False)
class Relaxation:
    """Two parallel lines around ``phi`` on an interval, one pair a neuron.

    Args:
        slope: ``s``, in [0, 1], shape (B, n).
        centre: ``c``, halfway between the lines.
        radius: ``mu >= 0``, rounded up; zero on one side of a kink.
    """

    slope: Tensor
    centre: Tensor
    radius: Tensor


def neurons_of(network: Network) -> Neurons:
    """The activations of a network, identity neurons among them.

    Raises:
        NotCertifiableError: A slope lies outside [0, 1], which the witnesses of well-posedness do
            not cover.
    """
    low, high = network.activation.slopes
    if low < 0 or high > 1:
        raise NotCertifiableError(
            f"`{network.activation.name}` has slopes in [{low:.4g}, {high:.4g}], expected [0, 1].",
            hint="`Krawczyk` boxes need no hypothesis on the activation.",
        )
    return Neurons(network.activation, network.linear)


def relax(neurons: Neurons, lower: Tensor, upper: Tensor) -> Relaxation:
    """The relaxation of DeepZ [1] on the intervals ``[lower, upper]``, rounding included.

    One kink, ``phi(v) = max(v, a v)``: the slope of the chord, and the line through the origin
    below it; the offsets are those of the *computed* slope. Other activations: the slope of the
    chord, and offsets from the range of slopes on parts of the interval. Beyond the interval the
    same lines bound the continuation of ``phi`` with slope ``s``.

    References:
        [1] Singh, Gehr, Mirman, Pueschel, Vechev. Fast and effective robustness certification.
        NeurIPS 2018.
    """
    found = (
        _smooth(neurons, lower, upper)
        if neurons.kink is None
        else _kinked(neurons.kink, lower, upper)
    )
    # identity neurons need no line but themselves
    zero = torch.zeros_like(found.centre)
    return Relaxation(
        torch.where(neurons.linear, 1.0, found.slope),
        torch.where(neurons.linear, zero, found.centre),
        torch.where(neurons.linear, zero, found.radius),
    )


def _kinked(kink: Tensor, lower: Tensor, upper: Tensor) -> Relaxation:
    low, high = torch.maximum(lower, kink * lower), torch.maximum(upper, kink * upper)
    width = (upper - lower).clamp(min=TINY)
    chord = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, kink, (high - low) / width))
    slope = chord.clamp(0, 1)
    at_low, at_high = low - slope * lower, high - slope * upper
    error = _LINE * (slope * (lower.abs() + upper.abs()) + low.abs() + high.abs())
    # on one side of the kink phi(v) = s v with this very s
    error = torch.where((lower >= 0) | (upper <= 0), 0.0, error)
    inside = (lower < 0) & (upper > 0)
    bottom, top = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    bottom = torch.where(inside, bottom.clamp(max=0), bottom)
    top = torch.where(inside, top.clamp(min=0), top)
    return _between(slope, bottom - error, top + error)


def _smooth(neurons: Neurons, lower: Tensor, upper: Tensor) -> Relaxation:
    width = upper - lower
    low, high = neurons(lower), neurons(upper)
    slope = ((high - low) / width.clamp(min=TINY)).clamp(0, 1)
    flattest, steepest = neurons.slope_range(lower, upper)
    slope = slope.maximum(flattest.clamp(0, 1)).minimum(steepest.clamp(0, 1))
    one = torch.ones_like(slope)
    bottom = inner(neurons, one, slope, lower, upper)
    return _between(slope, bottom, -inner(neurons, -one, -slope, lower, upper))


def _between(slope: Tensor, bottom: Tensor, top: Tensor) -> Relaxation:
    centre = bottom / 2 + top / 2
    radius = torch.maximum(top - centre, centre - bottom) * (1 + 4 * UNIT)
    return Relaxation(slope, centre, radius.clamp(min=0))
