"""Weights whose operator norm is bounded vector by vector, as torch parametrizations."""

from __future__ import annotations

from math import inf, isfinite
from typing import Literal, TypeVar, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError

Kind = Literal["1->max", "2->max", "max->max", "1->1"]
"""From which norm of inputs to which norm of outputs a weight is bounded."""

ConvNd = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_FLOOR = 1e-6
"""Pinned vectors shorter than this part of their budget are scaled by its inverse only."""


@final
class Budgets(nn.Module):
    """Budgets of several layers, learned, whose product stays `total`.

    ``c_k = total^(1/n) exp( r_k - mean(r) )`` with ``r = asinh(s)`` and ``s`` free. For activations
    with ``phi(c x) = c phi(x)``, c > 0, such as GroupSort and ReLU, the biases can undo any such
    shift: the budgets then change how the network trains, not what it can represent.

    Args:
        layers: How many share the total.
        total: Product of all budgets, positive.

    Raises:
        ConfigError: A number is not positive.
    """

    def __init__(self, layers: int, total: float = 1.0) -> None:
        super().__init__()
        if layers < 1:
            raise ConfigError(f"`layers` must be at least 1, got {layers}.")
        self.layers, self.total = layers, positive(total, "total")
        self.shift = nn.Parameter(torch.zeros(layers))

    def share(self, layer: int) -> Tensor:
        """Budget of one layer, in float64."""
        r = torch.asinh(self.shift.double())
        return self.total ** (1 / self.layers) * (r[layer] - r.mean()).exp()

    @override
    def extra_repr(self) -> str:
        return f"layers={self.layers}, total={self.total:g}"


@final
class VectorNorm(nn.Module):
    """Parametrization of a weight by vectors of bounded length, not by one factor for all [1].

    A vector of length ``l`` with budget ``c`` becomes ``v / max(1, l / c)``:

    ======== ====================== ===========================================
    kind     vectors                length; the largest is the operator norm
    ======== ====================== ===========================================
    1->max   entries                absolute value
    2->max   rows                   2-norm
    max->max rows                   sum of absolute values
    1->1     columns                sum of absolute values
    ======== ====================== ===========================================

    A row of a convolution's kernel is what makes one output channel, a column what one input
    channel is multiplied by. Lengths are summed in float64 and a few units of rounding are taken
    off the budget, so that the stored weight keeps it. A vector at or inside its budget passes its
    gradient on; outside of it the radial part is lost, which for single entries is all: `retract`
    after each step of an optimiser keeps every vector alive.

    Args:
        kind: The pair of norms.
        budget: ``c``, positive; or the `Budgets` that it is a share of.
        pinned: Scale shorter vectors up to the budget as well; for ``1->max`` by the largest entry
            of each row. Rows of zeros stay zero.
        layer: Which share, if there are `Budgets`.

    Raises:
        ConfigError: The kind is unknown, or the budget is not positive.

    References:
        [1] Kitouni, Nolte, Williams. Expressive monotonic neural networks. ICLR 2023,
        arXiv 2307.07512, section 3.
    """

    def __init__(
        self, kind: Kind, budget: float | Budgets = 1.0, *, pinned: bool = False, layer: int = 0
    ) -> None:
        super().__init__()
        self.kind: Kind = check_kind(kind)
        self.pinned, self.layer = pinned, layer
        self.budgets = budget if isinstance(budget, Budgets) else None
        self.fixed = None if isinstance(budget, Budgets) else positive(budget, "budget")
        if self.budgets is not None and not 0 <= layer < self.budgets.layers:
            raise ConfigError(f"`layer` is {layer}, expected 0 to {self.budgets.layers - 1}.")

    def budget(self) -> Tensor:
        """``c`` as it stands, in float64."""
        if self.budgets is not None:
            return self.budgets.share(self.layer)
        return torch.tensor(self.fixed, dtype=torch.float64)

    def lengths(self, weight: Tensor) -> Tensor:
        """Length of each vector, in float64, broadcastable against the weight.

        Raises:
            ShapeError: The weight is no matrix and no kernel.
        """
        if weight.ndim < 2:
            raise ShapeError(
                f"The weight has shape {tuple(weight.shape)}, expected (outputs, inputs) of a "
                "matrix or (outputs, inputs, ...) of a convolution's kernel.",
                hint="a bias and a scale a channel have no such norm.",
            )
        rows = tuple(range(1, weight.ndim))
        match self.kind:
            case "1->max":
                wide = weight.double()
                return wide.abs() if not self.pinned else _length(wide, inf, rows)
            case "2->max":
                return _length(weight, 2, rows)
            case "max->max":
                return _length(weight, 1, rows)
            case "1->1":
                return _length(weight, 1, (0, *rows[1:]))

    @override
    def forward(self, weight: Tensor) -> Tensor:
        length, budget = self.lengths(weight), self.budget().to(weight.device)
        limit = budget / (1 + slack(weight))
        if self.pinned:
            factor = limit / torch.maximum(length, _FLOOR * limit)
        else:
            # the gate lies above the limit: what was scaled to it is not scaled a second time
            beyond = length > limit * (1 + slack(weight) / 4)
            factor = torch.where(beyond, limit / torch.where(beyond, length, limit), 1.0)
        return (weight.double() * factor).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A raw weight for a wanted one: itself inside the budget, the nearest scaled one beyond.

        Args:
            weight: The wanted weight.
        """
        return self.forward(weight)

    @override
    def extra_repr(self) -> str:
        learned = f"share {self.layer}" if self.budgets is not None else f"{self.fixed:g}"
        return f"{self.kind}, budget={learned}{', pinned' if self.pinned else ''}"


def constrain(
    layer: Layer,
    kind: Kind,
    budget: float | Budgets = 1.0,
    *,
    pinned: bool = False,
    index: int = 0,
    restart: bool = True,
) -> Layer:
    """Bound the weight of a layer in place, and return the layer.

    Args:
        layer: A dense layer or a convolution.
        kind: The pair of norms.
        budget: Bound, or the `Budgets` that it is a share of.
        pinned: Keep every vector at its budget, see `VectorNorm`.
        index: Which share, if there are `Budgets`.
        restart: Draw the weight anew, with every vector (for ``1->max`` the largest entry of each
            row) at its budget: a network that starts inside has slopes far below its constant. The
            present weight is kept otherwise, and scaled where it is too long.

    Raises:
        ConfigError: The layer's weight is no such matrix, is parametrised already, or its padding
            has another norm.
    """
    check_layer(layer, kind)
    if parametrize.is_parametrized(layer, "weight"):
        raise ConfigError(
            "The layer's `weight` has a parametrization already.",
            hint="remove it first: `parametrize.remove_parametrizations(layer, 'weight')`.",
        )
    norm = VectorNorm(kind, budget, pinned=pinned, layer=index).to(layer.weight.device)
    if restart:
        start_at_budget(layer.weight, norm)
    parametrize.register_parametrization(layer, "weight", norm)
    return layer


@torch.no_grad()
def start_at_budget(weight: Tensor, norm: VectorNorm) -> None:
    """Draw a weight in place whose vectors have the length of their budget.

    Args:
        weight: Overwritten by uniform numbers, then scaled.
        norm: Whose vectors and budget.
    """
    nn.init.uniform_(weight, -1, 1)
    full = VectorNorm(norm.kind, float(norm.budget()), pinned=True)
    weight.copy_(full(weight))


@torch.no_grad()
def retract(module: nn.Module) -> None:
    """Replace raw weights by bounded ones, after a step of an optimiser.

    What the module computes stays the same; vectors that the step took beyond their budget come
    back to it and keep their gradients. It makes the optimiser a projected one.

    Args:
        module: Every `VectorNorm` in it that is the last parametrization of a weight.
    """
    for layer in module.modules():
        norm = vector_norm_of(layer)
        if norm is None or norm.pinned:
            continue
        chain = layer.parametrizations["weight"]  # pyright: ignore
        if len(chain) == 1:  # pyright: ignore[reportArgumentType]
            raw = chain.original  # pyright: ignore
            raw.copy_(norm(raw))  # pyright: ignore


def vector_norm_of(layer: nn.Module) -> VectorNorm | None:
    """The `VectorNorm` that has the last word on a layer's weight, if there is one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    chain = layer.parametrizations["weight"]  # pyright: ignore
    last = list(chain.children())[-1]  # pyright: ignore
    return last if isinstance(last, VectorNorm) else None


