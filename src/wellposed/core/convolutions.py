"""Convolutions of one to three dimensions with any padding, stride, dilation and grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from typing_extensions import override

from wellposed.core.operators import Convolution, Operator
from wellposed.errors import ConfigError, ShapeError

Outside = Literal["zeros", "circular", "reflect", "replicate"]
Sides = tuple[int, ...]

_CORRELATE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_WEIGHT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


@final
@dataclass(frozen=True, eq=False)
class GeneralConvolution(Operator):
    """``y_o = sum_t K_t x_(s o + d t - before)`` in one to three dimensions, over groups.

    Where pixels outside are copies, several taps of one window may read one pixel; `absolute` then
    bounds ``|M|`` from above.

    Args:
        kernel: Shape (out, in / groups, ...), with one to three sides.
        image: Sides of the argument.
        margin: Pixels added (before, after) on each axis; negative ones are cut off.
        outside: What the added pixels hold.
        stride: Step of the result's pixels on the argument's, an axis each.
        dilation: Step of the taps, an axis each.
        groups: Parts of the channels that do not see each other.

    Raises:
        ShapeError: The pieces do not fit, or the result has no pixel.
    """

    kernel: Tensor
    image: Sides
    margin: tuple[tuple[int, int], ...]
    outside: Outside
    stride: Sides
    dilation: Sides
    groups: int = 1

    def __post_init__(self) -> None:
        axes = len(self.image)
        if axes not in _CORRELATE or self.kernel.ndim != axes + 2 or 0 in self.kernel.shape:
            raise ShapeError(
                f"A kernel on images {self.image} must have {axes} sides, one to three, and no "
                f"empty one; got shape {tuple(self.kernel.shape)}."
            )
        if self.groups < 1 or self.kernel.shape[0] % self.groups:
            raise ShapeError(f"{self.kernel.shape[0]} channels are not {self.groups} equal groups.")
        if any(len(given) != axes for given in (self.margin, self.stride, self.dilation)):
            raise ShapeError(
                f"Margin {self.margin}, stride {self.stride} and dilation {self.dilation} must "
                f"have {axes} entries."
            )
        if min(*self.stride, *self.dilation, *self.image) < 1:
            raise ShapeError(
                f"Stride {self.stride}, dilation {self.dilation} and image {self.image} must be "
                "positive."
            )
        if self.outside == "reflect" and any(
            max(sides) >= n for sides, n in zip(self.margin, self.image, strict=True)
        ):
            raise ShapeError(f"Margins {self.margin} reflect more than an image of {self.image}.")
        if any(side < 1 for side in self._results()):
            raise ShapeError(
                f"A kernel over {self.extent} pixels does not fit an image of {self.image} with "
                f"margins {self.margin}."
            )

    @property
    def extent(self) -> Sides:
        """How many pixels lie from the first tap to the last, both counted."""
        sides = zip(self.kernel.shape[2:], self.dilation, strict=True)
        return tuple(d * (k - 1) + 1 for k, d in sides)

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[1] * self.groups, *self.image)

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[0], *self._results())

    @property
    @override
    def weight(self) -> Tensor:
        return self.kernel

    @property
    @override
    def adjoint_terms(self) -> int:
        # every copy of a pixel outside of the image adds a sum of its own
        copies = 1
        for index in self.sources() if self.outside != "zeros" else ():
            copies *= int(index.bincount().amax())
        return self.kernel[:, 0].numel() * copies

    @override
    def with_weight(self, weight: Tensor) -> GeneralConvolution:
        return replace(self, kernel=weight)

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        y = _CORRELATE[len(self.image)](
            self._extend(x), self.kernel, None, self.stride, 0, self.dilation, self.groups
        )
        return y if offset is None else y + offset

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        sizes = zip(self._padded(), self.extent, self.stride, strict=True)
        extra = [(size - reach) % s for size, reach, s in sizes]
        # pixels after the last window; appended here, since torch limits `output_padding`
        x = _SPREAD[len(self.image)](
            y, self.kernel, None, self.stride, 0, 0, self.groups, self.dilation
        )
        x = self._collect(F.pad(x, [side for e in reversed(extra) for side in (0, e)]))
        return x if offset is None else x + offset

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        shape = list(self.kernel.shape)
        find = _WEIGHT[len(self.image)]
        rest = self.stride, 0, self.dilation, self.groups
        return find(self._extend(x), shape, y, *rest)  # pyright: ignore[reportArgumentType]

    @override
    def diagonal(self) -> Tensor:
        self._refuse_diagonal()

    @override
    def off_diagonal(self) -> GeneralConvolution:
        self._refuse_diagonal()

    @override
    def scale_rows(self, scale: Tensor) -> GeneralConvolution:
        return replace(self, kernel=scale.reshape(-1, *[1] * (self.kernel.ndim - 1)) * self.kernel)

    def sources(self) -> list[Tensor]:
        """Which pixel each pixel of the extended image copies, axis by axis; -1 for zeros."""
        found: list[Tensor] = []
        for n, (before, after) in zip(self.image, self.margin, strict=True):
            at = torch.arange(-before, n + after)
            if self.outside == "zeros":
                at = torch.where((at < 0) | (at >= n), -1, at)
            elif self.outside == "circular":
                at = at % n
            elif self.outside == "replicate":
                at = at.clamp(0, n - 1)
            else:
                at = (n - 1) - ((n - 1) - at.abs()).abs()
            found.append(at)
        return found

    def _padded(self) -> Sides:
        return tuple(n + a + b for n, (a, b) in zip(self.image, self.margin, strict=True))

    def _results(self) -> Sides:
        sizes = zip(self._padded(), self.extent, self.stride, strict=True)
        return tuple((size - reach) // s + 1 for size, reach, s in sizes)

    def _extend(self, x: Tensor) -> Tensor:
        if self.outside == "zeros":
            return F.pad(x, [side for pair in reversed(self.margin) for side in pair])
        for axis, (index, pair) in enumerate(zip(self.sources(), self.margin, strict=True)):
            if pair != (0, 0):
                x = x.index_select(axis + 2, index.to(x.device))
        return x

    def _collect(self, x: Tensor) -> Tensor:
        """Adjoint of `_extend`: every copy is added to the pixel it came from."""
        if self.outside == "zeros":
            return F.pad(x, [-side for pair in reversed(self.margin) for side in pair])
        for axis, (index, pair) in enumerate(zip(self.sources(), self.margin, strict=True)):
            if pair != (0, 0):
                shape = list(x.shape)
                shape[axis + 2] = self.image[axis]
                x = x.new_zeros(shape).index_add(axis + 2, index.to(x.device), x)
        return x

    def _refuse_diagonal(self) -> NoReturn:
        raise ConfigError(
            "A general convolution keeps no diagonal apart.",
            hint="state operators use `wellposed.core.operators.Convolution`.",
        )


def convolution(
    kernel: Tensor,
    image: Sequence[int],
    *,
    padding: Literal["same", "valid", "full"] | int | Sequence[int] = "same",
    outside: Outside = "zeros",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> GeneralConvolution:
    """A convolution, described as in `torch.nn`.

    Args:
        kernel: Shape (out, in / groups, ...), with one to three sides, odd or even.
        image: Sides of the argument.
        padding: Pixels added on both ends of an axis; ``"same"`` as many as keep the size (one
            more behind than in front where the kernel is even), ``"full"`` as many as let every
            tap meet every pixel.
        outside: What the added pixels hold.
        stride: Step of the result's pixels.
        dilation: Step of the taps.
        groups: Parts of the channels that do not see each other.

    Raises:
        ShapeError: The pieces do not fit.
        ConfigError: A padding has another name.
    """
    sides = tuple(int(n) for n in image)
    axes = len(sides)
    if kernel.ndim != axes + 2:
        raise ShapeError(f"A kernel of shape {tuple(kernel.shape)} does not fit images {sides}.")
    taps, steps = _each(stride, axes), _each(dilation, axes)
    reach = [d * (k - 1) for k, d in zip(kernel.shape[2:], steps, strict=True)]
    if padding == "same":
        margin = [(r // 2, r - r // 2) for r in reach]
    elif padding == "full":
        margin = [(r, r) for r in reach]
    elif padding == "valid":
        margin = [(0, 0)] * axes
    elif isinstance(padding, str):
        raise ConfigError(
            f"Padding {padding!r} is unknown; expected 'same', 'valid', 'full' or numbers."
        )
    else:
        margin = [(p, p) for p in _each(padding, axes)]
    return GeneralConvolution(kernel, sides, tuple(margin), outside, taps, steps, groups)


def general(operator: Convolution) -> GeneralConvolution:
    """The same map in the form that knows every padding and stride."""
    return convolution(
        operator.kernel, operator.image, outside=operator.padding, stride=operator.stride
    )


def _each(value: int | Sequence[int], axes: int) -> Sides:
    found = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(found) == 1:
        found = found * axes
    if len(found) != axes:
        raise ShapeError(f"{value} must be one number or {axes}.")
    return found
