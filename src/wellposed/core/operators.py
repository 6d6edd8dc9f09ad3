"""Linear maps between state spaces, used without forming their matrices.

An operator acts on a batch of states: ``(batch, *in_shape) -> (batch, *out_shape)``. What depends
on a single output component (a diagonal, a bias, a row scale) has a shape that broadcasts against
``out_shape``: ``(n,)`` for a matrix, ``(channels, 1, 1)`` for a convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from typing_extensions import override

from wellposed.core.peel import transforming
from wellposed.errors import ShapeError

Padding = Literal["zeros", "circular"]


class Operator(ABC):
    """A linear map ``M`` given by its action and that of its adjoint."""

    @property
    @abstractmethod
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one argument."""

    @property
    @abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one result."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The numbers that define the map."""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that `weight` is made of: itself, unless putting it together takes work."""
        return (self.weight,)

    @abstractmethod
    def with_weight(self, weight: Tensor) -> Self:
        """The same structure with other numbers."""

    @abstractmethod
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """``M x + offset``."""

    def shifted(self, offset: Tensor) -> Callable[[Tensor], Tensor]:
        """The function ``x -> M x + offset``, for use in a loop."""
        return lambda x: self.apply(x, offset)

    @abstractmethod
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        """``M^T y + offset``."""

    @abstractmethod
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """Gradient of ``sum_batch <y, M x>`` with respect to `weight`."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal ``m_ii``, broadcastable against a state; the operator must be square."""

    @abstractmethod
    def off_diagonal(self) -> Self:
        """The operator with its diagonal set to zero."""

    @abstractmethod
    def scale_rows(self, scale: Tensor) -> Self:
        """``[scale] M``; `scale` broadcasts against a result."""

    def absolute(self) -> Self:
        """``|M|``, elementwise."""
        return self.with_weight(self.weight.abs())

    def to(self, dtype: torch.dtype) -> Self:
        """The operator in another precision."""
        return self.with_weight(self.weight.to(dtype))

    def detach(self) -> Self:
        """The operator without its autograd history."""
        return self.with_weight(self.weight.detach())

    @property
    def square(self) -> bool:
        """Whether arguments and results have the same shape."""
        return self.in_shape == self.out_shape

    @property
    def terms(self) -> int:
        """How many products are summed, at the most, in one component of the result."""
        return self.weight[0].numel()

    @property
    def adjoint_terms(self) -> int:
        """How many products are summed, at the most, in one component of the adjoint."""
        return self.weight[:, 0].numel()

    def materialise(self) -> Tensor:
        """The matrix of shape (prod(out_shape), prod(in_shape)); for tests and small states."""
        n = prod(self.in_shape)
        basis = torch.eye(n, dtype=self.weight.dtype, device=self.weight.device)
        return self.apply(basis.reshape(n, *self.in_shape)).reshape(n, -1).mT


@final
class Dense(Operator):
    """A matrix of shape (out, in).

    Args:
        matrix: Its numbers.
    """

    __slots__ = ("_matrix", "_parts")

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise ShapeError(f"A dense operator needs a matrix, got {tuple(matrix.shape)}.")
        self._matrix: Tensor | None = matrix
        self._parts: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_parts(cls, rest: Tensor, diagonal: Tensor) -> Dense:
        """A square matrix given as one with a zero diagonal, taken at its word, and a diagonal.

        Iterating the canonical form needs the parts alone: the whole is put together when someone
        asks for it.
        """
        made = cls(rest)
        made._matrix, made._parts = None, (rest, diagonal)
        return made

    @property
    def matrix(self) -> Tensor:
        """Its numbers, of shape (out, in)."""
        if self._matrix is not None:
            return self._matrix
        assert self._parts is not None
        whole = torch.diagonal_scatter(*self._parts)
        # what was made without history, or inside a transform, is of no use outside
        if whole.requires_grad == any(t.requires_grad for t in self._parts) and not transforming():
            self._matrix = whole
        return whole

    @property
    def _shape(self) -> torch.Size:
        return self._parts[0].shape if self._matrix is None and self._parts else self.matrix.shape

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return (self._shape[1],)

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return (self._shape[0],)

    @property
    @override
    def weight(self) -> Tensor:
        return self.matrix

    @property
    @override
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.matrix,) if self._parts is None else self._parts

    @override
    def with_weight(self, weight: Tensor) -> Dense:
        return Dense(weight)

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        if offset is None:
            return torch.mm(x, self.matrix.mT)
        return torch.addmm(offset, x, self.matrix.mT)

    @override
    def shifted(self, offset: Tensor) -> Callable[[Tensor], Tensor]:
        turned = self.matrix.mT
        return lambda x: torch.addmm(offset, x, turned)

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        if offset is None:
            return torch.mm(y, self.matrix)
        return torch.addmm(offset, y, self.matrix)

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.mm(y.mT, x)

    @override
    def diagonal(self) -> Tensor:
        return torch.diagonal(self.matrix) if self._parts is None else self._parts[1]

    @property
    @override
    def square(self) -> bool:
        rows, columns = self._shape
        return rows == columns

    @override
    def off_diagonal(self) -> Dense:
        if self._parts is not None:
            return Dense(self._parts[0])
        return Dense(self.matrix - torch.diag_embed(torch.diagonal(self.matrix)))

    @override
    def scale_rows(self, scale: Tensor) -> Dense:
        return Dense(scale[:, None] * self.matrix)


