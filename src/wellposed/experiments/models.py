"""From a model section to a network that takes pixels in [0, 1]."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from wellposed.cells.base import Cell
from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.monotone import MonotoneCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.errors import ConfigError
from wellposed.experiments import names
from wellposed.experiments.robust import Plain
from wellposed.experiments.sections import (
    InfNorm,
    Mlp,
    Monotone,
    Nemon,
    NemonConv,
    NemonDeep,
    Solve,
    Variant,
)
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise
from wellposed.solvers.base import Stopping
from wellposed.training.initialise import interval_initialise


def build_model(
    variant: Variant,
    *,
    shape: tuple[int, int, int],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
) -> nn.Sequential:
    """The network of a variant, with the scaling of the pixels as its first layer.

    Args:
        variant: Model and solver sections.
        shape: Channels, height and width of an image.
        classes: Logits.
        mean: One a channel.
        std: One a channel.
        seed: Of the initial weights; the global random state is left as it was.

    Raises:
        ConfigError: The sizes do not go together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(Normalise(mean, std), *_body(variant, shape, classes))
        if not isinstance(variant.robust, Plain) and variant.robust.initialise:
            interval_initialise(model)
        return model


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _body(variant: Variant, shape: tuple[int, int, int], classes: int) -> list[nn.Module]:
    section, inputs = variant.model, prod(shape)
    if isinstance(section, NemonConv):
        return _convolutional(section, variant.solve, shape, classes)
    if isinstance(section, NemonDeep):
        return _deep(section, variant.solve, shape, classes)
    front: list[nn.Module] = [nn.Flatten()]
    if section.dropout:
        front.append(nn.Dropout(section.dropout))
    n, readout = section.states, nn.Linear(section.states, classes)
    match section:
        case Mlp():
            return [*front, nn.Linear(inputs, n), nn.ReLU(), readout]
        case Nemon():
            phi = names.activation(section.activation)
            cell = NemonCell(inputs, n, margin=section.margin, activation=phi)
        case InfNorm():
            phi = names.activation(section.activation)
            cell = InfNormCell(inputs, n, bound=section.bound, activation=phi)
        case Monotone():
            phi = names.activation(section.activation)
            cell = MonotoneCell(inputs, n, margin=section.margin, activation=phi)
    return [*front, _layer(cell, variant.solve), readout]


def _convolutional(
    section: NemonConv, solve: Solve, shape: tuple[int, int, int], classes: int
) -> list[nn.Module]:
    channels, height, width = shape
    cell = NemonConv2d(
        channels,
        section.channels,
        image=(height, width),
        kernel=section.kernel,
        padding=section.padding,
        stride=section.stride,
        margin=section.margin,
        activation=names.activation(section.activation),
    )
    sides = [(side - 1) // section.stride + 1 for side in (height, width)]
    if any(side % section.pool for side in sides):
        raise ConfigError(
            f"`model.pool` is {section.pool}, which does not divide the state's sides {sides}.",
            hint="a remainder would be dropped: choose a divisor, or 1 for no pooling.",
        )
    features = section.channels * prod(side // section.pool for side in sides)
    pool = [nn.AvgPool2d(section.pool)] if section.pool > 1 else []
    return [_layer(cell, solve), *pool, nn.Flatten(), nn.Linear(features, classes)]


def _deep(
    section: NemonDeep, solve: Solve, shape: tuple[int, int, int], classes: int
) -> list[nn.Module]:
    channels, *sides = shape
    front: list[nn.Module] = []
    for out in section.channels:
        front += [
            nn.Conv2d(channels, out, section.kernel, section.stride, section.padding),
            nn.ReLU(),
        ]
        channels = out
        sides = [
            (side + 2 * section.padding - section.kernel) // section.stride + 1 for side in sides
        ]
    if min(sides) < 1:
        raise ConfigError(
            f"`model.channels` {section.channels} with kernel {section.kernel} and stride "
            f"{section.stride} leave nothing of an image of {shape[1]} x {shape[2]} pixels.",
            hint="use fewer convolutions, a smaller stride or more padding.",
        )
    phi = names.activation(section.activation)
    cell = NemonCell(channels * prod(sides), section.states, margin=section.margin, activation=phi)
    return [*front, nn.Flatten(), _layer(cell, solve), nn.Linear(section.states, classes)]


def _layer(cell: Cell, solve: Solve) -> Equilibrium:
    return Equilibrium(
        cell,
        solver=names.solver(solve.solver),
        gradient=names.gradient(solve.gradient),
        stopping=Stopping(solve.train_rtol, max_evaluations=solve.max_evaluations),
        eval_stopping=Stopping(solve.eval_rtol, max_evaluations=solve.max_evaluations),
    )
