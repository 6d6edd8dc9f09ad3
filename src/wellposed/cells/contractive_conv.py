"""Convolutional contractive cells: a state on a grid, iterated by a convolution of norm below 1."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.cells.checks import check_odd, check_padding, check_sizes
from wellposed.cells.contractive import check_factor, shrink
from wellposed.core.activations import Activation, ReLU
from wellposed.core.affine import Affine
from wellposed.core.operators import Convolution, Padding
from wellposed.solvers.base import Solver
from wellposed.solvers.picard import Picard


@final
class ContractiveConv2d(AffineCell):
    """Convolutional cell with ``||A||_2 <= bound`` for any kernel.

    ``A = K min(1, bound / N(K))`` with the exact norm of the circular convolution, from the
    singular values of its symbols on half of the spectrum; zeros outside the image are a
    compression of the circular convolution on a larger grid, whose norm is used (`two_norm`).

    Args:
        c_in: Channels of the input image.
        c_state: Channels of the state.
        image: Height and width of the input.
        kernel: Odd side of both kernels.
        padding: ``"zeros"`` or ``"circular"``.
        stride: Of the input convolution: the state lives on the coarser grid.
        bound: Upper bound of the norm.
        activation: ReLU by default.
        dtype: Of the parameters.

    Raises:
        ConfigError: `bound` times the steepest slope is not below 1, or the kernel is even.
        ShapeError: The kernel does not fit a circular image.
    """

    preferred: ClassVar[Solver | None] = Picard()

    def __init__(
        self,
        c_in: int,
        c_state: int,
        *,
        image: tuple[int, int],
        kernel: int = 3,
        padding: Padding = "zeros",
        stride: int = 1,
        bound: float = 0.9,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(c_in=c_in, c_state=c_state, kernel=kernel, stride=stride)
        check_odd(kernel=kernel)
        self.activation = activation or ReLU()
        self.bound = check_factor(bound, self.activation)
        self.image, self.stride = image, stride
        self.padding: Padding = check_padding(padding)
        self.inject = nn.Parameter(torch.empty(c_state, c_in, kernel, kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(c_state, dtype=dtype))
        self.K = nn.Parameter(torch.empty(c_state, c_state, kernel, kernel, dtype=dtype))
        for weight in (self.inject, self.K):
            limit = 1 / sqrt(weight[0].numel())
            nn.init.uniform_(weight, -limit, limit)
        self._pair(self.K)  # shapes are checked here, not at first use

    def _pair(self, kernel: Tensor) -> tuple[Convolution, Convolution]:
        B = Convolution(self.inject, self.image, self.padding, self.stride)
        grid = (B.out_shape[1], B.out_shape[2])
        return Convolution(kernel, grid, self.padding), B

    @override
    def explicit(self) -> Affine:
        free, B = self._pair(self.K)
        A = free.with_weight(self.K * shrink(free, self.bound))
        return Affine(A, B, self.bias[:, None, None], self.activation)

    @override
    def extra_repr(self) -> str:
        c_state, c_in, kernel, _ = self.inject.shape
        return (
            f"{c_in}, {c_state}, image={self.image}, kernel={kernel}, padding={self.padding!r}, "
            f"stride={self.stride}, bound={self.bound}, {self.activation.name}"
        )
