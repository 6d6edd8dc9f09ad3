"""Norm chains: which norm of its input each part of a network bounds, and which of its output.

With ``||x||_max <= ||x||_2 <= ||x||_1`` a part that takes the p-norm may follow one that gives the
q-norm if the p-norm is not the larger one. Everything else is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal, cast, final

from torch import nn

from wellposed.cells.infnorm import InfNormCell
from wellposed.errors import ConfigError
from wellposed.nn.blend import Blend
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.residual import Residual
from wellposed.nn.vector_norm import Budgets, ConvNd, VectorNorm, check_layer, vector_norm_of

NormName = Literal["1", "2", "max"]

_SIZE = {"max": 0, "2": 1, "1": 2}
_ONE_LIPSCHITZ = (nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign,
                  nn.LogSigmoid, nn.Hardsigmoid)  # fmt: skip
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
          nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d,
          nn.AdaptiveMaxPool2d)  # fmt: skip
_WHY = {
    "LayerNorm": "it divides by the spread of its input, which bounds no slope, and every output "
    "falls when another input rises",
    "RMSNorm": "it divides by the length of its input: its slopes reach 1 / sqrt(eps) times its "
    "weights, and every output falls when another input rises",
    "GroupNorm": "it divides by the spread of its input, which bounds no slope",
    "BatchNorm": "it divides by the spread of the batch, which bounds no slope, and an output "
    "depends on batch mates",
    "InstanceNorm": "it divides by the spread of its input, which bounds no slope",
    "Dropout": "in training it multiplies what is left by more than 1",
    "GELU": "its slopes reach 1.129",
    "SiLU": "its slopes reach 1.0999",
    "Softplus": "PyTorch's version jumps down by exp(-threshold)",
}


@final
@dataclass(frozen=True)
class Link:
    """A part whose norm is bounded: ``||f(x) - f(x')||_target <= c ||x - x'||_source``.

    Args:
        path: Name in the network.
        source: Norm of inputs.
        target: Norm of outputs.
        fixed: ``c``, without learned budgets.
        learned: The `Budgets` that ``c`` has a share of, and which share.
    """

    path: str
    source: NormName
    target: NormName
    fixed: float
    learned: tuple[Budgets, int] | None = None


@final
@dataclass(frozen=True)
class NormChain:
    """What a sequence of layers is bounded from and to, by construction.

    Args:
        links: The bounded parts in order.
        source: Norm of the inputs.
        target: Norm of the outputs.
    """

    links: tuple[Link, ...]
    source: NormName
    target: NormName

    @property
    def constant(self) -> float:
        """Product of the budgets, whatever values learned ones take.

        Raises:
            ConfigError: Learned budgets are not all in the chain, each of them once.
        """
        used = Counter(link.learned for link in self.links if link.learned)
        groups = {id(key[0]): key[0] for key in used}
        for budgets in groups.values():
            counts = [used[budgets, layer] for layer in range(budgets.layers)]
            if counts != [1] * budgets.layers:
                raise ConfigError(
                    f"The {budgets.layers} shares of one `Budgets` are used {counts} times in this "
                    "chain, expected once each: only the product of all is known.",
                    hint="make a `Budgets` with as many shares as layers, and give each its own.",
                )
        return prod(link.fixed for link in self.links) * prod(b.total for b in groups.values())

    def __str__(self) -> str:
        return ", ".join(f"{link.source}->{link.target}" for link in self.links) or "identity"


def norm_chain(body: nn.Module, source: NormName = "1") -> NormChain:
    """The norm chain of a module, read off its types and parametrizations.

    Legal from the 1-norm are ``1->1`` layers, then at most one of ``1->max`` or ``2->max``, then
    ``max->max`` layers; each group may be empty. Between them stand activations with slopes in
    [-1, 1] and sorting along the features; a residual block stands for one layer from the present
    norm to the smaller one of both branches; an `Equilibrium` of an `InfNormCell` with a bounded
    input layer counts as one layer that ends in the max norm. Nothing is measured.

    Args:
        body: `nn.Sequential` or one layer.
        source: Norm of the inputs.

    Raises:
        ConfigError: A part is not bounded, or takes a larger norm than the part before gives.
    """
    walk = _Walk(source)
    walk.module(body, "body")
    return NormChain(tuple(walk.links), source, walk.norm)


class _Walk:
    """Goes through a network with the norm that is bounded so far."""

    def __init__(self, norm: NormName) -> None:
        self.norm: NormName = norm
        self.links: list[Link] = []
        self.image = False

    def module(self, module: nn.Module, path: str) -> None:
        if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore
            raise _refusal(path, module, "it carries forward hooks, which may change its output")
        match module:
            case nn.Sequential():
                for name, child in module.named_children():
                    self.module(child, f"{path}.{name}")
            case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                self._weight(module, path)
            case GroupSort() | MaxMin():
                self._sorting(module, path)
            case Residual():
                self._residual(module, path, lambda body: 1 + body)
            case Blend():
                self._residual(module, path, lambda body: max(1.0, body))
            case Equilibrium():
                self._equilibrium(module, path)
            case nn.Flatten() if self.image and module.start_dim == 1 and module.end_dim == -1:
                self.image = False
            case nn.Unflatten() if module.dim in (1, -1):
                self.image = True
            case nn.LeakyReLU() if abs(module.negative_slope) <= 1:
                pass
            case nn.ELU() if 0 <= module.alpha <= 1:
                pass
            case _ if type(module) in _ONE_LIPSCHITZ:
                pass
            case _ if self.image and type(module) in _POOLS:
                if getattr(module, "divisor_override", None) is not None:
                    raise _refusal(path, module, "its divisor is overridden")
                self._take(Link(path, "max", "max", 1.0), module)
            case _:
                self._unknown(module, path)

    def _weight(self, layer: nn.Linear | ConvNd, path: str) -> None:
        norm = vector_norm_of(layer)
        if norm is None:
            raise _refusal(
                path, layer, "its weight is not bounded",
                'wrap it: `constrain(layer, "max->max", budget)`.',
            )  # fmt: skip
        if not any(type(layer).forward is kind.forward for kind in (nn.Linear, *ConvNd.__args__)):
            raise _refusal(path, layer, "it replaces `forward`")
        check_layer(layer, norm.kind)
        if not (self.image or isinstance(layer, nn.Linear)):
            raise _refusal(
                path, layer, "the features lie along the last axis here",
                "put `nn.Unflatten(-1, (channels, height, width))` in front of it.",
            )  # fmt: skip
        self._take(_link(path, norm), layer)

    def _take(self, link: Link, module: nn.Module) -> None:
        if _SIZE[link.source] > _SIZE[self.norm]:
            before = self.links[-1].path if self.links else "the input"
            raise ConfigError(
                f"The norm chain {', '.join(f'{x.source}->{x.target}' for x in self.links)} then "
                f"{link.source}->{link.target} is illegal: `{link.path}` "
                f"({type(module).__name__}) bounds from the {link.source}-norm, and `{before}` "
                f"gives the {self.norm}-norm only, which is smaller.",
                hint="legal from the 1-norm: 1->1 layers, then one 1->max or 2->max or none, then "
                "max->max layers.",
            )
        self.norm = link.target
        self.links.append(link)

    def _sorting(self, module: GroupSort | MaxMin, path: str) -> None:
        allowed = (1, -3) if self.image else (-1,)
        if module.dim not in allowed:
            raise ConfigError(
                f"`{path}` sorts along axis {module.dim}, the features lie along axis "
                f"{' or '.join(map(str, allowed))}: it would mix samples or positions.",
                hint=f"`{type(module).__name__}(..., dim={allowed[0]})`",
            )

    def _residual(
        self, module: Residual | Blend, path: str, together: Callable[[float], float]
    ) -> None:
        inner = _Walk(self.norm)
        inner.image = self.image
        inner.module(module.body, f"{path}.body")
        if any(link.learned for link in inner.links):
            raise _refusal(
                path, module, "learned budgets inside a residual block have no constant product"
            )
        smaller = self.norm if _SIZE[self.norm] <= _SIZE[inner.norm] else inner.norm
        body = prod(link.fixed for link in inner.links)
        self._take(Link(path, self.norm, smaller, together(body)), module)

    def _equilibrium(self, module: Equilibrium, path: str) -> None:
        cell = module.cell
        if not isinstance(cell, InfNormCell):
            raise _refusal(
                f"{path}.cell", cell, "only `InfNormCell` has a bounded max norm by construction"
            )
        norm = vector_norm_of(cell.inject)
        if norm is None or norm.kind == "1->1":
            raise _refusal(
                f"{path}.cell.inject", cell.inject, "its weight is not bounded to the max norm",
                '`constrain(cell.inject, "1->max", 1 - cell.bound)`',
            )  # fmt: skip
        steepest = cell.activation.steepest
        gain = steepest / (1 - steepest * cell.bound)
        link = _link(f"{path}.cell.inject", norm)
        self._take(Link(link.path, link.source, link.target, gain * link.fixed, link.learned), cell)

    def _unknown(self, module: nn.Module, path: str) -> None:
        name = type(module).__name__
        why = next((text for part, text in _WHY.items() if part in name), None)
        raise _refusal(path, module, why or "nothing is known about its norm")


def _link(path: str, norm: VectorNorm) -> Link:
    source, _, target = norm.kind.partition("->")
    learned = None if norm.budgets is None else (norm.budgets, norm.layer)
    fixed = 1.0 if norm.fixed is None else norm.fixed
    return Link(path, cast("NormName", source), cast("NormName", target), fixed, learned)


def _refusal(path: str, module: nn.Module, why: str, hint: str = "") -> ConfigError:
    return ConfigError(
        f"`{path}` ({type(module).__name__}) has no place in a norm chain: {why}.",
        hint=hint or "use layers bounded by `constrain`, `GroupSort`, or 1-Lipschitz activations.",
    )
