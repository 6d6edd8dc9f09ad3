"""What is proved of a trained network, and the measured lower bounds that must stay below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify import bound_l0, bound_l1, bound_l2, bound_l3, lipschitz
from wellposed.core.affine import Affine
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.operators import Dense
from wellposed.core.records import Certificate, Estimate, Record
from wellposed.errors import AuditError, NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise
from wellposed.verify.audit import audit

_NORMS = ("max", "1", "2")


def certify_model(model: nn.Sequential, shape: tuple[int, ...]) -> list[Record]:
    """Lipschitz certificates from pixels to logits: the rules L0 to L3, then the composed bounds.

    Args:
        model: In evaluation mode.
        shape: Of one input.

    Raises:
        NotCertifiableError: Some layer has no rule.
    """
    out: list[Record] = list(_published(model))
    out += [lipschitz(model, norm_in=norm, in_shape=shape) for norm in _NORMS]  # pyright: ignore
    return out


def _published(model: nn.Sequential) -> list[Certificate]:
    """L0 to L3 of a dense equilibrium layer with its scaling and readout; empty for others."""
    layers = [layer for layer in model if not isinstance(layer, (nn.Flatten, nn.Dropout))]
    match layers:
        case [Normalise() as first, Equilibrium() as layer, nn.Linear() as last]:
            explicit = getattr(layer.cell, "explicit", None)
            if explicit is None or len(first.std) != 1:
                return []
            affine = _in_pixels(explicit(), first.std)
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
    """Attacked lower bounds of the Lipschitz constants that `certify_model` bounds from above."""
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
