"""Refusal by name: nobody is certified by a rule that describes another module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from wellposed.cells.base import Cell
from wellposed.errors import NotCertifiableError


def refuse(module: nn.Module, path: str, why: str, hint: str = "") -> NotCertifiableError:
    """The error for a module that no rule covers; names the module and says what to do."""
    where = f"`{path}` ({type(module).__name__})" if path else type(module).__name__
    return NotCertifiableError(
        f"{where} cannot be certified: {why}.",
        hint=hint
        or "register a rule for the type, `@wellposed.certify.lipschitz_rule.register` (its "
        "docstring has an example), or certify the part of the network around it.",
    )


def check_genuine(module: nn.Module, registry: Mapping[Any, Callable[..., Any]], path: str) -> None:
    """Check that the module runs the code that its registered rule describes.

    Raises:
        NotCertifiableError: A subclass or an instance replaced ``forward``, or hooks are attached.
    """
    kind, owner = type(module), _owner(module, registry)
    if owner is None:
        return  # the default of the open function refuses
    if "forward" in vars(module) or getattr(kind, "forward", None) is not getattr(
        owner, "forward", None
    ):
        raise refuse(
            module, path, f"it replaces the `forward` of {owner.__name__}, whose rule would apply"
        )
    if vars(module)["_forward_hooks"] or vars(module)["_forward_pre_hooks"]:
        raise refuse(
            module,
            path,
            "it carries forward hooks, which may change what it computes",
            hint="remove the hooks first (`torch.nn.utils.parametrize` needs none).",
        )
    if isinstance(module, Cell) and (
        "bind" in vars(module) or type(module).bind is not getattr(owner, "bind", None)
    ):
        raise refuse(module, path, "it replaces `bind`, so `explicit()` need not be what runs")


def check_owner(
    module: nn.Module,
    layer: nn.Module,
    owner: Cell,
    registry: Mapping[Any, Callable[..., Any]],
    path: str,
) -> None:
    """Check that a network's layer runs the cell that owns the readout's weights, and rules' code.

    Raises:
        NotCertifiableError: It runs another cell, or a part was replaced.
    """
    for part in (layer, owner):
        check_genuine(part, registry, f"{path}.layer".lstrip("."))
    if getattr(layer, "cell", None) is not owner:
        raise refuse(module, path, "its layer runs another cell than the one that owns the readout")


def has_rule(module: nn.Module, registry: Mapping[Any, Callable[..., Any]]) -> bool:
    """Whether an open function has a rule for the type of a module."""
    return _owner(module, registry) is not None


def _owner(module: nn.Module, registry: Mapping[Any, Callable[..., Any]]) -> type | None:
    """The type whose rule applies to a module."""
    kinds = type(module).__mro__
    return next((c for c in kinds if c in registry and c not in (object, nn.Module)), None)


def check_eval(module: nn.Module, path: str) -> None:
    """Refuse a module whose training mode computes something else.

    Raises:
        NotCertifiableError: The module is in training mode.
    """
    if module.training:
        raise refuse(
            module,
            path,
            "it is in training mode, where its output is random or depends on batch mates",
            hint="call `net.eval()` first; the certificate is about evaluation.",
        )
