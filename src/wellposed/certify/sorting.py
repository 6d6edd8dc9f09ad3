"""Rules for sorting in groups, `GroupSort` and `MaxMin`: 1-Lipschitz in every p-norm, with boxes.

A pair of inputs is joined by a segment on which sorting permutes almost everywhere: the difference
of two outputs is ``J dx`` with a ``J`` that is doubly stochastic within every group. Hence
``|J| v`` is at most the largest ``v`` of the group, all norms of ``J`` are at most 1, the mean of a
group is kept exactly and what is left of it does not grow. For groups of two that is an elementwise
function in turned coordinates: the sum is kept, the difference has slopes in [-1, 1].
"""

from __future__ import annotations

from math import prod
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.certify.eclipse import WIDEST
from wellposed.certify.ellipsoid import Slope, Step, Weights
from wellposed.certify.enclose import enclose_rule
from wellposed.certify.guard import refuse
from wellposed.certify.lipschitz import Site, infer_shape, lipschitz_rule
from wellposed.certify.majorant import Majorant
from wellposed.core.sets import Box
from wellposed.core.spectra import rounding
from wellposed.errors import ShapeError
from wellposed.nn.groupsort import GroupSort, MaxMin


@final
class Sorting(Majorant):
    """Sorting within groups along one axis of an input.

    Args:
        shape: Shape of one input.
        axis: Which of its axes, from 0.
        size: Channels of a group, a divisor of the axis.
    """

    neutral: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, ...], axis: int, size: int) -> None:
        super().__init__(shape, shape)
        self.axis, self.size = axis, size

    @override
    def apply(self, v: Tensor) -> Tensor:
        groups = self._grouped(v)
        return groups.amax(self.axis + 2, keepdim=True).expand_as(groups).reshape(v.shape)

    @override
    def adjoint(self, c: Tensor) -> Tensor:
        return self.apply(c)

    @property
    @override
    def spectral(self) -> float:
        return 1.0

    @property
    @override
    def steps(self) -> tuple[Step, ...] | None:
        n = prod(self.in_shape)
        if n > WIDEST:
            return None
        groups = self._grouped(torch.eye(n, dtype=torch.float64).reshape(n, *self.in_shape))
        turned = torch.movedim(groups, self.axis + 2, -1) @ _helmert(self.size).mT
        turn = torch.movedim(turned, -1, self.axis + 2).reshape(n, n).mT.contiguous()
        # the first coordinate of every group is its mean
        kept = torch.zeros(1, *self.in_shape, dtype=torch.float64)
        self._grouped(kept).select(self.axis + 2, 0).fill_(1)
        low = 2 * kept.flatten() - 1
        slope = Slope(low, torch.ones_like(low), tied=self.size > 2)
        error = rounding(8) * turn.abs()
        return (Weights(turn, error), slope, Weights(turn.mT.contiguous(), error.mT))

    @property
    @override
    def rule(self) -> str:
        return "sorting permutes: 1-Lipschitz in every p-norm (Anil et al., arXiv 1811.05381)"

    def _grouped(self, v: Tensor) -> Tensor:
        axis = self.axis + 1
        return v.unflatten(axis, (v.shape[axis] // self.size, self.size))


def _helmert(size: int) -> Tensor:
    """An orthogonal matrix whose first row takes the mean, up to a rounding of every entry."""
    H = torch.zeros(size, size, dtype=torch.float64)
    H[0] = size**-0.5
    for k in range(1, size):
        H[k, :k] = (k * (k + 1)) ** -0.5
        H[k, k] = -k * (k * (k + 1)) ** -0.5
    return H


def sorted_axis(module: GroupSort | MaxMin, shape: tuple[int, ...], path: str) -> tuple[int, int]:
    """The axis of one input that a module sorts along, and the size of its groups.

    Raises:
        NotCertifiableError: It sorts across samples.
        ShapeError: The input has no such axis, or it is not divisible.
    """
    ndim = len(shape) + 1
    axis = module.dim + ndim if module.dim < 0 else module.dim
    if not 0 <= axis < ndim:
        raise ShapeError(f"Inputs of shape {shape} have no axis {module.dim} to sort along.")
    if axis == 0:
        raise refuse(module, path, "it sorts across samples",
                     "sort along the axis of the features, such as `dim=-1`.")  # fmt: skip
    channels = shape[axis - 1]
    groups, size = (None, 2) if isinstance(module, MaxMin) else (module.n_groups, module.group_size)
    if size is None:
        groups = groups or 1
        size = max(channels // groups, 1) if channels % groups == 0 else channels + 1
    if channels % size:
        raise ShapeError(
            f"`{path or type(module).__name__}` sorts {channels} channels, which are not divisible "
            "into its groups.",
            hint="change the width of the layer before, or the groups.",
        )
    return axis - 1, size


def _rule(module: GroupSort | MaxMin, site: Site) -> Majorant:
    return Sorting(site.shape, *sorted_axis(module, site.shape, site.path))


def _box(module: GroupSort | MaxMin, box: Box) -> Box:
    # the k-th smallest rises with every channel: ends of a box have the ends of its image
    sorted_axis(module, box.shape[1:], "")
    return Box(module(box.lower), module(box.upper))


for _kind in (GroupSort, MaxMin):
    lipschitz_rule.register(_kind, _rule)
    enclose_rule.register(_kind, _box)
    infer_shape.register(_kind, lambda module: ())
