"""`lipschitz`: a proved Lipschitz bound of a module, composed from one rule a module type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from math import isfinite, prod
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from wellposed.certify.chain import Chain
from wellposed.certify.enclose import enclose
from wellposed.certify.guard import check_genuine, refuse
from wellposed.certify.majorant import Majorant, Slopes
from wellposed.certify.measuring import METHODS, Method, measure, parts
from wellposed.certify.typed import Mixed, NormName, Pair
from wellposed.core.norms import MaxNorm, Norm, OneNorm, TwoNorm
from wellposed.core.records import Certificate
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError

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
    mixed: Mixed = "pay",
    chain: Sequence[Pair] | None = None,
) -> Certificate:
    """A proved bound ``||f(x) - f(x')||_out <= L ||x - x'||_in`` for all inputs, or on a box.

    Linear modules in a row are multiplied, as far as the product is small enough to form. Every
    part contributes a componentwise bound; these are composed by propagating one vector (max norm),
    one covector (1-norm) or both (2-norm), which is never worse than multiplying norms.
    For the 2-norm the product of the modules' own bounds is tried as well, and for chains of layers
    with matrices of at most 1024 outputs the signed weights with the slopes of the activations
    (`wellposed.certify.ellipsoid`). Between two norms the best sequence of norms held between the
    parts is found (`wellposed.certify.typed`).

    Args:
        module: `Equilibrium` or an affine cell, layers of `torch.nn` with a rule, or an
            `nn.Sequential` of these. It is measured in float64 on the CPU, as it stands.
        norm_in: Norm of inputs: ``"max"``, ``"1"``, ``"2"`` or a weighted `Norm` (weights are
            flattened like an input).
        norm_out: Norm of outputs; unweighted and of the same type as `norm_in` by default.
        region: A box of inputs, of the shape of one input; the bound then holds between any two
            of its points and is never worse than the global one.
        in_shape: Shape of one input, without the batch; needed only if the layers do not tell,
            such as a convolution in front.
        method: ``"auto"`` takes the smallest bound. ``"componentwise"`` and ``"product"`` force one
            way of composing; in the 2-norm ``"eclipse"`` forces multipliers in closed form and
            ``"descent"`` a long search for better ones, and ``"lipsdp"`` adds those of a
            semidefinite programme (extra ``sdp``) to ``"auto"``.
        mixed: What happens where the norm held between two parts is too small for the next one:
            ``"pay"`` multiplies by the factor of the dimension, as a part of its own;
            ``"refuse"`` raises.
        chain: Pairs of norms in which the parts that are not elementwise are to be measured, such
            as ``(("1", "max"), ("max", "max"))``; the best ones by default.

    Returns:
        A certificate whose `parts` hold the bound of each module of a sequence on its own, or those
        of the typed chain, in the norms in which they were measured.

    Raises:
        NotCertifiableError: Some module has no rule, its rule's hypothesis fails, or norms do not
            fit and may not be paid for.
        ShapeError: The shape of an input is needed and cannot be inferred.
        ConfigError: An argument is none of the values above.
    """
    source = _norm(norm_in, "norm_in")
    target = _norm(norm_out or source.name, "norm_out")  # type: ignore[arg-type]
    if method not in METHODS:
        raise ConfigError(f"`method` must be one of {METHODS}, got {method!r}.")
    if mixed not in ("pay", "refuse"):
        raise ConfigError(f'`mixed` must be "pay" or "refuse", got {mixed!r}.')
    p, q = cast("NormName", source.name), cast("NormName", target.name)
    shape = input_shape(module, region, in_shape)
    with torch.no_grad():
        whole = majorise(module, Site(shape))
        found = measure(_weighted(whole, source, target), p, q, method, mixed=mixed, chain=chain)
        used = whole
        if region is not None:
            used = majorise(module, Site(shape, region.double().unsqueeze()))
            local = measure(_weighted(used, source, target), p, q, method, mixed=mixed, chain=chain)
            found = min(found, local, key=lambda measured: measured.value)
        where = "everywhere" if region is None else "image of the box of inputs"
        own = parts(used, found, p, where)
    if not isfinite(found.value):
        raise NotCertifiableError(
            f"The bound overflowed ({found.value}): the weights are too large for float64.",
            hint="look for a diverged layer; its own certificate in `parts` is infinite.",
        )
    return Certificate(
        "lipschitz",
        found.value,
        source.label,
        target.label,
        found.rule,
        "everywhere" if region is None else "box of inputs",
        (f"inputs of shape {shape}", *used.assumes),
        own,
    )


def _norm(norm: Norm | NormName, name: str) -> Norm:
    if isinstance(norm, Norm):
        return norm
    if norm not in _NORMS:
        raise ConfigError(f'`{name}` must be a Norm or one of "max", "1", "2", got {norm!r}.')
    return _NORMS[norm]()


def input_shape(
    module: nn.Module, region: Box | None, in_shape: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Shape of one input: as given, that of the region, or what the layers tell.

    Raises:
        ShapeError: Two of them differ, or none of them says it.
    """
    if region is not None:
        if in_shape is not None and tuple(in_shape) != region.shape:
            raise ShapeError(f"`in_shape` is {in_shape}, but the region has shape {region.shape}.")
        return region.shape
    found = in_shape if in_shape is not None else infer_shape(module)
    if found is None:
        raise ShapeError(
            f"The shape of an input of {type(module).__name__} does not follow from its layers.",
            hint="pass it without the batch: `in_shape=(1, 28, 28)`.",
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
        links.insert(0, _scaling(1 / scale, majorant.in_shape))
    if target.weights is not None:
        scale = target.multipliers(prod(majorant.out_shape), torch.zeros((), dtype=torch.float64))
        links.append(_scaling(scale, majorant.out_shape))
    return majorant if len(links) == 1 else Chain(links, majorant.in_shape)


def _scaling(scale: Tensor, shape: tuple[int, ...]) -> Slopes:
    # the norms of slightly larger factors bound those of the factors
    larger = (scale * (1 + 1e-15)).reshape(shape)
    return Slopes(larger, shape, quotients=(larger, larger))


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
