"""A verdict as a file: everything that an independent program needs to establish it again.

`wellposed_check` reads these files with numpy alone; docs/certificate-files.md states the format
and the theorem. Nothing here judges a proof: writing an invalid one is possible, and it is then
rejected by the checker.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wellposed.certify.wellposed import Wellposed, max_norm_margin
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import DataError, ShapeError
from wellposed.files.atomic import write_atomic
from wellposed.files.npz import arrays
from wellposed.verify.statement import Statement

FORMAT = 1
"""Version of the file format."""

SAFE = 0.99
"""Part of the margin that is written: the checker proves it by a method with a slack of its own."""

_ALWAYS = ("format", "digest", "lower", "upper", "point", "anchor")
_BOUNDS = ("multiplier", "neuron", "side", "stage")
_INTEGERS = ("format", "label", "clause", "bound_neuron", "bound_side", "bound_stage", "tree")


@final
@dataclass(frozen=True, eq=False)
class Bounds:
    """Preactivation bounds with the multipliers that prove them, in stages.

    Stage 0 proves containment: from the assumption ``lower <= v <= upper`` its rows prove bounds
    strictly inside, for every neuron and both sides; these replace the assumption. Each later
    stage uses the bounds of the one before, and may name any neurons.

    Args:
        lower: Of the box that is assumed in stage 0, shape (n,).
        upper: Likewise.
        multiplier: ``p``, one row a bound, shape (T, n), float32 or float64; any value is sound.
        neuron: Which preactivation is bounded, shape (T,), integers.
        side: +1 where the row bounds it from below, -1 from above, shape (T,), integers.
        stage: Shape (T,), integers from 0.
    """

    lower: Tensor
    upper: Tensor
    multiplier: Tensor
    neuron: Tensor
    side: Tensor
    stage: Tensor


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


def save_certificate(path: Path, proof: Proof) -> None:
    """Write a proof as an ``.npz`` file, atomically.

    Of the margin of well-posedness the part `SAFE` is written. A ball without a radius is written
    as the box of its centre.

    Raises:
        DataError: The file cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, **_pack(proof))  # pyright: ignore[reportArgumentType]
    write_atomic(path, content.getvalue())


def _pack(proof: Proof) -> dict[str, NDArray[Any]]:
    box, own = proof.region.box, proof.statement
    tensors = {
        "lower": box.lower[0].flatten(),
        "upper": box.upper[0].flatten(),
        "point": proof.point.double().flatten(),
        "anchor": proof.anchor.double(),
    }
    if isinstance(proof.region, Ball) and float(proof.region.radius[0]) > 0:
        ball = proof.region.flatten()
        tensors.update(centre=ball.centre[0], scale=ball.scale[0], radius=ball.radius[0])
    if own.label is not None:
        tensors["label"] = torch.tensor(own.label)
    else:
        tensors.update(rows=own.rows, offset=own.offset, clause=own.clause)
    if proof.wellposed.kind == "max-norm":
        tensors["eta"] = proof.wellposed.weights
    else:
        tensors["metric"] = proof.wellposed.weights
        tensors["modulus"] = torch.tensor(SAFE * proof.wellposed.margin, dtype=torch.float64)
    if proof.bounds is not None and proof.forest is not None:
        tensors["box_lower"], tensors["box_upper"] = proof.bounds.lower, proof.bounds.upper
        tensors.update({f"bound_{name}": getattr(proof.bounds, name) for name in _BOUNDS})
        tensors["tree"], tensors["leaf_mix"] = proof.forest.tree, proof.forest.mix.double()
        tensors["leaf_multiplier"] = proof.forest.multiplier
    packed: dict[str, NDArray[Any]] = {k: t.detach().cpu().numpy() for k, t in tensors.items()}
    for name in _INTEGERS:
        if name in packed:
            packed[name] = packed[name].astype(np.int64)
    return {"format": np.array(FORMAT), "digest": np.array(proof.digest)} | packed


def load_certificate(path: Path, network: Network) -> Proof:
    """The inverse of `save_certificate`; it reads and does not judge.

    Args:
        path: Of the file.
        network: That the certificate speaks about.

    Raises:
        DataError: The file is absent, damaged, of another version or about another network, or it
            lacks a field.
        ShapeError: Its fields do not fit together.
        ConfigError: Its label is no class of the network.
    """
    try:
        found = arrays(path.read_bytes(), str(path), _ALWAYS)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    version = found["format"]
    if version.size != 1 or version.item() != FORMAT:
        raise DataError(
            f"`{path}` has format {version.tolist()}, expected {FORMAT}.",
            hint="it was written by another version of this library.",
        )
    if str(found["digest"]) != network.digest():
        raise DataError(
            f"`{path}` speaks about the network with digest {str(found['digest'])[:16]}, expected "
            f"{network.digest()[:16]}.",
            hint="give the weights that it was made for.",
        )
    try:
        return _unpack(found, network)
    except KeyError as error:
        raise DataError(
            f"`{path}` lacks {error}; it holds {', '.join(sorted(found))}.",
            hint="it is no certificate, or a part of it was lost.",
        ) from error


def _unpack(found: Mapping[str, NDArray[Any]], network: Network) -> Proof:
    held = {k: torch.from_numpy(v.copy()) for k, v in found.items() if k != "digest"}
    lower, upper = held["lower"][None], held["upper"][None]
    region: Region = Box(lower, upper)
    if "radius" in held:
        c, r, scale = held["centre"][None], held["radius"][None], held["scale"][None]
        region = Ball(c, r, lower, upper, scale=scale)
    if "label" in held:
        statement = Statement.of_label(int(held["label"]), network.q)
    else:
        statement = Statement(held["rows"], held["offset"], held["clause"])
    if "eta" in held:
        wellposed = Wellposed("max-norm", held["eta"], max_norm_margin(network.W, held["eta"]))
    else:
        wellposed = Wellposed("monotone", held["metric"], float(held["modulus"]))
    proof = (str(found["digest"]), region, statement, wellposed, held["point"], held["anchor"])
    if "tree" not in held:
        return Proof(*proof)
    bounds = Bounds(
        held["box_lower"], held["box_upper"], *(held[f"bound_{name}"] for name in _BOUNDS)
    )
    return Proof(*proof, bounds, Forest(held["tree"], held["leaf_multiplier"], held["leaf_mix"]))
