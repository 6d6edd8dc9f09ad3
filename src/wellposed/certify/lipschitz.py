"""`lipschitz`: a proved Lipschitz bound of a module, composed from one rule a module type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from math import isfinite, prod
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from wellposed.certify.enclose import enclose
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.majorant import (
    Chain,
    Majorant,
    Slopes,
    max_norm,
    one_norm,
    product,
    singular,
    two_norm,
)
from wellposed.core.norms import MaxNorm, Norm, OneNorm, TwoNorm
from wellposed.core.records import Certificate
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

Method = Literal["auto", "componentwise", "product"]
NormName = Literal["max", "1", "2"]
_NORMS: dict[str, type[Norm]] = {"max": MaxNorm, "1": OneNorm, "2": TwoNorm}


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Where a module stands in a network.

    Args:
        shape: Shape of one input of the module.
        box: A batch of one box that contains every input of the module; `None` if any input may
            occur.
        path: Name of the module in the network, for messages.
    """

    shape: tuple[int, ...]
    box: Box | None = None
    path: str = ""

    def require(self, module: nn.Module, in_shape: tuple[int, ...]) -> None:
        """That the inputs have the shape which the module takes.

        Raises:
            ShapeError: They have another one.
        """
        if self.shape != in_shape:
            raise ShapeError(
                f"`{self.path or type(module).__name__}` takes inputs of shape {in_shape}, got "
                f"{self.shape}.",
                hint="check `in_shape` or `region` against the layers.",
            )


@singledispatch
def lipschitz_rule(module: nn.Module, site: Site) -> Majorant:
    """The rule for one module type: an open function.

    Register a function on your own module type to have it certified and composed; register
    `enclose_rule` as well to have it on boxes::

        @lipschitz_rule.register
        def _(module: Absolute, site: Site) -> Majorant:
            return Slopes(1.0, site.shape)

    A rule answers for the type's own ``forward``: a subclass that replaces it is refused.

    Raises:
        NotCertifiableError: No rule is registered for the type.
    """
    raise refuse(module, site.path, "no Lipschitz rule is registered for this type")


def majorise(module: nn.Module, site: Site) -> Majorant:
    """The majorant of a module, after checking that its registered rule describes it.

    Raises:
        NotCertifiableError: No rule covers the module.
    """
    check_genuine(module, lipschitz_rule.registry, site.path)
    return lipschitz_rule(module, site)


def lipschitz(
    module: nn.Module,
    *,
    norm_in: Norm | NormName = "max",
    norm_out: Norm | NormName | None = None,
    region: Box | None = None,
    in_shape: tuple[int, ...] | None = None,
    method: Method = "auto",
) -> Certificate:
    """A proved bound ``||f(x) - f(x')||_out <= L ||x - x'||_in`` for all inputs, or on a box.

    Every module contributes a componentwise bound; these are composed by propagating one vector
    (max norm), one covector (1-norm) or both (2-norm), which is never worse than multiplying norms.
    For the 2-norm the product of the modules' own bounds is tried as well.

    Args:
        module: `Equilibrium` or an affine cell, layers of `torch.nn` with a rule, or an
            `nn.Sequential` of these. It is measured in float64 on the CPU, as it stands.
        norm_in: Norm of inputs: ``"max"``, ``"1"``, ``"2"`` or a weighted `Norm` (weights are
            flattened like an input).
        norm_out: Norm of outputs; of the same type as `norm_in`, which is the default (unweighted).
        region: A box of inputs, of the shape of one input; the bound then holds between any two
            of its points and is never worse than the global one.
        in_shape: Shape of one input, without the batch; needed only if the layers do not tell,
            such as a convolution in front.
        method: ``"componentwise"`` and ``"product"`` force one way of composing; ``"auto"`` takes
            the smaller bound.

    Returns:
        A certificate whose `parts` hold the bound of each module of a sequence on its own.

    Raises:
        NotCertifiableError: Some module has no rule, or its rule's hypothesis fails.
        ShapeError: The shape of an input is needed and cannot be inferred.
        ConfigError: The norms are of different types.
    """
    source = _norm(norm_in, "norm_in")
    target = _norm(norm_out or source.name, "norm_out")  # type: ignore[arg-type]
    if source.name != target.name:
        raise ConfigError(
            f"`norm_in` is a {source.name}-norm and `norm_out` a {target.name}-norm; rules exist "
            "for norms of one type.",
            hint="measure max to max, 1 to 1 or 2 to 2 and pay the dimension factor.",
        )
    if method not in ("auto", "componentwise", "product"):
        raise ConfigError(f'`method` must be "auto", "componentwise" or "product", got {method!r}.')
    shape = _shape(module, region, in_shape)
    with torch.no_grad():
        whole = majorise(module, Site(shape))
        value = _measure(_weighted(whole, source, target), source.name, method)
        used = whole
        if region is not None:
            box = region.double().unsqueeze()
            used = majorise(module, Site(shape, box))
            value = min(value, _measure(_weighted(used, source, target), source.name, method))
        parts = _parts(used, source.name, region)
    if not isfinite(value):
        raise NotCertifiableError(
            f"The bound overflowed ({value}): the weights are too large for float64.",
            hint="look for a diverged layer; its own certificate in `parts` is infinite.",
        )
    return Certificate(
        "lipschitz",
        value,
        source.label,
        target.label,
        _rule(used, source.name, method),
        "everywhere" if region is None else "box of inputs",
        (f"inputs of shape {shape}", *used.assumes),
        parts,
    )


