"""Networks of several layers as one equilibrium system, without forming its matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.adjoint import PeacemanRachford, contracts, jacobi
from wellposed.certify.system import Neurons, System
from wellposed.core.operators import Dense, Operator
from wellposed.core.spectra import outward, perron

INPUT = -1


@final
@dataclass(frozen=True, eq=False)
class Link:
    """A linear map from the input or from a block to a block; arguments are flat batches.

    Args:
        source: `INPUT` or the number of an earlier block.
        apply: ``z -> M z``, from (N, size of the source) to (N, size of the block).
        adjoint: ``p -> M^T p``.
        absolute: ``z -> |M| z`` for nonnegative z.
        terms: At least as many as the products in a component of ``M z`` or ``M^T p``.
    """

    source: int
    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    terms: int


@final
@dataclass(frozen=True, eq=False)
class Block:
    """``v = A z + sum of links + b``, ``z = phi(v)``; feed-forward if there is no ``A``.

    Args:
        shape: Of a state.
        links: From the input and from earlier blocks.
        bias: ``b``, flat.
        linear: Whether ``phi`` is the identity here.
        feedback: ``A``, float64.
        metric: What `Affine.metric` says about it, flat; a hint.
    """

    shape: tuple[int, ...]
    links: tuple[Link, ...]
    bias: Tensor
    linear: bool
    feedback: Operator | None = None
    metric: Tensor | None = None

    @property
    def size(self) -> int:
        """Neurons."""
        return prod(self.shape)

    def couple(self, p: Tensor) -> Tensor:
        """``A^T p``."""
        assert self.feedback is not None
        return self.feedback.adjoint(p.reshape(-1, *self.shape)).flatten(1)

    @cached_property
    def own(self) -> Tensor:
        """The diagonal of ``A``, flat."""
        assert self.feedback is not None
        return self.feedback.diagonal().expand(self.shape).flatten()

    @cached_property
    def contracts(self) -> bool:
        """Whether the canonical map of ``A`` contracts in some weighted max norm."""
        assert self.feedback is not None
        off = self.feedback.off_diagonal()
        return contracts(self.own, lambda gain: perron(off, gain.reshape(self.shape)).factor)

    @cached_property
    def splitting(self) -> PeacemanRachford:
        """The adjoint iteration where the map does not contract."""
        assert self.feedback is not None
        return PeacemanRachford.of(self.feedback.materialise())

    def adjoint(self, row: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """The adjoint equilibrium of this block alone."""
        if self.feedback is None:
            return torch.where(row >= 0, below, above) * row
        if self.contracts or not isinstance(self.feedback, Dense):
            off, shape = self.feedback.off_diagonal(), self.shape

            def pull(p: Tensor, r: Tensor) -> Tensor:
                return off.adjoint(p.reshape(-1, *shape)).flatten(1) + r

            return jacobi(pull, self.own, row, below, above)
        return self.splitting(row, below, above)


@final
@dataclass(frozen=True, eq=False)
class BlockSystem(System):
    """A network of blocks, each fed by the input, by earlier blocks and by itself.

    Args:
        inputs: Length of the flat input.
        blocks: In order.
        function: ``phi``, with the identities marked.
    """

    inputs: int
    blocks: tuple[Block, ...]
    function: Neurons

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each block's neurons lie."""
        ends = torch.tensor([b.size for b in self.blocks]).cumsum(0).tolist()
        return tuple(slice(end - b.size, end) for end, b in zip(ends, self.blocks, strict=True))

    @property
    @override
    def n(self) -> int:
        return self.slices[-1].stop

    @property
    @override
    def d(self) -> int:
        return self.inputs

    @cached_property
    def _bias(self) -> Tensor:
        return torch.cat([b.bias for b in self.blocks])

    @property
    @override
    def bias(self) -> Tensor:
        return self._bias

    @property
    @override
    def neurons(self) -> Neurons:
        return self.function

    @property
    @override
    def terms(self) -> int:
        own = sum(0 if b.feedback is None else b.feedback.weight.numel() for b in self.blocks)
        return 4 + own + sum(link.terms + 1 for b in self.blocks for link in b.links)

    @override
    def pull(self, p: Tensor) -> tuple[Tensor, Tensor]:
        z, x = torch.zeros_like(p), p.new_zeros(len(p), self.d)
        for block, at in zip(self.blocks, self.slices, strict=True):
            self._spread(block, p[:, at], z, x)
            if block.feedback is not None:
                z[:, at] += block.couple(p[:, at])
        return z, x

    def _spread(self, block: Block, p: Tensor, z: Tensor, x: Tensor) -> None:
        """Add what the links of a block send back to their sources."""
        for link in block.links:
            target = x if link.source == INPUT else z[:, self.slices[link.source]]
            target += link.adjoint(p)

    @override
    def reach(self, z: Tensor, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for block, at in zip(self.blocks, self.slices, strict=True):
            total = z.new_zeros(len(z), block.size)
            for link in block.links:
                total = total + link.absolute(
                    x if link.source == INPUT else z[:, self.slices[link.source]]
                )
            if block.feedback is not None:
                state = z[:, at].reshape(-1, *block.shape)
                total = total + block.feedback.absolute().apply(state).flatten(1)
            parts.append(total)
        return outward(torch.cat(parts, 1), self.terms)

    @override
    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        unit = torch.zeros(len(index), self.n, dtype=torch.float64)
        unit[torch.arange(len(index)), index] = 1
        return self.pull(unit)

    @override
    def adjoint(self, row: Tensor, below: Tensor, above: Tensor) -> Tensor:
        lam, x = row.clone(), row.new_zeros(len(row), self.d)
        p = torch.zeros_like(row)
        # a block is reached only from later ones: one pass from the last to the first
        for block, at in reversed(list(zip(self.blocks, self.slices, strict=True))):
            p[:, at] = block.adjoint(lam[:, at], below[:, at], above[:, at])
            self._spread(block, p[:, at], lam, x)
        return p
