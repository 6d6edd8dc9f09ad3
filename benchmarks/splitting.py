"""Operator splitting of monotone cells: evaluations, and the cost of convolutions by frequency."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import wellposed as wp
from benchmarks.common import Report, interleaved
from wellposed.cells.monotone_conv import MonotoneConv2d
from wellposed.core.fourier import centred_symbols, torus
from wellposed.core.inverse import inverse_of
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution
from wellposed.solvers.base import Solver, solve

RTOL = 1e-10
MARGIN = 0.1


@torch.no_grad()
def run() -> None:
    """Count evaluations on a dense cell, then time steps and inverses of convolutional ones."""
    report = Report(
        "splitting",
        f"Monotone cells: margin {MARGIN} to relative {RTOL}, and convolutions by frequency",
        ("what", "here", "straightforward", "ratio"),
    )
    ours, theirs = _evaluations()
    report.row("evaluations, dense 20 to 30: PR, FB", str(ours), str(theirs), theirs / ours)
    report.metrics = {
        "evaluations_peaceman_rachford": ours,
        "evaluations_forward_backward": theirs,
        "evaluations_ratio": theirs / ours,
    }
    for name, channels, side, batch in (("mnist", 54, 28, 32), ("cifar10", 81, 32, 16)):
        found = _frequencies(channels, side, batch)
        for what in ("iteration", "inverse"):
            here, there = found[what], found[f"{what}, stacked"]
            report.row(f"CPU ms of an {what}, {name}", 1e3 * here, 1e3 * there, there / here)
            report.metrics[f"cpu_ratio_{what}_{name}"] = there / here
        report.metrics[f"difference_{name}"] = found["difference"]
        report.row(f"largest difference in float64, {name}", "", "", found["difference"])
    report.metrics["cpu_ratio_iteration"] = min(
        report.metrics[f"cpu_ratio_iteration_{name}"] for name in ("mnist", "cifar10")
    )
    report.metrics["cpu_ratio_inverse"] = min(
        report.metrics[f"cpu_ratio_inverse_{name}"] for name in ("mnist", "cifar10")
    )
    report.metrics["difference"] = max(
        report.metrics[f"difference_{name}"] for name in ("mnist", "cifar10")
    )
    report.finish()


def _evaluations() -> tuple[int, int]:
    """Of Peaceman-Rachford by default, and of forward-backward with its proved step ``m / L^2``."""
    torch.manual_seed(0)
    cell = wp.MonotoneCell(20, 30, margin=MARGIN, dtype=torch.float64)
    with torch.no_grad():
        cell.F.copy_(torch.randn(30, 30, dtype=torch.float64) / 30**0.5)
        cell.S.copy_(torch.randn(30, 30, dtype=torch.float64) / 30**0.5)
    map_ = cell.bind(torch.randn(32, 20, dtype=torch.float64))
    assert isinstance(map_, AffineMap)
    A = map_.operator.materialise()
    step = MARGIN / float(torch.linalg.matrix_norm(torch.eye(30, dtype=A.dtype) - A, 2)) ** 2
    stopping = wp.Stopping(RTOL, 0.0, 100_000)

    def count(solver: Solver) -> int:
        found = solve(map_, torch.zeros_like(map_.offset), solver, stopping)
        return int(found.require().evaluations.max())

    best = min(
        count(wp.ForwardBackward(factor * step, certified=False)) for factor in (1.0, 1.9, 4.0, 8.0)
    )
    return count(wp.PeacemanRachford()), best


def _frequencies(channels: int, side: int, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    cell = MonotoneConv2d(1, channels, image=(side, side))
    A = cell.explicit().A
    assert isinstance(A, Convolution)
    steps = 1 / (1 - A.diagonal())
    inverse, grid = inverse_of(A, steps), torus(A)
    stacked = Stacked(A, steps, grid)
    z = torch.randn(batch, channels, *grid)
    # in the order in memory in which an iteration of ours leaves it
    h = z.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    times = interleaved(
        {
            "iteration": lambda: _step(inverse.apply, h),
            "iteration, stacked": lambda: _step(stacked.apply, z),
            "inverse": lambda: inverse_of(A, steps),
            "inverse, stacked": lambda: Stacked(A, steps, grid),
        },
        rounds=5,
    )
    wide, wide_steps = A.to(torch.float64), steps.double()
    exact, other = inverse_of(wide, wide_steps), Stacked(wide, wide_steps, grid)
    times["difference"] = float((exact.apply(z.double()) - other.apply(z.double())).abs().max())
    return times


def _step(apply: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """What one step of Peaceman-Rachford does besides the inverse."""
    z = torch.relu(h)
    point = h + 2 * (apply(2 * z - h) - z)
    return torch.relu(point)


class Stacked:
    """The published formulation as one would write it: complex numbers as stacked real ones.

    For every frequency of the whole spectrum the real matrix ``[[Re, -Im], [Im, Re]]`` of twice
    the size is inverted and applied, between complex transforms of all channels.
    """

    def __init__(self, A: Convolution, steps: Tensor, grid: tuple[int, int]) -> None:
        height, width = grid
        half = centred_symbols(A.kernel.double(), grid).reshape(height, width // 2 + 1, -1)
        # the other half of the spectrum is conjugate at the opposite frequency
        columns = torch.arange(width)
        rows = torch.arange(height)
        mirrored = half[(-rows % height)[:, None], (-columns % width).clamp(max=width // 2)].conj()
        whole = torch.where(
            (columns <= width // 2)[None, :, None],
            half[:, columns.clamp(max=width // 2)],
            mirrored,
        )
        c = len(A.kernel)
        K = whole.reshape(-1, c, c)
        real = torch.cat([torch.cat([K.real, -K.imag], -1), torch.cat([K.imag, K.real], -1)], -2)
        eye = torch.eye(2 * c, dtype=real.dtype)
        alpha = steps.double().flatten().repeat(2)[:, None]
        self.inverse = torch.linalg.inv(eye + alpha * (eye - real)).to(A.kernel.dtype)
        self.grid = grid

    def apply(self, h: Tensor) -> Tensor:
        """``R h``."""
        batch, channels = h.shape[:2]
        x = torch.view_as_real(torch.fft.fft2(h)).permute(2, 3, 4, 1, 0)
        x = torch.bmm(self.inverse, x.reshape(len(self.inverse), 2 * channels, batch))
        x = x.reshape(*self.grid, 2, channels, batch).permute(4, 3, 0, 1, 2).contiguous()
        return torch.fft.ifft2(torch.view_as_complex(x)).real
