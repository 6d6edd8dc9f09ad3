"""From modules to one equilibrium system: an open function, one rule a type."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from math import prod
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.blocks import INPUT, Block, BlockSystem, Link
from wellposed.certify.dual import Region
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.system import Neurons
from wellposed.core.activations import ReLU
from wellposed.core.network import Network
from wellposed.core.operators import Operator
from wellposed.core.scalar import Activation
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.normalise import Normalise

FORMED_LIMIT = 40_000_000  # entries of the largest matrix that is formed


@final
@dataclass(frozen=True, eq=False)
class Signal:
    """An affine function of the input and of the blocks so far.

    Args:
        shape: Of a value.
        links: Its linear part.
        offset: Flat, or `None` for zero.
        source: The block or input that it is, unchanged but for its shape; `None` otherwise.
    """

    shape: tuple[int, ...]
    links: tuple[Link, ...]
    offset: Tensor | None = None
    source: int | None = None


@final
class Builder:
    """Collects the blocks of a network."""

    def __init__(self, in_shape: tuple[int, ...]) -> None:
        self.in_shape = in_shape
        self.blocks: list[Block] = []
        self.activation: Activation | None = None
        self.scaling: Normalise | None = None
        self.exact = True

    def whole(self, source: int, shape: tuple[int, ...]) -> Signal:
        """The input or a block itself."""
        return Signal(shape, (Link(source, _same, _same, _same, 1),), None, source)

    def settle(self, signal: Signal) -> Signal:
        """The same value as the state of a block, so that a further map meets exact numbers."""
        return signal if signal.source is not None else self.block(signal, linear=True)

    def linear(self, signal: Signal, shape: tuple[int, ...], link: Link, offset: Tensor) -> Signal:
        """``M signal + offset`` for a link from the source of a settled signal."""
        bias = None if not bool(offset.any()) else offset.expand(shape).flatten()
        return Signal(shape, (link,), bias)

    def block(
        self,
        signal: Signal,
        *,
        linear: bool = False,
        feedback: Operator | None = None,
        metric: Tensor | None = None,
    ) -> Signal:
        """A new block whose preactivation is the signal, plus ``A z`` if there is feedback."""
        size = prod(signal.shape)
        bias = torch.zeros(size, dtype=torch.float64) if signal.offset is None else signal.offset
        flat = None if metric is None else metric.expand(signal.shape).flatten()
        self.blocks.append(Block(signal.shape, signal.links, bias, linear, feedback, flat))
        return self.whole(len(self.blocks) - 1, signal.shape)

    def use(self, activation: Activation, module: nn.Module) -> None:
        """Note the activation; a system has one."""
        if self.activation is not None and self.activation != activation:
            raise refuse(
                module,
                "",
                f"its activation is {activation.name} and an earlier layer's is "
                f"{self.activation.name}; linear bounds cover one activation a network",
                "use one activation throughout, or `wp.enclose` for interval bounds.",
            )
        self.activation = activation


@final
@dataclass(frozen=True, eq=False)
class Lowered:
    """A module as a system, and the way from its inputs and to its outputs.

    Args:
        system: The last block is the output itself: its neurons are identities.
        in_shape: Of one input of the module.
        scaling: The `Normalise` in front, which acts on regions rather than on weights.
        exact: Whether the weights are those of the module; else some are rounded, and only bounds
            that pay for it may be used.
        module: What was lowered.
    """

    system: BlockSystem
    in_shape: tuple[int, ...]
    scaling: Normalise | None
    exact: bool = True
    module: nn.Module | None = None

    @property
    def outputs(self) -> slice:
        """The output's neurons."""
        return self.system.slices[-1]

    def enter(self, region: Region) -> Region:
        """A region of the module's inputs as one of the system's, rounded outward.

        Args:
            region: A batch, shape (B, *in_shape).
        """
        if region.box.shape[1:] != self.in_shape:
            raise ShapeError(
                f"The region holds samples of shape {region.box.shape[1:]}, expected "
                f"{self.in_shape}.",
                hint="`box.unsqueeze()` makes a batch of one box.",
            )
        if self.scaling is not None:
            mean, std = self.scaling.mean.detach().double(), self.scaling.std.detach().double()
            region = region.normalised(mean.cpu(), std.cpu())
        return region.flatten()

    def network(self) -> Network:
        """The dense network with these weights, outputs read out of the last block.

        Raises:
            NotCertifiableError: Its matrix would be too large, or its weights are rounded.
        """
        if not self.exact:
            raise NotCertifiableError(
                "A layer's weights are no float64 numbers (the scale of a batch normalisation is a "
                "square root, averages of other than 2^k pixels divide): no matrix has them.",
                hint="linear bounds need none; for complete verification and certificate files "
                "replace the layer by a convolution, or fold it into its neighbour "
                "(`torch.nn.utils.fusion`), and verify the result.",
            )
        system = self.system
        n, at = system.n, self.outputs
        if n * (n + system.d) > FORMED_LIMIT:
            raise NotCertifiableError(
                f"The network has {n} neurons and {system.d} inputs; its matrix is not formed.",
                hint="linear bounds do not need it; complete verification and certificate files "
                "are for small networks.",
            )
        W, U = system.rows(torch.arange(n))
        keep = slice(0, at.start)
        return Network.of(
            W[keep, keep],
            U[keep],
            system.bias[keep],
            W[at, keep],
            system.bias[at],
            D=U[at],
            activation=system.neurons.activation,
            linear=system.neurons.linear[keep],
            metric=_metric(system.blocks[:-1]),
        )


@torch.no_grad()
def lower(module: nn.Module, in_shape: tuple[int, ...]) -> Lowered:
    """A module as one equilibrium system with the same outputs, weights taken as exact.

    Linear maps that follow each other are kept apart by neurons whose function is the identity, so
    that no product of weights is ever rounded. The scale of a batch normalisation is, and the
    result says so.

    Args:
        module: `nn.Sequential` of linear, pooling, elementwise and equilibrium layers, residual
            blocks, or one of them; in evaluation mode.
        in_shape: Shape of one input, without the batch.

    Raises:
        NotCertifiableError: A module has no rule; it is named.
        ShapeError: The layers do not fit `in_shape`.
    """
    builder = Builder(in_shape)
    signal = lower_module(module, builder.whole(INPUT, in_shape), builder)
    builder.block(signal, linear=True)
    function = Neurons(
        builder.activation or ReLU(),
        torch.cat([torch.full((b.size,), b.linear) for b in builder.blocks]),
    )
    system = BlockSystem(prod(in_shape), tuple(builder.blocks), function)
    return Lowered(system, in_shape, builder.scaling, builder.exact, module)


@singledispatch
def lower_rule(module: nn.Module, signal: Signal, builder: Builder) -> Signal:
    """The module's output as a signal; register a function on your own type.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(module, "", "no rule lowers this type to linear bounds")


def lower_module(module: nn.Module, signal: Signal, builder: Builder) -> Signal:
    """Apply the rule of a module after checking that it runs the code the rule describes."""
    check_genuine(module, lower_rule.registry, "")
    return lower_rule(module, signal, builder)


def _metric(blocks: tuple[Block, ...]) -> Tensor | None:
    """The hints of the blocks, with ones for blocks that have none."""
    if all(block.metric is None for block in blocks):
        return None
    ones = torch.ones(1, dtype=torch.float64)
    return torch.cat([(ones if b.metric is None else b.metric).expand(b.size) for b in blocks])


def _same(value: Tensor) -> Tensor:
    return value
