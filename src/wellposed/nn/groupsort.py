"""GroupSort and MaxMin: activations that sort, 1-Lipschitz in every p-norm."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.errors import ConfigError, ShapeError


@final
class GroupSort(nn.Module):
    """Sort ascending within groups of neighbouring channels [1].

    Almost everywhere it permutes channels: its Jacobian is a permutation matrix, so it is
    1-Lipschitz in every p-norm, keeps the norm of gradients, and rises in every channel. Exactly
    one of the two numbers is given, by name.

    Args:
        group_size: Channels of a group; 2 is `MaxMin`.
        n_groups: Number of groups instead; all channels are one group for 1.
        dim: Axis of the channels, negative ones from the end.

    Raises:
        ConfigError: None or both of the numbers are given, or it is not a positive integer.
        ShapeError: The input has no such axis, or its length is not divisible (when called).

    References:
        [1] Anil, Lucas, Grosse. Sorting out Lipschitz function approximation. ICML 2019,
        arXiv 1811.05381.
    """

    def __init__(
        self, *, group_size: int | None = None, n_groups: int | None = None, dim: int = 1
    ) -> None:
        super().__init__()
        if (group_size is None) == (n_groups is None):
            raise ConfigError(
                f"`group_size` is {group_size} and `n_groups` {n_groups}, expected exactly one of "
                "them.",
                hint="`GroupSort(group_size=2)` sorts pairs of channels.",
            )
        for name, value in (("group_size", group_size), ("n_groups", n_groups)):
            if value is not None and not _is_positive(value):
                raise ConfigError(f"`{name}` must be a positive integer, got {value!r}.")
        self.group_size, self.n_groups, self.dim = group_size, n_groups, dim

    @override
    def forward(self, x: Tensor) -> Tensor:
        axis = _axis(x, self.dim)
        size = self.group_size
        if size is None:
            groups = self.n_groups or 1
            _check_divisible(x, axis, groups, f"`n_groups` = {groups}")
            size = max(x.shape[axis] // groups, 1)
        return _sorted(x, axis, size)

    @override
    def extra_repr(self) -> str:
        count = f"n_groups={self.n_groups}" if self.group_size is None else None
        return f"{count or f'group_size={self.group_size}'}, dim={self.dim}"


@final
class MaxMin(nn.Module):
    """``(x_1, x_2) -> (min, max)`` on pairs of neighbouring channels: `GroupSort` in pairs.

    Args:
        dim: Axis of the channels, negative ones from the end.

    Raises:
        ShapeError: The input has no such axis, or an odd number of channels (when called).
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _sorted(x, _axis(x, self.dim), 2)

    @override
    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _sorted(x: Tensor, axis: int, size: int) -> Tensor:
    _check_divisible(x, axis, size, f"groups of {size}")
    if size == 1:
        return x
    groups = x.unflatten(axis, (x.shape[axis] // size, size))
    inner = axis + 1
    if size == 2:  # several times faster than a sort
        first, second = groups.unbind(inner)
        ordered = torch.stack((torch.minimum(first, second), torch.maximum(first, second)), inner)
    else:
        ordered = groups.sort(inner).values
    return ordered.flatten(axis, inner)


def _axis(x: Tensor, dim: int) -> int:
    if not -x.ndim <= dim < x.ndim:
        raise ShapeError(f"The input has shape {tuple(x.shape)}, expected an axis {dim} to sort.")
    return dim % x.ndim


def _check_divisible(x: Tensor, axis: int, number: int, what: str) -> None:
    if x.shape[axis] % number:
        raise ShapeError(
            f"Axis {axis} of the input has {x.shape[axis]} channels, expected a multiple of "
            f"{number} for {what}.",
            hint="change the width of the layer before, or the groups.",
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
