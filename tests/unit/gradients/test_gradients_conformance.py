"""Our own gradients and cells through the kit that outsiders use; the kit catches what is wrong."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from wellposed.cells.free import FreeCell
from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.core.activations import Tanh
from wellposed.errors import AuditError
from wellposed.gradients.base import Gradient
from wellposed.gradients.implicit import Implicit
from wellposed.gradients.truncated import Neumann, OneStep, Phantom, Unrolled
from wellposed.testing.cells import check_cell
from wellposed.testing.gradients import check_gradient


@pytest.mark.parametrize("gradient", [Implicit(rtol=1e-13), Unrolled(80)], ids=repr)
def test_exact_gradients(gradient):
    assert check_gradient(gradient).error <= 1e-8


@pytest.mark.parametrize("gradient", [OneStep(), Neumann(3), Phantom(4)], ids=repr)
def test_inexact_gradients(gradient):
    report = check_gradient(gradient, exact=False)
    assert 1e-4 < report.error < 1
    with pytest.raises(AuditError, match="first derivatives"):
        check_gradient(gradient)


@dataclass(frozen=True)
class Detached(Gradient):
    def attach(self, problem):
        return problem.run()


@dataclass(frozen=True)
class Shifted(Gradient):
    def attach(self, problem):
        solution = OneStep().attach(problem)
        return replace(solution, value=solution.value + 1)


def test_wrong_gradients_are_caught():
    with pytest.raises(AuditError, match="one input suffices"):
        check_gradient(Detached())
    with pytest.raises(AuditError, match="value solves the equation"):
        check_gradient(Shifted())


class Mean(nn.Module):
    def forward(self, z, x):
        return 0.3 * z + x + 0.1 * x.mean(0)


class Noisy(nn.Module):
    def forward(self, z, x):
        return 0.3 * z + x + torch.rand_like(x)


class Growing(nn.Module):
    def forward(self, z, x):
        return 2 * z + x


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        (lambda: NemonCell(5, 7, margin=0.3), (5,)),
        (lambda: NemonCell(5, 7, activation=Tanh()), (5,)),
        (lambda: NemonConv2d(2, 3, image=(5, 5)), (2, 5, 5)),
        (lambda: InfNormCell(5, 7), (5,)),
        (lambda: FreeCell(nn.Bilinear(4, 4, 4)), (4,)),
    ],
)
def test_our_cells(cell, shape):
    torch.manual_seed(0)
    report = check_cell(cell(), 0.3 * torch.randn(4, *shape))
    assert report.log_norm is None or report.log_norm < 1


@pytest.mark.parametrize(
    ("module", "message"),
    [(Mean(), "depend on its batch"), (Noisy(), "repeatable"), (Growing(), "converges")],
    ids=["mean", "noisy", "growing"],
)
def test_wrong_cells_are_caught(module, message):
    with pytest.raises(AuditError, match=message):
        check_cell(FreeCell(module), torch.randn(4, 5), max_evaluations=60)
