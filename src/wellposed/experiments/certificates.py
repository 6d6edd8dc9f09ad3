"""What is proved of a trained network, and the measured lower bounds that must stay below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from wellposed.attacks.pairs import lipschitz_lower
from wellposed.cells.base import AffineCell
from wellposed.cells.contractive import ContractiveCell
from wellposed.cells.contractive_conv import ContractiveConv2d
from wellposed.certify import bound_l0, bound_l1, bound_l2, bound_l3, contraction, lipschitz
from wellposed.certify.lipschitz import NormName
from wellposed.core.affine import Affine
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.operators import Dense
from wellposed.core.records import Certificate, Estimate, Record
from wellposed.errors import AuditError, NotCertifiableError
from wellposed.nn.binary import takes_signs
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise
from wellposed.verify.audit import audit

NORMS: tuple[NormName, ...] = ("max", "1", "2")


@final
@dataclass(frozen=True)
class Proved:
    """What could be proved of a network, and what could not.

    Args:
        records: Certificates.
        refused: Why there is none, by norm.
    """

    records: list[Record]
    refused: dict[str, str]


def certify_model(model: nn.Sequential, shape: tuple[int, ...]) -> Proved:
    """Lipschitz certificates from pixels to logits: the rules L0 to L3, then the composed bounds.

    Every norm stands for itself: a network that is no max-norm contraction may have a 2-norm bound.

    Args:
        model: In evaluation mode.
        shape: Of one input.
    """
    records: list[Record] = [*_published(model), *_factors(model)]
    refused: dict[str, str] = {}
    for norm in NORMS:
        try:
            records.append(lipschitz(model, norm_in=norm, in_shape=shape))
        except NotCertifiableError as error:
            refused[norm] = error.message
    return Proved(records, refused)


def _factors(model: nn.Sequential) -> list[Certificate]:
    """The contraction factor of every layer that is made to contract in the 2-norm."""
    kinds = (ContractiveCell, ContractiveConv2d)
    layers = [layer for layer in model if isinstance(layer, Equilibrium)]
    return [contraction(layer) for layer in layers if isinstance(layer.cell, kinds)]


def _published(model: nn.Sequential) -> list[Certificate]:
    """L0 to L3 of a dense equilibrium layer with its scaling and readout; empty for others."""
    layers = [layer for layer in model if not isinstance(layer, (nn.Flatten, nn.Dropout))]
    match layers:
        case [Normalise() as first, Equilibrium() as layer, nn.Linear() as last]:
            if not isinstance(layer.cell, AffineCell) or len(first.std) != 1:
                return []
            affine = _in_pixels(layer.cell.explicit(), first.std)
            readout = Dense(last.weight.detach().double())
            out: list[Certificate] = []
            for rule in (bound_l0, bound_l1, bound_l2, bound_l3):
                try:
                    out.append(rule(affine, readout))
                except NotCertifiableError:
                    continue  # an activation outside the rule's hypothesis; L3 covers more
            return out
        case _:
            return []


def _in_pixels(affine: Affine, std: Tensor) -> Affine:
    """The layer as a function of pixels; its input weights are rounded away from zero."""
    affine = affine.double()
    # three units in the last place cover the quotient and the product
    scale = (1 / float(std)) * (1 + 1e-15)
    return Affine(
        affine.A,
        affine.B.with_weight(affine.B.weight * scale),
        affine.bias,
        affine.activation,
        affine.witness,
        affine.feedback,
        affine.canonical_form,
    )


def estimate_model(model: nn.Sequential, images: Tensor, rounds: int = 2) -> list[Record]:
    """Attacked lower bounds of the Lipschitz constants that `certify_model` bounds from above.

    None of a network that takes signs: its derivatives are stand-ins.
    """
    if takes_signs(model):
        return []
    norms = (MaxNorm(), OneNorm(), TwoNorm())
    return [lipschitz_lower(model, images, norm_in=norm, rounds=rounds) for norm in norms]


def audit_records(records: Sequence[dict[str, Any]], title: str) -> int:
    """Every estimate must lie below every certificate; returns how many were compared.

    Raises:
        AuditError: One does not: the certificate or the estimate is wrong.
    """
    proved = [Certificate.from_dict(r) for r in records if r["record"] == "Certificate"]
    measured = [Estimate.from_dict(r) for r in records if r["record"] == "Estimate"]
    try:
        return len(audit(proved, measured).comparisons)
    except AuditError as error:
        raise AuditError(f"{title}: {error.message}", hint=error.hint) from error


def audit_curves(attacks: dict[str, Any], title: str) -> None:
    """No gradient attack may leave a network more accurate than it is on clean images.

    Raises:
        AuditError: One does.
    """
    highest = max(attacks["curves"]["pgd"]["accuracy"])
    # the curves are written with six digits
    if highest > attacks["clean"] + 1e-5:
        raise AuditError(
            f"{title}: the accuracy under PGD reaches {highest}, and that on clean images is "
            f"{attacks['clean']}.",
            hint="an attack may keep the clean image, so it can never do worse than that.",
        )
