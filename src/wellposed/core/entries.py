"""What can be said of the single entries of an operator without forming its matrix."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket
from wellposed.core.convolutions import GeneralConvolution, general
from wellposed.core.operators import Convolution, Dense, Operator
from wellposed.core.spectra import outward
from wellposed.core.transposed import Adjoint


@singledispatch
def squared(operator: Operator) -> Operator | None:
    """The operator of the squared entries; `None` where an entry is a sum of several weights."""
    del operator
    return None


@singledispatch
def largest_entry(operator: Operator) -> NormBracket:
    """Bounds of the largest absolute entry, in float64.

    Any operator: no entry is larger than its row of ``|M|`` is in sum.
    """
    size = operator.absolute().to(torch.float64)
    ones = torch.ones(1, *size.in_shape, dtype=torch.float64, device=size.weight.device)
    upper = float(outward(size.apply(ones), size.weight.numel()).amax())
    return bracket(0.0, upper, "at most the largest row sum")


@squared.register
def _dense_squares(operator: Dense) -> Operator:
    return operator.with_weight(operator.matrix.square())


@squared.register
def _convolution_squares(operator: Convolution) -> Operator | None:
    return squared(general(operator))


@squared.register
def _general_squares(operator: GeneralConvolution) -> Operator | None:
    if _copies(operator):
        return None
    return operator.with_weight(operator.kernel.square())


@squared.register
def _adjoint_squares(operator: Adjoint) -> Operator | None:
    found = squared(operator.of)
    return None if found is None else Adjoint(found)


@largest_entry.register
def _dense_entry(operator: Dense) -> NormBracket:
    return _known(operator.matrix)


@largest_entry.register
def _convolution_entry(operator: Convolution) -> NormBracket:
    return largest_entry(general(operator))


@largest_entry.register
def _general_entry(operator: GeneralConvolution) -> NormBracket:
    kernel = operator.kernel
    if _copies(operator):
        taps = outward(kernel.abs().flatten(2).sum(2), kernel[0, 0].numel())
        return bracket(0.0, float(taps.amax()), "at most all taps of two channels on one pixel")
    for axis, n in enumerate(operator.image):
        if operator.outside != "circular":
            kernel = kernel.index_select(axis + 2, _used(operator, axis, n).to(kernel.device))
    return _known(kernel)


@largest_entry.register
def _adjoint_entry(operator: Adjoint) -> NormBracket:
    return largest_entry(operator.of)


def _known(weight: Tensor) -> NormBracket:
    size = float(weight.abs().amax()) if weight.numel() else 0.0
    return bracket(size, size, "largest entry")


def _copies(operator: GeneralConvolution) -> bool:
    """Whether several taps of one window may read one pixel."""
    if operator.outside == "circular":
        return any(reach > n for reach, n in zip(operator.extent, operator.image, strict=True))
    return operator.outside != "zeros" and any(max(sides) > 0 for sides in operator.margin)


def _used(operator: GeneralConvolution, axis: int, n: int) -> Tensor:
    """The taps that meet a pixel of the image at all."""
    s, d = operator.stride[axis], operator.dilation[axis]
    at = s * torch.arange(operator.out_shape[axis + 1]) - operator.margin[axis][0]
    reads = at[:, None] + d * torch.arange(operator.kernel.shape[axis + 2])
    return ((reads >= 0) & (reads < n)).any(0).nonzero().flatten()
