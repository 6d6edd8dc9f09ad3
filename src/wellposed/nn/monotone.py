"""Networks that rise or fall in chosen inputs for any parameters: monotone Lipschitz networks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.groupsort import GroupSort
from wellposed.nn.norm_chain import norm_chain
from wellposed.nn.vector_norm import Budgets, Kind, check_kind, constrain, positive

Signs = Sequence[int] | Sequence[Sequence[int]] | Tensor


@final
class MonotoneResidual(nn.Module):
    """``f_j(x) = g_j(x) + lambda sum_i s_ji x_i``, monotone wherever ``s_ji`` is not 0 [1].

    If ``g`` is lambda-Lipschitz from the 1-norm to the max norm, all its slopes lie in
    ``[-lambda, lambda]``, hence ``0 <= s_ji df_j/dx_i <= 2 lambda`` where ``s_ji = +-1``: ``f_j``
    rises (+1) or falls (-1) in ``x_i``. Inputs with ``s_ji = 0`` are free within
    ``[-lambda, lambda]``. **f is 2 lambda-Lipschitz** from the 1-norm to the max norm, not
    lambda-Lipschitz.

    That ``g`` has the constant is derived from its norm chain when the module is made
    (`wellposed.nn.norm_chain`): bounds in norms that do not follow from one another are refused,
    since their product says nothing. The chain holds for any values of the parameters. The
    features lie along the last axis; there may be any number of axes in front of it.

    Args:
        body: ``g``, a network of layers bounded by `constrain`.
        signs: ``s``: +1, -1 or 0 for each input, shape (n,) for all outputs alike, or
            (outputs, n).
        constant: ``lambda``, positive; at least the product of the budgets in `body`.

    Raises:
        ConfigError: The chain is illegal, a layer in it is not bounded, the budgets exceed
            `constant`, or a sign is none of -1, 0, 1.
        ShapeError: Inputs or outputs do not fit the signs (when called).

    References:
        [1] Kitouni, Nolte, Williams. Expressive monotonic neural networks. ICLR 2023,
        arXiv 2307.07512; arXiv 2112.00038.
    """

    def __init__(self, body: nn.Module, signs: Signs, constant: float = 1.0) -> None:
        super().__init__()
        self.constant = positive(constant, "constant")
        self.signs: Tensor
        # not part of the state: a state of another network must not change what is guaranteed
        self.register_buffer("signs", check_signs(signs), persistent=False)
        chain = norm_chain(body)
        # budgets such as lambda^(1/3) are rounded; the layers take more than this off theirs
        if chain.constant > self.constant * (1 + 1e-15 * (len(chain.links) + 1)):
            raise ConfigError(
                f"The budgets of `body` ({chain}) allow slopes up to {chain.constant:g}, which is "
                f"more than `constant` = {self.constant:g}: the sum would not be monotone.",
                hint="give each of n layers the budget constant ** (1 / n).",
            )
        self.body = body

    @override
    def forward(self, x: Tensor) -> Tensor:
        n = self.signs.shape[-1]
        if x.shape[-1:] != (n,):
            raise ShapeError(
                f"The input has shape {tuple(x.shape)}, expected (..., {n}): one sign a feature "
                "along the last axis."
            )
        y = self.body(x)
        tilt = F.linear(x, self.constant * self.signs.reshape(-1, n))
        if y.shape[:-1] != x.shape[:-1] or tilt.shape[-1] not in (1, y.shape[-1]):
            raise ShapeError(
                f"The body maps {tuple(x.shape)} to {tuple(y.shape)}, expected (..., outputs) with "
                + (f"{len(self.signs)} outputs." if self.signs.ndim == 2 else "the same axes.")
            )
        return y + tilt

    @override
    def extra_repr(self) -> str:
        shown = tuple(self.signs.long().tolist()) if self.signs.numel() <= 32 else "..."
        return f"signs={shown}, constant={self.constant:g}"


def check_signs(signs: Signs) -> Tensor:
    """Signs as a tensor of shape (n,) or (outputs, n).

    Raises:
        ConfigError: A sign is none of -1, 0, 1.
        ShapeError: They have another shape.
    """
    found = torch.as_tensor(signs, dtype=torch.get_default_dtype()).detach().clone()
    if found.ndim not in (1, 2) or not found.numel():
        raise ShapeError(
            f"`signs` have shape {tuple(found.shape)}, expected (inputs,) or (outputs, inputs)."
        )
    if not bool(((found == 0) | (found.abs() == 1)).all()):
        bad = found[(found != 0) & (found.abs() != 1)].flatten()[0]
        raise ConfigError(
            f"`signs` must be +1 (rising), -1 (falling) or 0 (free), got {float(bad):g}.",
            hint="a slope is set by `constant`, not by a sign.",
        )
    return found


def lipschitz_monotone(
    widths: Sequence[int],
    signs: Signs,
    lipschitz: float = 1.0,
    *,
    first: Kind = "1->max",
    group_size: int = 2,
    learned_budgets: bool = False,
    pinned: bool = False,
    dtype: torch.dtype | None = None,
) -> MonotoneResidual:
    """A monotone Lipschitz network of dense layers and `GroupSort`, ready to train.

    Every layer has the budget ``lipschitz^(1/depth)`` and starts at it.

    Args:
        widths: Inputs, hidden layers, outputs.
        signs: +1, -1 or 0 for each input, shape (n,) or (outputs, n).
        lipschitz: ``lambda``: the constant of the network that is tilted; the whole has twice it.
        first: Norms of the first layer; the others go from max to max.
        group_size: Of the sorting; 2 is MaxMin. A divisor of every hidden width.
        learned_budgets: Let the layers share the constant as training likes, see `Budgets`.
        pinned: Keep every row at its budget, see `VectorNorm`.
        dtype: Of the parameters.

    Raises:
        ConfigError: A number is out of its range, or a width is no multiple of the group.
        ShapeError: The signs do not fit the widths.
    """
    check_kind(first)
    depth = len(widths) - 1
    if depth < 1 or min(widths) < 1:
        raise ConfigError(f"`widths` must be at least two positive numbers, got {tuple(widths)}.")
    odd = [w for w in widths[1:-1] if w % group_size]
    if odd:
        raise ConfigError(
            f"`widths` has hidden layers of {odd[0]}, which is no multiple of `group_size` = "
            f"{group_size}."
        )
    found = check_signs(signs)
    if found.shape[-1] != widths[0] or (found.ndim == 2 and len(found) != widths[-1]):
        raise ShapeError(
            f"`signs` have shape {tuple(found.shape)}, expected ({widths[0]},) or "
            f"({widths[-1]}, {widths[0]}) for widths {tuple(widths)}."
        )
    share = budget_shares(positive(lipschitz, "lipschitz"), depth, learned=learned_budgets)
    layers = list[nn.Module]()
    for k, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
        kind = first if k == 0 else "max->max"
        linear = nn.Linear(n_in, n_out, dtype=dtype)
        layers.append(constrain(linear, kind, share, pinned=pinned, index=k))
        if k < depth - 1:
            layers.append(GroupSort(group_size=group_size, dim=-1))
    net = MonotoneResidual(nn.Sequential(*layers), found, lipschitz)
    return net if dtype is None else net.to(dtype)


def convolutional_monotone(
    image: tuple[int, int, int],
    channels: Sequence[int],
    signs: Signs,
    lipschitz: float = 1.0,
    *,
    outputs: int = 1,
    kernel: int = 3,
    stride: int = 2,
    group_size: int = 2,
) -> MonotoneResidual:
    """A monotone Lipschitz network of convolutions, for flattened images.

    The first kernel is bounded entry by entry (1 to max), the others by the sum of the absolute
    values behind an output channel (max to max), with zeros outside the image; then comes one
    dense layer.

    Args:
        image: Channels, height and width; inputs have shape (batch, channels * height * width).
        channels: Output channels of each convolution, multiples of `group_size`.
        signs: +1, -1 or 0 for each pixel of the flattened image, or for each channel.
        lipschitz: ``lambda``: the constant of the network that is tilted.
        outputs: Number of outputs.
        kernel: Odd side of the kernels.
        stride: Of every convolution.
        group_size: Of the sorting, over channels.

    Raises:
        ConfigError: A number is out of its range.
        ShapeError: The signs do not fit the image.
    """
    c_in, height, width = image
    pixels = prod(image)
    found = check_signs(signs)
    if found.shape[-1] == c_in and c_in != pixels:
        found = found.repeat_interleave(height * width, -1)
    if found.shape[-1] != pixels:
        raise ShapeError(
            f"There are {found.shape[-1]} signs for an image of {image}, expected {c_in} or "
            f"{pixels}."
        )
    if kernel % 2 == 0 or not channels or any(c % group_size for c in channels):
        raise ConfigError(
            f"Expected an odd `kernel` and channels that are multiples of {group_size}, got "
            f"{kernel} and {tuple(channels)}."
        )
    depth = len(channels) + 1
    budget = positive(lipschitz, "lipschitz") ** (1 / depth)
    layers: list[nn.Module] = [nn.Unflatten(-1, image)]
    for k, (a, b) in enumerate(zip((c_in, *channels), channels, strict=False)):
        conv = nn.Conv2d(a, b, kernel, stride, kernel // 2)
        layers.append(constrain(conv, "max->max" if k else "1->max", budget))
        layers.append(GroupSort(group_size=group_size, dim=1))
        height, width = -(-height // stride), -(-width // stride)
    head = nn.Linear(channels[-1] * height * width, outputs)
    layers += [nn.Flatten(), constrain(head, "max->max", budget)]
    return MonotoneResidual(nn.Sequential(*layers), found, lipschitz)


def budget_shares(total: float, depth: int, *, learned: bool) -> float | Budgets:
    """What each of `depth` layers may have for the product to be `total`."""
    return Budgets(depth, total) if learned else total ** (1 / depth)
