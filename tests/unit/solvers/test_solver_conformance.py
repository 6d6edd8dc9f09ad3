"""Every solver of the library keeps the contract that `check_solver` states."""

from dataclasses import dataclass

import pytest
import torch

from wellposed.core.activations import ReLU, Tanh
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Convolution
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Solver, Stopping
from wellposed.solvers.broyden import Broyden
from wellposed.solvers.newton import Newton
from wellposed.solvers.picard import Averaged, Jacobi, Picard
from wellposed.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from wellposed.testing.solvers import check_solver, contractive_map

SOLVERS = [
    (Jacobi(), True),
    (Averaged(), True),
    (Averaged(per_neuron=True), True),
    (ForwardBackward(), True),
    (ForwardBackward(per_neuron=True), True),
    (Auto(), False),
    (PeacemanRachford(), False),
    (DouglasRachford(), False),
    (Anderson(), False),
    (Anderson(window=1), False),
    (Anderson(window=2, safeguard=False), False),
    (Broyden(), False),
    (Broyden(memory=2), False),
    (Newton(), False),
]


@pytest.mark.parametrize(("solver", "bitwise"), SOLVERS, ids=repr)
def test_solver_keeps_the_contract(solver, bitwise):
    check_solver(solver, bitwise=bitwise)


@pytest.mark.parametrize(
    "solver", [Jacobi(), Averaged(), ForwardBackward(), Auto(), Anderson(), Broyden()], ids=repr
)
def test_solver_keeps_the_contract_on_tanh_and_convolutions(solver):
    dense = contractive_map(samples=5, states=6)
    kernel = 0.05 * torch.randn(
        2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    images = torch.randn(
        5, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    conv = AffineMap(Convolution(kernel, (4, 5)), images, ReLU())
    maps = [AffineMap(dense.operator, dense.offset, Tanh()), conv]
    check_solver(solver, maps=maps, stopping=Stopping(1e-5, 0.0, 500))


def test_picard_keeps_the_contract_on_its_own_maps():
    check_solver(Picard(), maps=[contractive_map().canonical()], bitwise=True)


@dataclass
class Thawed(Solver):
    step: float = 1.0

    def propose(self, map_, z, fz, state):
        return fz, state


@dataclass(frozen=True)
class Coupled(Solver):
    """Steps by the batch mean: what a batch-wide line search does."""

    def prepare(self, map_):
        return map_.canonical()

    def propose(self, map_, z, fz, state):
        return z + (fz - z) * (1 + 0.01 * float(torch.tanh((fz - z).abs().mean()))), state


@dataclass(frozen=True)
class Flattering(Solver):
    """Reports residuals a thousandth of their size."""

    def prepare(self, map_):
        return map_.canonical()

    def propose(self, map_, z, fz, state):
        return torch.lerp(z, fz, 1e-3), state


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (Thawed(), "hash"),
        (Coupled(), "batch mates"),
        (Flattering(), "converge"),
    ],
)
def test_the_kit_catches(solver, message):
    with pytest.raises((AssertionError, TypeError), match=message):
        check_solver(solver, bitwise=True, stopping=Stopping(1e-9, 0.0, 1000))
