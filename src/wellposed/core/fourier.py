"""Convolutions by frequency: centred symbols on half of the spectrum, and inverses of splitting.

On a torus the two-dimensional discrete Fourier transform makes a convolution of ``c`` channels one
complex ``c x c`` matrix a frequency. Real kernels have conjugate matrices at opposite frequencies,
so that half of the spectrum is enough; an even side has its own opposite among them, an odd one
has not, and `torch.fft.rfft2` knows both.
"""

from __future__ import annotations

from math import pi
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.inverse import Inverse, inverse_of
from wellposed.core.operators import Convolution
from wellposed.core.symbols import symbols
from wellposed.errors import ConfigError


def torus(operator: Convolution) -> tuple[int, int]:
    """Height and width of a torus on which the convolution is circular and nothing wraps around.

    Zero padding: at least ``side + reach`` pixels, rounded up to a side with small prime factors;
    two pixels of the image that wrap around are then further apart than the kernel reaches.

    Raises:
        ConfigError: The convolution has a stride or changes the number of channels.
    """
    if operator.stride != 1 or not operator.square:
        raise ConfigError(
            f"A kernel of shape {tuple(operator.kernel.shape)} with stride {operator.stride} has "
            "no inverse; a state operator is square."
        )
    if operator.padding == "circular":
        return operator.image
    reach = [side // 2 for side in operator.kernel.shape[2:]]
    height, width = (_smooth(n + r) for n, r in zip(operator.image, reach, strict=True))
    return height, width


def centred_symbols(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """``K^(w) = sum_t K_t exp(i <w, t>)`` with taps counted from the centre, half of the spectrum.

    ``(K z)^ = K^ z^`` for ``(K z)_p = sum_t K_t z_{p + t}`` and `torch.fft.rfft2`.

    Args:
        kernel: Shape (out, in, odd, odd), real.
        grid: Height and width of the torus.

    Returns:
        Shape (grid[0] * (grid[1] // 2 + 1), out, in), complex.
    """
    height, width = grid
    rows = torch.arange(height, dtype=torch.float64, device=kernel.device)
    columns = torch.arange(width // 2 + 1, dtype=torch.float64, device=kernel.device)
    up, left = kernel.shape[2] // 2, kernel.shape[3] // 2
    turn = (rows * up % height / height)[:, None] + columns * left % width / width
    # spectral.symbols counts taps from the corner and turns the other way
    shift = torch.polar(torch.ones_like(turn), 2 * pi * turn).flatten()
    found = symbols(kernel, grid)
    return (found * shift.to(found.dtype)[:, None, None]).conj().resolve_conj()


@final
class FourierInverse(Inverse):
    """One complex matrix for each frequency of a torus, on half of the spectrum.

    Everything is a real matrix product: short transforms are cheaper as products with tables of
    cosines than as fast ones, and with the frequencies in front and the samples last nothing is
    ever moved about. Elements keep that order in memory whatever shape they show. For a torus of
    ``h x w`` pixels and ``c`` channels a sample costs ``2 w h c (w + 4 h)`` products for the
    transforms, and ``4 c^2 h (w // 2 + 1)`` for the matrices; the inverse took about ``8 c^3`` real
    operations for each of the ``h (w // 2 + 1)`` frequencies.

    Args:
        matrices: ``R^``, shape (h (w // 2 + 1), c, c), complex, ordered as by `torch.fft.rfft2`.
        steps: ``alpha`` of each channel, shape (c, 1, 1).
        grid: Height and width of the torus.
        image: Height and width of the state.
    """

    def __init__(
        self, matrices: Tensor, steps: Tensor, grid: tuple[int, int], image: tuple[int, int]
    ) -> None:
        self.steps, self._grid, self._image = steps, grid, image
        self._tables = _tables(grid, steps)
        self._matrices = _as_real(matrices, grid).to(steps)
        self._turned: Tensor | None = None
        self._mask: Tensor | None = None

    @property
    @override
    def mask(self) -> Tensor | None:
        if self._mask is None and self._grid != self._image:
            self._mask = self.enter(self.steps.new_ones(1, 1, *self._image))
        return self._mask

    @override
    def enter(self, z: Tensor) -> Tensor:
        batch, channels, height, width = z.shape
        out = z.new_zeros(self._grid[1], self._grid[0], channels, batch).permute(3, 2, 1, 0)
        out[..., :height, :width] = z
        return out

    @override
    def leave(self, u: Tensor) -> Tensor:
        return u[..., : self._image[0], : self._image[1]]

    @override
    def apply(self, h: Tensor) -> Tensor:
        return self._multiply(self._matrices, h)

    @override
    def adjoint(self, h: Tensor) -> Tensor:
        if self._turned is None:
            scale = self.steps.flatten().repeat(2)
            self._turned = (self._matrices / scale[:, None] * scale).mT.contiguous()
        return self._multiply(self._turned, h)

    @override
    def reflect(self, h: Tensor) -> Tensor:
        return torch.lerp(h, self.apply(h), 2.0)

    @override
    def reflect_adjoint(self, h: Tensor) -> Tensor:
        return torch.lerp(h, self.adjoint(h), 2.0)

    def _multiply(self, matrices: Tensor, h: Tensor) -> Tensor:
        (height, width), (batch, channels) = self._grid, h.shape[:2]
        half, columns = width // 2 + 1, channels * batch
        into, down, up, out = self._tables
        x = h.permute(3, 2, 1, 0).contiguous()
        x = torch.mm(into, x.reshape(width, -1)).reshape(half, 2 * height, columns)
        x = torch.matmul(down, x).reshape(half * height, 2 * channels, batch)
        x = torch.bmm(matrices, x).reshape(half, 2 * height, columns)
        x = torch.mm(out, torch.matmul(up, x).reshape(2 * half, -1))
        return x.reshape(width, height, channels, batch).permute(3, 2, 1, 0)


def _tables(grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transforms along the width and the height, and back, with complex numbers as pairs of rows.

    Half of the frequencies of the width stand for both halves: on the way back those with an
    opposite of their own count twice.
    """
    height, width = grid
    across, down = _angles(width // 2 + 1, width), _angles(height, height)
    first = torch.stack([across.cos(), -across.sin()], 1)  # (frequency, re/im, pixel)
    twice = torch.full((len(first), 1, 1), 2.0, dtype=torch.float64)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    last = (first * twice / width).reshape(-1, width).mT
    c, s = down.cos(), down.sin()
    both = torch.stack([torch.cat([c, s], 1), torch.cat([-s, c], 1)], 1)
    both = both.reshape(2 * height, 2 * height)  # (frequency, re/im) from (re/im, pixel)
    tables = first.reshape(-1, width), both, both.mT / height, last
    return tuple(t.contiguous().to(like) for t in tables)  # type: ignore[return-value]


def _angles(frequencies: int, side: int) -> Tensor:
    product = torch.arange(frequencies)[:, None] * torch.arange(side)
    return (product % side).double() * (2 * pi / side)


def _as_real(matrices: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[[Re, -Im], [Im, Re]]`` of each matrix, frequencies of the width in front."""
    by_width = matrices.unflatten(0, (grid[0], -1)).transpose(0, 1).flatten(0, 1)
    re, im = by_width.real, by_width.imag
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


@inverse_of.register
def _convolution(operator: Convolution, steps: Tensor) -> Inverse:
    grid = torus(operator)
    wide = centred_symbols(operator.kernel.double(), grid)
    eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    matrices = torch.linalg.inv(eye + steps.double().reshape(-1, 1) * (eye - wide))
    return FourierInverse(matrices, steps, grid, operator.image)


def _smooth(least: int) -> int:
    """The smallest number without prime factors above 7 that is at least `least`."""
    while True:
        rest = least
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1
