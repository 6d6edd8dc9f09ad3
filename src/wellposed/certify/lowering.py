"""Rules that lower layers of `torch.nn` and equilibrium layers to one system."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from wellposed.cells.base import AffineCell
from wellposed.certify.blocks import INPUT, Link
from wellposed.certify.guard import check_eval, refuse
from wellposed.certify.linear import LINEAR_TYPES, LinearPart, linear_part
from wellposed.certify.loop import explicit_weights
from wellposed.certify.lower import Builder, Signal, lower_module, lower_rule
from wellposed.certify.rules import elementwise_activation
from wellposed.core.activations import ReLU
from wellposed.errors import ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise


@lower_rule.register
def _sequential(module: nn.Sequential, signal: Signal, builder: Builder) -> Signal:
    for child in module:
        signal = lower_module(child, signal, builder)
    return signal


@lower_rule.register
def _normalise(module: Normalise, signal: Signal, builder: Builder) -> Signal:
    if signal.source != INPUT or builder.scaling is not None:
        raise refuse(module, "", "it is not the first layer", "put it in front of all others.")
    if signal.shape != builder.in_shape or len(signal.shape) != 3:
        # regions are scaled in the shape of the inputs
        raise refuse(module, "", "the inputs are reshaped before it", "put it in front.")
    if signal.shape[0] != len(module.mean):
        raise ShapeError(
            f"{type(module).__name__} takes {len(module.mean)} channels, got values of shape "
            f"{signal.shape}."
        )
    builder.scaling = module
    return signal


@lower_rule.register(nn.Identity)
@lower_rule.register(nn.Flatten)
@lower_rule.register(nn.Unflatten)
def _shape(module: nn.Module, signal: Signal, builder: Builder) -> Signal:
    shape = module(torch.empty(1, *signal.shape)).shape
    if shape[0] != 1:
        raise refuse(module, "", "it mixes the batch into the features")
    return replace(signal, shape=tuple(shape[1:]))


@lower_rule.register(nn.Dropout)
@lower_rule.register(nn.Dropout2d)
def _dropout(module: nn.Module, signal: Signal, builder: Builder) -> Signal:
    check_eval(module, "")
    return signal


def _linear(module: Any, signal: Signal, builder: Builder) -> Signal:
    signal = builder.settle(signal)
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        module, signal = _padded(module, signal, builder)
    part = linear_part(module, "")
    try:
        probe = part.signed(torch.zeros(1, *signal.shape, dtype=torch.float64))
    except (RuntimeError, ValueError) as error:
        raise ShapeError(
            f"{type(module).__name__} does not take values of shape {signal.shape}: {error}."
        ) from error
    shape = tuple(probe.shape[1:])
    assert signal.source is not None
    builder.exact = builder.exact and not _divides(module, signal.shape)
    link = _linear_link(signal.source, module, part, signal.shape, shape)
    return builder.linear(signal, shape, link, part.offset)


def _divides(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the weights are quotients that float64 may round: averages of other than 2^k pixels.

    Their link charges an error of a weight (as that of a `nn.BatchNorm2d` does), a network with
    these weights as exact numbers would not.
    """
    match module:
        case nn.AvgPool2d():
            sides = nn.modules.utils._pair(module.kernel_size)  # pyright: ignore
            counts = [module.divisor_override or prod(sides)]
            varies = module.ceil_mode or not module.count_include_pad
        case nn.AdaptiveAvgPool2d():
            want = nn.modules.utils._pair(module.output_size)  # pyright: ignore
            into = list(zip(shape[-2:], want, strict=True))
            counts = [side // (part or side) for side, part in into]
            varies = any(side % (part or side) for side, part in into)
        case _:
            return False
    return bool(varies) or any(count & (count - 1) for count in counts)


def _padded(module: nn.Conv2d, signal: Signal, builder: Builder) -> tuple[nn.Conv2d, Signal]:
    """A convolution without padding, of an image that is padded before.

    Such a padding uses pixels several times: the sum of their weights would be rounded.
    """
    assert signal.source is not None
    # before and after the last axis, then the one before it
    pads = module._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
    size = prod(signal.shape)
    places = torch.arange(size, dtype=torch.float64).reshape(1, *signal.shape)
    try:
        padded = F.pad(places, list(pads), mode=module.padding_mode)[0].long()
    except (RuntimeError, ValueError) as error:
        raise ShapeError(
            f"{type(module).__name__} does not take values of shape {signal.shape}: {error}."
        ) from error
    link = _pick(signal.source, size, padded.flatten())
    plain = copy(module)
    plain.padding, plain.padding_mode = (0, 0), "zeros"
    return plain, builder.block(Signal(tuple(padded.shape), (link,)), linear=True)


for _kind in LINEAR_TYPES:
    lower_rule.register(_kind, _linear)


@lower_rule.register(nn.BatchNorm1d)
@lower_rule.register(nn.BatchNorm2d)
def _batch_norm(module: Any, signal: Signal, builder: Builder) -> Signal:
    """In evaluation mode ``s (x - mean) + bias`` with ``s = gain / sqrt(var + eps)``, in two steps.

    The difference has exact weights. The scale is irrational: its float64 value is within 4 units,
    and its link claims the terms of a sum of 64, so that every slack covers such an error of a
    weight of one term many times over. Those are the slacks of `dual_bound` and `interval_bounds`;
    a dense network with these weights as exact numbers is refused (`Lowered.network`).
    """
    part = linear_part(module, "")
    if len(signal.shape) not in ((3,) if isinstance(module, nn.BatchNorm2d) else (1, 2)) or (
        signal.shape[0] != module.num_features
    ):
        raise ShapeError(
            f"{type(module).__name__} of {module.num_features} features does not take values of "
            f"shape {signal.shape}."
        )
    shape, tail = signal.shape, [1] * (len(signal.shape) - 1)
    mean = torch.as_tensor(module.running_mean).detach().cpu().double().reshape(-1, *tail)
    bias = torch.zeros_like(mean)
    if module.bias is not None:
        bias = module.bias.detach().cpu().double().reshape(-1, *tail)
    signal = builder.settle(signal)
    assert signal.source is not None
    same = builder.whole(signal.source, shape).links[0]
    signal = builder.settle(builder.linear(signal, shape, same, -mean))
    assert signal.source is not None
    link = replace(
        _linear_link(signal.source, module, part, shape, shape),
        adjoint=lambda y: part.signed(y.reshape(-1, *shape)).flatten(1),
        terms=64,
    )
    builder.exact = False
    return builder.linear(signal, shape, link, bias)


def _linear_link(
    source: int, module: Any, part: LinearPart, into: tuple[int, ...], out: tuple[int, ...]
) -> Link:
    back = _known_adjoint(module, into)

    def adjoint(y: Tensor) -> Tensor:
        value = y.reshape(-1, *out)
        if back is not None:
            return back(value).flatten(1)
        zero = torch.zeros(len(y), *into, dtype=y.dtype)
        return torch.func.vjp(part.signed, zero)[1](value)[0].flatten(1)

    return Link(
        source,
        lambda x: part.signed(x.reshape(-1, *into)).flatten(1),
        adjoint,
        lambda x: part.absolute(x.reshape(-1, *into)).flatten(1),
        max(part.terms, 64),
    )


def _known_adjoint(module: nn.Module, into: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """``y -> M^T y`` where it has a form of its own; otherwise it is differentiated."""
    match module:
        case nn.Linear():
            matrix = module.weight.detach().cpu().double()
            return lambda y: y @ matrix
        case nn.Conv2d() if module.padding_mode == "zeros" and isinstance(module.padding, tuple):
            kernel = module.weight.detach().cpu().double()
            options: tuple[Any, ...] = (
                module.stride, module.padding, module.dilation, module.groups
            )  # fmt: skip
            return lambda y: conv2d_input((len(y), *into), kernel, y, *options)
        case _:
            return None


def _elementwise(module: nn.Module, signal: Signal, builder: Builder) -> Signal:
    phi = elementwise_activation(module, "")
    low, high = phi.slopes
    if low < 0 or high > 1:
        raise refuse(module, "", f"its slopes lie in [{low:.3g}, {high:.3g}], expected [0, 1]")
    builder.use(phi, module)
    return builder.block(signal)


for _kind in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.ELU):
    lower_rule.register(_kind, _elementwise)


@lower_rule.register
def _cell(module: AffineCell, signal: Signal, builder: Builder) -> Signal:
    affine = explicit_weights(module.explicit())
    signal = builder.settle(signal)
    if affine.feedback is not None or signal.shape != affine.B.in_shape:
        raise ShapeError(
            f"{type(module).__name__} takes inputs of shape {affine.B.in_shape}, got "
            f"{signal.shape}."
        )
    builder.use(affine.activation, module)
    assert signal.source is not None
    B, into, out = affine.B, affine.B.in_shape, affine.B.out_shape
    size = B.absolute()
    link = Link(
        signal.source,
        lambda x: B.apply(x.reshape(-1, *into)).flatten(1),
        lambda y: B.adjoint(y.reshape(-1, *out)).flatten(1),
        lambda x: size.apply(x.reshape(-1, *into)).flatten(1),
        B.weight.numel() if B.weight.ndim > 2 else max(B.weight.shape),
    )
    fed = builder.linear(signal, out, link, affine.bias)
    return builder.block(fed, feedback=affine.A, metric=affine.metric)


@lower_rule.register
def _equilibrium(module: Equilibrium, signal: Signal, builder: Builder) -> Signal:
    if not isinstance(module.cell, AffineCell):
        raise refuse(module.cell, "", "a general cell has no explicit weights")
    return lower_module(module.cell, signal, builder)


@lower_rule.register
def _max_pool(module: nn.MaxPool2d, signal: Signal, builder: Builder) -> Signal:
    """A tournament over the pixels of a window: ``max(a, b) = b + relu(a - b)``."""
    if len(signal.shape) != 3 or module.return_indices or module.ceil_mode:
        raise refuse(
            module, "", "it needs images; returned indices and `ceil_mode` are not covered"
        )
    if module.dilation not in (1, (1, 1)):
        raise refuse(module, "", "dilated windows are not covered")
    builder.use(ReLU(), module)
    signal = builder.settle(signal)
    assert signal.source is not None
    source, size = signal.source, prod(signal.shape)
    pixels, shape = _windows(module, signal.shape)
    first, *others = (_pick(source, size, index) for index in pixels)
    best = Signal(shape, (first,))
    for link in others:
        gap = Signal(shape, (link, *(_negative(old) for old in best.links)))
        best = Signal(shape, (*best.links, *builder.block(gap).links))
    return builder.block(best, linear=True)


def _windows(module: nn.MaxPool2d, shape: tuple[int, ...]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Flat source pixels at each place of the windows, and the shape of the result."""
    (kh, kw), (sh, sw), (ph, pw) = (
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (module.kernel_size, module.stride, module.padding)
    )
    index = torch.arange(prod(shape)).reshape(shape)
    padded = F.pad(index, (pw, pw, ph, ph), value=-1)
    height, width = ((side - k) // s + 1 for side, k, s in
                     zip(padded.shape[1:], (kh, kw), (sh, sw), strict=True))  # fmt: skip
    places = [
        padded[:, i : i + sh * height : sh, j : j + sw * width : sw][:, :height, :width].flatten()
        for i in range(kh)
        for j in range(kw)
    ]
    # the padding never wins a window: some pixel of the window stands in for it
    stand_in = torch.stack(places).amax(0)
    return [torch.where(p < 0, stand_in, p) for p in places], (shape[0], height, width)


def _pick(source: int, size: int, index: Tensor) -> Link:
    """``z -> z[index]``."""

    def spread(y: Tensor) -> Tensor:
        return y.new_zeros(len(y), size).index_add(1, index, y)

    return Link(source, lambda z: z[:, index], spread, lambda z: z[:, index], len(index))


def _negative(link: Link) -> Link:
    return replace(link, apply=lambda z: -link.apply(z), adjoint=lambda y: -link.adjoint(y))
