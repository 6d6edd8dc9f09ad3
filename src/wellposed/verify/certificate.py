"""A verdict as a file: everything that an independent program needs to establish it again.

`wellposed_check` reads these files with numpy alone; docs/certificate-files.md states the format
and the theorem. Nothing here judges a proof: writing an invalid one is possible, and it is then
rejected by the checker.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wellposed.certify.wellposed import Wellposed, max_norm_margin
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import DataError
from wellposed.files.atomic import write_atomic
from wellposed.files.npz import arrays
from wellposed.verify.proof import Bounds as Bounds
from wellposed.verify.proof import Forest as Forest
from wellposed.verify.proof import Proof as Proof
from wellposed.verify.statement import Statement

FORMAT = 2
"""Version of the file format."""

SAFE = 0.99
"""Part of the margin that is written: the checker proves it by a method with a slack of its own."""

_ALWAYS = ("format", "digest", "lower", "upper", "point", "anchor")
_BOUNDS = ("neuron", "side", "stage", "tree", "multiplier")
_INTEGERS = ("clause", "tree", "bound_neuron", "bound_side", "bound_stage", "bound_tree")


def save_certificate(path: Path, proof: Proof) -> None:
    """Write a proof as an ``.npz`` file, atomically.

    Of the margin of well-posedness the part `SAFE` is written. A ball without a radius is written
    as the box of its centre.

    Raises:
        DataError: The file cannot be written.
    """
    content = io.BytesIO()
    # multipliers of neurons that are off are zero, and there are many
    np.savez_compressed(content, **_pack(proof))  # pyright: ignore[reportArgumentType]
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
    statement = Statement.recognised(held["rows"], held["offset"], held["clause"])
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
