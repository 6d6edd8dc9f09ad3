"""A verdict with its evidence: boxes, multipliers and trees, from which a checker establishes it.

Nothing here judges a proof: making an invalid one is possible, and it is then rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.certify.wellposed import Wellposed
from wellposed.core.sets import Region
from wellposed.errors import ShapeError
from wellposed.verify.statement import Statement

FAR = 1e30
"""An end of a box that assumes nothing."""


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One stage of bounds on the preactivations.

    If ``v*`` lies in the box ``lower < v < upper`` at one input, and from the box and what is
    known follow bounds strictly inside of it, then these hold on the whole region. They follow by
    interval arithmetic, or from multipliers by cases. Ends of the box that are known already are
    not assumed.

    Args:
        lower: Of the box, shape (n,).
        upper: Likewise.
        neuron: Which preactivations are bounded by multipliers, shape (T,), integers.
        side: +1 where from below, -1 where from above, shape (T,), integers.
        tree: One tree for each of these bounds, one after the other, as in `Forest`, shape (M,).
        multiplier: ``p`` of every leaf, shape (K, n), float32 or float64; any value is sound.
    """

    lower: Tensor
    upper: Tensor
    neuron: Tensor
    side: Tensor
    tree: Tensor
    multiplier: Tensor

    @classmethod
    def of_intervals(cls, lower: Tensor, upper: Tensor) -> Step:
        """A box that interval arithmetic alone maps into its interior."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(lower, upper, none, none, none, torch.zeros(0, len(lower)))

    @classmethod
    def of_rows(cls, lower: Tensor, upper: Tensor, bounds: tuple[Tensor, Tensor, Tensor]) -> Step:
        """A box with bounds ``(neuron, side, multiplier)`` of one leaf each."""
        neuron, side, multiplier = bounds
        return cls(lower, upper, neuron, side, torch.full((len(neuron),), -1), multiplier)

    @classmethod
    def further(cls, neuron: Tensor, side: Tensor, multiplier: Tensor) -> Step:
        """Better bounds of one leaf each that follow from what is known."""
        far = torch.full((multiplier.shape[1],), FAR, dtype=torch.float64)
        return cls.of_rows(-far, far, (neuron, side, multiplier))

    @classmethod
    def of_sides(
        cls,
        box: tuple[Tensor, Tensor],
        neuron: Tensor,
        side: Tensor,
        trees: Sequence[tuple[Tensor, Tensor]],
    ) -> Step:
        """Some sides of a box, each with a tree and the multipliers of its leaves."""
        lower, upper = torch.full_like(box[0], -FAR), torch.full_like(box[1], FAR)
        for new, end, k in ((lower, box[0], 1), (upper, box[1], -1)):
            at = neuron[side == k]
            new[at] = end[at]
        tree, multiplier = (torch.cat(parts) for parts in zip(*trees, strict=True))
        return cls(lower, upper, neuron, side.long(), tree, multiplier)


@final
@dataclass(frozen=True, eq=False)
class Bounds:
    """Preactivation bounds with what proves them, in stages: the fields of a `Step` together.

    Args:
        lower: One box a stage, shape (S, n).
        upper: Likewise.
        neuron: Shape (T,), integers.
        side: Shape (T,), integers.
        stage: Shape (T,), integers from 0.
        tree: Shape (M,), integers.
        multiplier: Shape (K, n).
    """

    lower: Tensor
    upper: Tensor
    neuron: Tensor
    side: Tensor
    stage: Tensor
    tree: Tensor
    multiplier: Tensor

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Bounds:
        """All stages, of which the first must bound everything."""
        stage = [torch.full_like(step.neuron, k) for k, step in enumerate(steps)]
        # float64 only where a stage needs it
        return cls(
            torch.stack([step.lower for step in steps]),
            torch.stack([step.upper for step in steps]),
            torch.cat([step.neuron for step in steps]),
            torch.cat([step.side for step in steps]),
            torch.cat(stage),
            torch.cat([step.tree for step in steps]),
            torch.cat([step.multiplier for step in steps]),
        )


@final
@dataclass(frozen=True, eq=False)
class Forest:
    """One binary tree of case distinctions for each clause of the statement.

    Args:
        tree: The trees one after the other, each in preorder, shape (N,), integers: ``i >= 0``
            splits neuron ``i``, followed by the tree for ``v_i <= 0`` and then that for
            ``v_i >= 0``; ``-1`` is a leaf.
        multiplier: ``p`` of each leaf in order of appearance, shape (L, n), float32 or float64.
        mix: Nonnegative weights of the statement's rows at each leaf, shape (L, R), zero outside
            of the leaf's clause: the leaf proves that the weighted sum of the rows is positive,
            hence some row is. All zero proves that the case is empty.
    """

    tree: Tensor
    multiplier: Tensor
    mix: Tensor

    @classmethod
    def of_rows(cls, trees: Sequence[Tensor], multipliers: Sequence[Tensor]) -> Forest:
        """The forest of a statement whose clauses have one row each, such as a label's.

        Args:
            trees: One a clause, in preorder as above.
            multipliers: Of its leaves in order of appearance, shape (leaves, n).
        """
        counts = torch.tensor([len(p) for p in multipliers])
        clause = torch.arange(len(counts)).repeat_interleave(counts)
        mix = torch.nn.functional.one_hot(clause, len(counts)).double()
        return cls(torch.cat(list(trees)), torch.cat(list(multipliers)), mix)


@final
@dataclass(frozen=True, eq=False)
class Proof:
    """A verdict with its evidence: verified if it has bounds and a forest, else falsified.

    Args:
        digest: Of the network, from ``Network.digest``.
        region: Where the statement is claimed, a batch of one: shape (1, d) or (1, *shape).
        statement: On the outputs.
        wellposed: Witness of well-posedness.
        point: An input inside of the region, shape (d,): any, such as its centre; for a falsified
            statement the counter-example.
        anchor: The approximate equilibrium at `point`, shape (n,).
        bounds: On the preactivations over the region; `None` if falsified.
        forest: Proof of the statement; `None` if falsified.

    Raises:
        ShapeError: There are bounds without a forest, a forest without bounds, or not one region.
    """

    digest: str
    region: Region
    statement: Statement
    wellposed: Wellposed
    point: Tensor
    anchor: Tensor
    bounds: Bounds | None = None
    forest: Forest | None = None

    def __post_init__(self) -> None:
        if (self.bounds is None) != (self.forest is None):
            raise ShapeError("A proof has both bounds and a forest (verified), or neither.")
        if len(self.region.box.lower) != 1:
            raise ShapeError(
                f"A proof speaks about one region, a batch of shape (1, ...), got "
                f"{self.region.shape}."
            )