def _norm(norm: Norm | NormName, name: str) -> Norm:
    if isinstance(norm, Norm):
        return norm
    if norm not in _NORMS:
        raise ConfigError(f'`{name}` must be a Norm or one of "max", "1", "2", got {norm!r}.')
    return _NORMS[norm]()


def _shape(
    module: nn.Module, region: Box | None, in_shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    if region is not None:
        if in_shape is not None and tuple(in_shape) != region.shape:
            raise ShapeError(f"`in_shape` is {in_shape}, but the region has shape {region.shape}.")
        return region.shape
    found = in_shape if in_shape is not None else infer_shape(module)
    if found is None:
        raise ShapeError(
            f"The shape of an input of {type(module).__name__} does not follow from its layers.",
            hint="pass it without the batch: `lipschitz(net, in_shape=(1, 28, 28))`.",
        )
    return tuple(found)


@singledispatch
def infer_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of one input if the module fixes it, ``()`` if it takes any, `None` if unknown."""
    return None


def _weighted(majorant: Majorant, source: Norm, target: Norm) -> Majorant:
    """The same function between the unweighted norms of scaled spaces."""
    links = [majorant]
    if source.weights is not None:
        scale = source.multipliers(prod(majorant.in_shape), torch.zeros((), dtype=torch.float64))
        links.insert(0, Slopes(_up(1 / scale, majorant.in_shape), majorant.in_shape))
    if target.weights is not None:
        scale = target.multipliers(prod(majorant.out_shape), torch.zeros((), dtype=torch.float64))
        links.append(Slopes(_up(scale, majorant.out_shape), majorant.out_shape))
    return majorant if len(links) == 1 else Chain(links, majorant.in_shape)


def _up(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (scale * (1 + 1e-15)).reshape(shape)


def _measure(majorant: Majorant, name: str, method: Method) -> float:
    """The bound in an unweighted norm."""
    if method == "product":
        return product([_measure(link, name, "auto") for link in _flat(majorant)])
    match name:
        case "max":
            return max_norm(majorant)
        case "1":
            return one_norm(majorant)
        case _:
            return singular(majorant) if method == "componentwise" else two_norm(majorant)


def _flat(majorant: Majorant) -> list[Majorant]:
    if not isinstance(majorant, Chain):
        return [majorant]
    return [leaf for link in majorant.links for leaf in _flat(link)]


def _parts(majorant: Majorant, name: str, region: Box | None) -> tuple[Certificate, ...]:
    if not isinstance(majorant, Chain):
        return ()
    where = "everywhere" if region is None else "image of the box of inputs"
    return tuple(
        Certificate(
            "lipschitz",
            _measure(link, name, "auto"),
            name,
            name,
            link.rule,
            where,
            link.assumes,
            _parts(link, name, region),
        )
        for link in majorant.links
    )


def _rule(majorant: Majorant, name: str, method: Method) -> str:
    if not isinstance(majorant, Chain):
        return majorant.rule
    if method == "product":
        return "product of the bounds of the parts"
    how = {
        "max": "one vector of componentwise bounds propagated",
        "1": "one covector of componentwise bounds pulled back",
        "2": "verified singular vector of the componentwise bounds, or product of the parts",
    }
    return how[name]


@lipschitz_rule.register
def _sequential(module: nn.Sequential, site: Site) -> Majorant:
    links: list[Majorant] = []
    here = site
    for name, child in module.named_children():
        here = replace(here, path=f"{site.path}.{name}".lstrip("."))
        try:
            link = majorise(child, here)
        except (RuntimeError, IndexError, ValueError) as error:
            if isinstance(error, ShapeError):
                raise
            raise ShapeError(
                f"`{here.path}` ({type(child).__name__}) does not accept inputs of shape "
                f"{here.shape}: {error}",
                hint="check `in_shape` against the layers.",
            ) from error
        links.append(link)
        box = None if here.box is None else enclose(child, here.box)
        here = Site(link.out_shape, box, site.path)
    return Chain(links, site.shape)


@infer_shape.register
def _infer_sequential(module: nn.Sequential) -> tuple[int, ...] | None:
    flattened = False
    for child in module:
        found: Any = infer_shape(child)
        flattened = flattened or isinstance(child, nn.Flatten)
        if found is None:
            return None
        if found:
            return (prod(found),) if flattened else found
    return None