def check_layer(layer: nn.Module, kind: Kind) -> None:
    """That the vectors of a weight are the rows and columns of what the layer does.

    Raises:
        ConfigError: They are not.
    """
    check_kind(kind)
    if isinstance(layer, nn.Linear):
        return
    if not isinstance(layer, ConvNd):
        raise ConfigError(
            f"A {type(layer).__name__} cannot be bounded vector by vector, expected `nn.Linear` or "
            "`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`.",
            hint="the kernel of a transposed convolution has its rows and columns exchanged.",
        )
    allowed = {
        "max->max": ("zeros", "circular", "reflect", "replicate"),
        "1->1": ("zeros", "circular"),
        "1->max": ("zeros",),
        "2->max": ("zeros",),
    }[kind]
    if layer.padding_mode not in allowed:
        raise ConfigError(
            f'A convolution with padding "{layer.padding_mode}" may use an input several times in '
            f"one row or column, so that its kernel does not tell its {kind} norm; expected "
            f"{' or '.join(allowed)}.",
        )
    if kind == "1->1" and layer.groups > 1:
        raise ConfigError(
            f"Columns of a convolution in {layer.groups} groups are not columns of its kernel; "
            "expected `groups=1`.",
            hint="bound it from max to max instead.",
        )


def check_kind(kind: Kind) -> Kind:
    """A pair of norms that vectors can bound.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"`kind` must be one of {get_args(Kind)}, got {kind!r}.")
    return kind


def positive(value: float, name: str) -> float:
    """A positive finite number, as `float`: an `int` would make integer tensors.

    Raises:
        ConfigError: It is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)  # pyright: ignore
    if not (number and value > 0 and isfinite(value)):
        raise ConfigError(
            f"`{name}` must be a positive finite number, got {value!r}.",
            hint="a Lipschitz constant of 0 leaves a constant function only.",
        )
    return float(value)


def slack(weight: Tensor) -> float:
    """What the scaling of a weight rounds, as a part of its budget.

    Lengths in float64 are off by the number of terms, the weight by half a unit of its own.
    """
    unit = torch.finfo(weight.dtype).eps
    return 8 * unit + 2 * weight.numel() * torch.finfo(torch.float64).eps


def _length(weight: Tensor, p: float, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(weight, p, dims, keepdim=True, dtype=torch.float64)
