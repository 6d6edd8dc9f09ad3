"""First preactivation bounds of a system of blocks: intervals, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.certify.blocks import INPUT, Block, BlockSystem
from wellposed.certify.box import equilibrium_box, value_slack
from wellposed.certify.dual import Region
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.sets import Box
from wellposed.core.spectra import outward, rounding


@torch.no_grad()
def interval_bounds(
    system: BlockSystem, region: Region, *, steps: int = 30, rtol: float = 1e-3
) -> Box:
    """Intervals that contain ``v*(x)`` for every input of each region, shape (B, n).

    A block's links are summed in centre and radius form; a block with feedback is the embedded
    network of `equilibrium_box`, sound after any number of steps. All is rounded outward.

    Args:
        system: The network.
        region: A batch of flat regions.
        steps: Of the box iteration, at most.
        rtol: At which it stops.

    Raises:
        NotCertifiableError: A block with feedback is no contraction in any weighted max norm.
    """
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    states: list[Box] = []
    for block, at in zip(system.blocks, system.slices, strict=True):
        box = _sums(block, region.box, states)
        low, high = box.lower, box.upper
        if block.feedback is not None:
            box = _equilibrium(system, block, box, steps, rtol)
            low, high = box.lower, box.upper
        lower.append(low)
        upper.append(high)
        states.append(_image(system, at, low, high))
    return Box(torch.cat(lower, 1), torch.cat(upper, 1))


def _sums(block: Block, region: Box, states: list[Box]) -> Box:
    """Bounds of the links and the bias of a block."""
    middle, spread = block.bias, block.bias.abs() * 0
    gamma = 2 * rounding(sum(link.terms + 2 for link in block.links) + 8)
    for link in block.links:
        source = region if link.source == INPUT else states[link.source]
        centre = source.centre
        middle = middle + link.apply(centre)
        # one product gives the spread and the rounding error of the centre at once
        reach = link.absolute(source.radius + gamma * centre.abs())
        spread = spread + outward(reach, link.terms)
    spread = outward(spread + gamma * (block.bias.abs() + middle.abs()), len(block.links) + 4)
    return Box(middle - spread, middle + spread)


def _equilibrium(system: BlockSystem, block: Block, box: Box, steps: int, rtol: float) -> Box:
    """Bounds of ``v = A z + s`` for sums ``s`` in a box."""
    assert block.feedback is not None
    shape = block.shape
    affine = Affine(
        block.feedback,
        _identity(block.feedback),
        torch.zeros([1] * len(shape), dtype=torch.float64),
        system.neurons.activation,
    )
    inputs = Box(box.lower.reshape(-1, *shape), box.upper.reshape(-1, *shape))
    return equilibrium_box(affine, inputs, steps=steps, rtol=rtol).preactivation.flatten()


def _identity(feedback: Operator) -> Operator:
    """The identity of the operator's space."""
    if isinstance(feedback, Convolution):
        eye = torch.eye(feedback.in_shape[0], dtype=torch.float64)[:, :, None, None]
        return Convolution(eye, feedback.image)
    return Dense(torch.eye(feedback.in_shape[0], dtype=torch.float64))


def _image(system: BlockSystem, at: slice, lower: Tensor, upper: Tensor) -> Box:
    """Bounds of the states of a block."""
    if bool(system.neurons.linear[at].all()):
        return Box(lower, upper)
    phi = system.neurons.activation
    low, high = phi.image(lower, upper)
    reach = torch.maximum(lower.abs(), upper.abs())
    return Box(low - value_slack(phi, reach, low), high + value_slack(phi, reach, high))
