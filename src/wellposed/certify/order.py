"""`order`: in which inputs a module rises, falls or does not depend on them, derived and proved.

The signs of a module are a matrix, outputs by inputs: +1 where no output falls when the input rises
(the others held fixed), -1 where none rises, 0 where the output does not depend on the input, NaN
where nothing is known. They compose as signs do: products multiply, sums of equal signs keep it,
and sums of unequal ones are unknown. No number is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from math import prod
from typing import final

import torch
from torch import Tensor, nn

from wellposed.certify.enclose import enclose
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.lipschitz import Site, input_shape, majorise
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError

LARGEST = 1 << 24  # entries of a matrix of signs


@final
@dataclass(frozen=True, eq=False)
class OrderCertificate:
    """Proved signs of the slopes of a module.

    Args:
        signs: +1, -1, 0 or NaN (unknown), shape (outputs, inputs), both flattened.
        region: Set of inputs on which they hold.
        assumes: What was taken on trust.
    """

    signs: Tensor
    region: str = "everywhere"
    assumes: tuple[str, ...] = ()

    def proves(self, signs: Sequence[int] | Tensor) -> Tensor:
        """Where declared signs are proved; free inputs (0) ask for nothing.

        Args:
            signs: +1 (rising), -1 (falling) or 0 (free), shape (inputs,) or (outputs, inputs).

        Returns:
            Boolean, shape (outputs, inputs).

        Raises:
            ShapeError: The signs do not fit, or are none of the three numbers.
        """
        given = torch.as_tensor(signs).to(torch.float64).cpu()
        whole = tuple(self.signs.shape)
        if tuple(given.shape) not in (whole, whole[1:]) or not bool(
            ((given == 0) | (given.abs() == 1)).all()
        ):
            raise ShapeError(
                f"`signs` must be +1, -1 or 0 for each of {whole[1]} inputs (and of {whole[0]} "
                f"outputs), got shape {tuple(given.shape)} with values from {given.min():g} to "
                f"{given.max():g}."
            )
        asked = given.expand(whole)
        return (asked == 0) | (self.signs == 0) | (self.signs == asked)

    def require(self, signs: Sequence[int] | Tensor) -> None:
        """That declared signs are proved.

        Raises:
            NotCertifiableError: Some are not; the first ones are named.
        """
        missing = (~self.proves(signs)).nonzero()
        if len(missing):
            named = ", ".join(f"output {j} in input {i}" for j, i in missing[:5].tolist())
            raise NotCertifiableError(
                f"The order is not proved for {len(missing)} of {self.signs.numel()} pairs: "
                f"{named}{', ...' if len(missing) > 5 else ''}.",
                hint="bound the body from the 1-norm to the max norm by the slope of the residual, "
                "or ask on a smaller region.",
            )


@singledispatch
def order_rule(module: nn.Module, site: Site) -> Tensor:
    """The signs of one module type: an open function.

    Returns:
        +1, -1, 0 or NaN, shape (outputs, inputs), float64.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(
        module,
        site.path,
        "no order rule is registered for this type",
        "register one with `@wellposed.certify.order.order_rule.register`, or ask about the part "
        "of the network around it.",
    )


def signs_of(module: nn.Module, site: Site) -> Tensor:
    """The signs of a module, after checking that its registered rule describes it.

    Raises:
        NotCertifiableError: No rule covers the module.
    """
    check_genuine(module, order_rule.registry, site.path)
    return order_rule(module, site)


@torch.no_grad()
def order(
    module: nn.Module,
    *,
    region: Box | None = None,
    in_shape: tuple[int, ...] | None = None,
) -> OrderCertificate:
    """The signs of all slopes of a module, derived from its weights as they stand.

    Layers contribute the signs of their weights and activations. Two rules go beyond them: a body
    that moves by at most ``lambda`` from the 1-norm to the max norm, plus ``lambda s x``, rises
    with the sign ``s`` [1]; and an equilibrium that is proved to be unique has the signs of all
    walks from an input to a state, or of the input weights where these outweigh all feedback.

    Args:
        module: Layers of `torch.nn` with a rule, `Equilibrium` with an affine cell, `LBEN`, `SLL`,
            `CPL`, `Sandwich`, `Residual`, `Blend`, `MonotoneResidual`, and `nn.Sequential` of
            these.
        region: A box of inputs, of the shape of one input; the signs then hold on it.
        in_shape: Shape of one input, without the batch, if the layers do not tell.

    Raises:
        NotCertifiableError: Some module has no rule, or its rule's hypothesis fails.
        ShapeError: The shape of an input is needed and cannot be inferred.

    References:
        [1] Kitouni, Nolte, Williams. Expressive monotonic neural networks. ICLR 2023,
        arXiv 2307.07512.
    """
    shape = input_shape(module, region, in_shape)
    box = None if region is None else region.double().unsqueeze()
    signs = signs_of(module, Site(shape, box))
    return OrderCertificate(
        signs,
        "everywhere" if region is None else "box of inputs",
        (f"inputs of shape {shape}", "the function of real numbers that the weights define"),
    )


def compose_signs(second: Tensor, first: Tensor) -> Tensor:
    """Signs of a composition: ``sum_k second_jk first_ki`` in the algebra of signs."""
    up, down = (second > 0).double(), (second < 0).double()
    rises, falls = (first > 0).double(), (first < 0).double()
    unknown, open_ = second.isnan().double(), first.isnan().double()
    plus = up @ rises + down @ falls
    minus = up @ falls + down @ rises
    any_first, any_second = rises + falls + open_, up + down + unknown
    lost = unknown @ any_first + any_second @ open_
    return _signs(plus > 0, minus > 0, lost > 0)


def add_signs(one: Tensor, other: Tensor) -> Tensor:
    """Signs of a sum of two functions of the same inputs."""
    return _signs((one > 0) | (other > 0), (one < 0) | (other < 0), one.isnan() | other.isnan())


def _signs(plus: Tensor, minus: Tensor, lost: Tensor) -> Tensor:
    found = plus.double() - minus.double()
    return found.masked_fill(lost | (plus & minus), float("nan"))


def check_size(module: nn.Module, site: Site, outputs: int) -> None:
    """Refuse matrices that are too large to form.

    Raises:
        NotCertifiableError: Outputs times inputs exceed `LARGEST`.
    """
    if outputs * prod(site.shape) > LARGEST:
        raise refuse(
            module,
            site.path,
            f"its matrix of signs would have {outputs} x {prod(site.shape)} entries",
            "ask about a part of the network, or a smaller image.",
        )


def unit_inputs(shape: tuple[int, ...]) -> Tensor:
    """All unit vectors of a space, one a row, shape (n, *shape)."""
    n = prod(shape)
    return torch.eye(n, dtype=torch.float64).reshape(n, *shape)


@order_rule.register
def _sequential(module: nn.Sequential, site: Site) -> Tensor:
    here = site
    signs = torch.eye(prod(site.shape), dtype=torch.float64)
    children = list(module.named_children())
    for k, (name, child) in enumerate(children, 1):
        here = replace(here, path=f"{site.path}.{name}".lstrip("."))
        signs = compose_signs(signs_of(child, here), signs)
        if k == len(children):
            break  # nobody asks for what comes out, which may have no box
        box = None if here.box is None else enclose(child, here.box)
        here = Site(majorise(child, here).out_shape, box, site.path)
    return signs
