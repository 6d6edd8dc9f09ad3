"""The families of networks: each is one file with its sections and how its layers are built.

A new family is a file with a section and ``build(section, solve, shape, classes)``, its import and
its line in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field
from torch import nn

from wellposed.experiments.families import (
    binary_conv,
    concave,
    dense,
    fixed_point,
    lben,
    lben_conv,
    monotone_conv,
    nemon_conv,
    nemon_deep,
    plain,
    subhomogeneous,
)
from wellposed.experiments.families.layer import Shape, Solve
from wellposed.training.settings import Settings

Builder = Callable[[Any, Solve, Shape, int], list[nn.Module]]

_FAMILIES: Mapping[type[Settings], Builder] = {
    dense.Nemon: dense.build,
    dense.InfNorm: dense.build,
    dense.Monotone: dense.build,
    dense.Mlp: dense.build,
    nemon_conv.NemonConv: nemon_conv.build,
    nemon_deep.NemonDeep: nemon_deep.build,
    monotone_conv.MonotoneConv: monotone_conv.build,
    monotone_conv.MultiTier: monotone_conv.build_tiers,
    concave.PositiveConcave: concave.build,
    subhomogeneous.Subhomogeneous: subhomogeneous.build,
    fixed_point.Fpn: fixed_point.build,
    fixed_point.FpnConv: fixed_point.build,
    fixed_point.FreeConv: fixed_point.build,
    lben.Lben: lben.build,
    lben_conv.LbenConv: lben_conv.build,
    plain.Perceptron: plain.build,
    plain.Orthogonal: plain.build_orthogonal,
    binary_conv.BinaryConv: binary_conv.build,
}


def _with_kind(section: Any) -> Any:
    """A model section that names no kind is that of a dense NEMON."""
    if isinstance(section, dict):
        return {"kind": "nemon", **section}
    return section


if TYPE_CHECKING:
    Model = Settings
else:
    Model = Annotated[
        Union[tuple(_FAMILIES)],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(_with_kind),
    ]
"""Any section of the table, told by its `kind`."""


def build(section: Model, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers of a network from scaled pixels to logits.

    Args:
        section: Of a family.
        solve: Solver, gradient and tolerances.
        shape: Channels, height and width of an image.
        classes: Logits.

    Raises:
        ConfigError: The sizes do not go together.
    """
    return _FAMILIES[type(section)](section, solve, shape, classes)


def kind(section: Model) -> str:
    """The name of the family in TOML."""
    return type(section).model_fields["kind"].default
