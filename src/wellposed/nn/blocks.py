"""Right-hand sides of free equilibrium layers."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override


@final
class ConvBlock(nn.Module):
    """``f(z, x) = relu(N(W_2 relu(W_1 z) + V x))`` with convolutions ``W_1, W_2, V``.

    ``N`` is group normalisation: states stay bounded, but nothing bounds the Jacobian.

    Args:
        c_in: Channels of the input.
        c_state: Channels of the state.
        kernel: Odd side of all kernels.
        stride: Of the input convolution: the state lives on the coarser grid.
        groups: Of the normalisation; a divisor of `c_state`.
    """

    def __init__(
        self, c_in: int, c_state: int, *, kernel: int = 3, stride: int = 1, groups: int = 4
    ) -> None:
        super().__init__()
        half = kernel // 2
        self.first = nn.Conv2d(c_state, c_state, kernel, padding=half, bias=False)
        self.second = nn.Conv2d(c_state, c_state, kernel, padding=half, bias=False)
        self.inject = nn.Conv2d(c_in, c_state, kernel, stride, half, bias=False)
        self.norm = nn.GroupNorm(groups, c_state)

    @override
    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.second(F.relu(self.first(z))) + self.inject(x)))
