"""Boxes of outputs: an open function over modules, one rule a type."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import nn

from wellposed.certify.guard import check_genuine, refuse
from wellposed.core.sets import Box


@singledispatch
def enclose_rule(module: nn.Module, box: Box) -> Box:
    """A batch of boxes that contains the outputs of every input of a batch of boxes.

    Register a function on your own module type; round outward, in float64.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(
        module,
        "",
        "no box rule is registered for this type",
        hint="register one with `@wellposed.certify.enclose_rule.register`, or ask for a bound "
        "without `region`.",
    )


def enclose(module: nn.Module, box: Box) -> Box:
    """A box that contains the outputs of every input of `box`, rounding included.

    Args:
        module: As for `lipschitz`.
        box: A batch of boxes, shape (batch, *in_shape).

    Returns:
        A batch of boxes in float64.

    Raises:
        NotCertifiableError: Some module has no rule, or its rule's hypothesis fails.
    """
    check_genuine(module, enclose_rule.registry, "")
    with torch.no_grad():
        inside = Box(box.lower.detach().double().cpu(), box.upper.detach().double().cpu())
        return enclose_rule(module, inside)


@enclose_rule.register
def _sequential(module: nn.Sequential, box: Box) -> Box:
    for child in module:
        box = enclose(child, box)
    return box