@final
@dataclass(frozen=True, eq=False)
class Convolution(Operator):
    """A 2-D convolution with an odd kernel, centred, on images of a fixed size.

    Args:
        kernel: Shape (out channels, in channels, height, width), height and width odd.
        image: Height and width of the argument.
        padding: What lies outside the image: zeros, or the image again (circular).
        stride: Step of the result's pixels on the argument's.
    """

    kernel: Tensor
    image: tuple[int, int]
    padding: Padding = "zeros"
    stride: int = 1

    def __post_init__(self) -> None:
        if self.kernel.ndim != 4 or any(k % 2 == 0 for k in self.kernel.shape[2:]):
            raise ShapeError(
                f"A kernel must be (out, in, odd, odd), got {tuple(self.kernel.shape)}."
            )
        if self.padding == "circular" and any(
            k // 2 > side for k, side in zip(self.kernel.shape[2:], self.image, strict=True)
        ):
            raise ShapeError(
                f"A circular kernel of {tuple(self.kernel.shape[2:])} wraps more than once around "
                f"an image of {self.image}.",
                hint="use a smaller kernel or `padding='zeros'`.",
            )
        if self.padding == "circular" and any(side % self.stride for side in self.image):
            raise ShapeError(
                f"A circular convolution of stride {self.stride} needs an image whose sides it "
                f"divides, got {self.image}."
            )

    @property
    def _margin(self) -> tuple[int, int]:
        return self.kernel.shape[2] // 2, self.kernel.shape[3] // 2

    @property
    @override
    def in_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[1], *self.image)

    @property
    @override
    def out_shape(self) -> tuple[int, ...]:
        return (self.kernel.shape[0], *((side - 1) // self.stride + 1 for side in self.image))

    @property
    @override
    def weight(self) -> Tensor:
        return self.kernel

    @override
    def with_weight(self, weight: Tensor) -> Convolution:
        return replace(self, kernel=weight)

    @override
    def apply(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        if self.padding == "zeros":
            y = F.conv2d(x, self.kernel, stride=self.stride, padding=self._margin)
        else:
            y = F.conv2d(self._wrap(x), self.kernel, stride=self.stride)
        return y if offset is None else y + offset

    @override
    def adjoint(self, y: Tensor, offset: Tensor | None = None) -> Tensor:
        if self.padding == "zeros":
            extra = tuple((side - 1) % self.stride for side in self.image)
            x = F.conv_transpose2d(
                y, self.kernel, stride=self.stride, padding=self._margin, output_padding=extra
            )
        else:
            extra = tuple((side - 1) % self.stride for side in self.image)
            x = self._unwrap(
                F.conv_transpose2d(y, self.kernel, stride=self.stride, output_padding=extra)
            )
        return x if offset is None else x + offset

    @override
    def weight_gradient(self, y: Tensor, x: Tensor) -> Tensor:
        shape = list(self.kernel.shape)
        if self.padding == "circular":
            return conv2d_weight(self._wrap(x), shape, y, stride=self.stride)
        # the stub says int; conv2d takes a pair, and kernels need not be square
        margin: Any = self._margin
        return conv2d_weight(x, shape, y, stride=self.stride, padding=margin)

    @override
    def diagonal(self) -> Tensor:
        h, w = self._margin
        return torch.diagonal(self.kernel[:, :, h, w])[:, None, None]

    @override
    def off_diagonal(self) -> Convolution:
        h, w = self._margin
        centre = torch.zeros_like(self.kernel[0, 0])
        centre[h, w] = 1
        taps = torch.diag_embed(self.diagonal().flatten())[:, :, None, None] * centre
        return replace(self, kernel=self.kernel - taps)

    @override
    def scale_rows(self, scale: Tensor) -> Convolution:
        return replace(self, kernel=scale.reshape(-1, 1, 1, 1) * self.kernel)

    def _wrap(self, x: Tensor) -> Tensor:
        h, w = self._margin
        return F.pad(x, (w, w, h, h), mode="circular")

    def _unwrap(self, x: Tensor) -> Tensor:
        """Adjoint of the circular padding: every copy is added to the pixel it came from."""
        (h, w), (height, width) = self._margin, self.image
        rows = x[..., h : h + height, :].clone()
        if h:
            rows[..., -h:, :] += x[..., :h, :]
            rows[..., :h, :] += x[..., h + height :, :]
        out = rows[..., w : w + width].clone()
        if w:
            out[..., -w:] += rows[..., :w]
            out[..., :w] += rows[..., w + width :]
        return out
