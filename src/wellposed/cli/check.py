"""``wellposed check``: establish a saved verdict again, by a program that shares no code."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from wellposed.core.network import Network
    from wellposed.verify.certificate import Proof


def check(certificate: Path, model: Path) -> None:
    """Check a certificate file against the weights that it speaks about.

    All bounds, cases and hypotheses are computed again in float64 with their rounding errors, by
    the module ``wellposed_check``, which needs numpy alone; ``python -m wellposed_check`` does the
    same without this library where MODEL is an .npz file of W, U, b, C, c.

    Args:
        certificate: Written by ``wellposed verify``.
        model: Weights: .npz, .safetensors, or a state-dict (.pt) with W, U, b, C, c.
    """
    import wellposed_check
    from wellposed.errors import NotCertifiableError
    from wellposed.verify.certificate import load_certificate
    from wellposed.verify.weights import export_network, load_network

    network = load_network(model)
    proof = load_certificate(certificate, network)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        export_network(network, weights)
        try:
            verdict, margin = wellposed_check.check(str(certificate), str(weights))
        except wellposed_check.RejectedError as error:
            raise NotCertifiableError(
                f"`{certificate}` is rejected: {error}.",
                hint="it does not prove what it says: verify the input again.",
            ) from error
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"accepted: {verdict}, with a margin of at least {abs(margin):.6g}", markup=False)
    console.print(_about(proof, network), markup=False)


def _about(proof: Proof, network: Network) -> str:
    """What was claimed, in words."""
    from wellposed.core.sets import Ball

    box, own = proof.region.box, proof.statement
    widest = float((box.upper - box.lower).max()) / 2
    kind = "box"
    if isinstance(proof.region, Ball):
        kind = f"2-norm ball of radius {float(proof.region.radius[0]):.6g}, within a box"
    goal = f"class {own.label} of {network.q}"
    if own.label is None:
        goal = f"{own.clauses} clauses of {len(own.rows)} output rows"
    cases = 0 if proof.forest is None else len(proof.forest.multiplier)
    return (
        f"statement: {goal}\nregion: {kind} of {network.d} inputs, half-widths up to {widest:.6g}"
        f"\ncases: {cases}\nnetwork: {network.n} neurons, digest {proof.digest[:16]}"
    )
