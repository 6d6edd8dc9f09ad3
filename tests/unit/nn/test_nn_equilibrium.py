"""The layer: batch independence, bad input, failures, what it keeps and what it shows."""

import warnings

import pytest
import torch
from torch import nn

from wellposed.cells.free import FreeCell
from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.core.activations import Tanh
from wellposed.errors import (
    ConfigError,
    NonConvergenceError,
    NonConvergenceWarning,
    ShapeError,
)
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Status, Stopping


class Scaled(nn.Module):
    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, z, x):
        return self.factor * z + x


def dense(**options):
    torch.manual_seed(0)
    return Equilibrium(NemonCell(7, 10), **options)


CELLS = {
    "dense": (lambda: NemonCell(7, 33), (7,)),
    "dense wide": (lambda: NemonCell(784, 100), (784,)),
    "tanh": (lambda: NemonCell(7, 20, activation=Tanh()), (7,)),
    "infnorm": (lambda: InfNormCell(7, 20), (7,)),
    "conv": (lambda: NemonConv2d(2, 5, image=(7, 6)), (2, 7, 6)),
    "conv circular": (lambda: NemonConv2d(1, 8, image=(8, 8), padding="circular"), (1, 8, 8)),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    torch.manual_seed(0)
    make, shape = CELLS[kind]
    layer = Equilibrium(make()).eval()
    # samples of very different size take different numbers of evaluations
    scale = torch.logspace(-2, 1, 100).reshape(-1, *[1] * len(shape))
    x = torch.randn(100, *shape) * scale
    whole = layer.solve(x)
    for rows in ([0], [99], list(range(7)), list(range(50, 57)), [3, 98, 41]):
        part = layer.solve(x[rows])
        assert torch.equal(part.value, whole.value[rows])
        assert torch.equal(part.evaluations, whole.evaluations[rows])
        assert torch.equal(part.residual, whole.residual[rows])
        bound, full = part.error_bound, whole.error_bound
        assert (bound is None) == (full is None)
        assert bound is None or bound.shape == (len(rows),)


def test_state_dict_keys_and_round_trip():
    layer = dense()
    assert list(layer.state_dict()) == [
        "cell.T",
        "cell.log_eta",
        "cell.damping",
        "cell.inject.weight",
        "cell.inject.bias",
    ]
    conv = Equilibrium(NemonConv2d(1, 2, image=(4, 4)))
    assert list(conv.state_dict()) == [
        "cell.inject",
        "cell.bias",
        "cell.K",
        "cell.log_eta",
        "cell.damping",
    ]
    flat = Equilibrium(InfNormCell(3, 4))
    assert list(flat.state_dict()) == ["cell.W", "cell.inject.weight", "cell.inject.bias"]
    assert list(Equilibrium(FreeCell(Scaled())).state_dict()) == ["cell.f.factor"]
    x = torch.randn(4, 7)
    torch.manual_seed(9)
    other = Equilibrium(NemonCell(7, 10))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


def test_works_in_sequential_and_is_trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), Equilibrium(NemonCell(16, 8)), nn.Linear(8, 2))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    x, y = torch.randn(32, 1, 4, 4), torch.arange(32) % 2
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_last_solution_is_light():
    layer = dense()
    y = layer(torch.randn(4, 7))
    assert y.requires_grad
    assert not layer.last.value.requires_grad
    assert layer.last.map_ is None
    assert torch.equal(layer.last.value, y)
    assert layer.last.evaluations.shape == (4,)


def test_representation_names_solver_and_gradient():
    text = repr(dense())
    assert "Auto(" in text
    assert "Implicit(" in text
    assert "7, 10, margin=0.0, relu" in text


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["dense", "conv", "infnorm"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_small_batches(mode, kind, rows):
    make, shape = CELLS[kind]
    layer = Equilibrium(make()).train(mode == "train")
    x = torch.randn(rows, *shape, requires_grad=True)
    y = layer(x)
    assert y.shape[0] == rows
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert layer.last.status.shape == (rows,)


def test_empty_and_single_batches_of_a_free_cell():
    layer = Equilibrium(FreeCell(Scaled()), stopping=Stopping(1e-5))
    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    assert torch.allclose(layer(torch.ones(1, 3)), torch.full((1, 3), 2.0), rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["dense", "conv", "tanh"])
def test_a_broken_sample_is_named_and_harms_no_other(bad, kind):
    make, shape = CELLS[kind]
    torch.manual_seed(0)
    layer = Equilibrium(make(), on_failure="ignore").eval()
    x = torch.randn(6, *shape)
    good = layer.solve(x)
    x[2].flatten()[0] = bad
    mixed = layer.solve(x)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(mixed.value[others], good.value[others])
    assert mixed.status[others].eq(Status.CONVERGED).all()
    assert mixed.status[2] == Status.NONFINITE
    strict = Equilibrium(layer.cell).eval()
    with pytest.raises(NonConvergenceError, match=r"1 of 6 samples.*NaN or infinity"):
        strict(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(7), r"shape \(7,\), expected a batch"),
        (torch.zeros(2, 8), r"shape \(2, 8\), expected \(batch, 7\)"),
        (torch.zeros(2, 1, 7), r"expected \(batch, 7\)"),
        (torch.zeros(2, 7, dtype=torch.long), "int64, expected a real floating-point"),
        (torch.zeros(2, 7, dtype=torch.complex64), "complex64, expected a real"),
        (torch.zeros(2, 7, dtype=torch.float64), "float64, the cell's weights torch.float32"),
        (torch.zeros(2, 7, dtype=torch.bfloat16), "bfloat16, the cell's weights torch.float32"),
    ],
)
def test_wrong_inputs_are_refused_with_a_hint(x, message):
    with pytest.raises(ShapeError, match=message) as caught:
        dense()(x)
    assert caught.value.hint


def test_unbatched_image_is_refused():
    layer = Equilibrium(NemonConv2d(2, 5, image=(7, 6)))
    with pytest.raises(ShapeError, match=r"expected \(batch, 2, 7, 6\)"):
        layer(torch.zeros(2, 7, 6))


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="must be a Cell, got Linear") as caught:
        Equilibrium(nn.Linear(2, 2))
    assert "FreeCell" in caught.value.hint
    with pytest.raises(ConfigError, match=r"`on_failure` must be one of.*'explode'"):
        dense(on_failure="explode")
    with pytest.raises(TypeError):
        dense(max_iterations=3)


def test_non_convergence_warns_once_in_training_and_raises_in_evaluation():
    short = Stopping(max_evaluations=2)
    layer = dense(stopping=short, eval_stopping=short)
    x = 10 * torch.randn(4, 7)
    with pytest.warns(NonConvergenceWarning, match="4 of 4 samples did not converge"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    with pytest.raises(NonConvergenceError, match="budget"):
        layer.eval()(x)
    silent = dense(eval_stopping=short, on_failure="ignore").eval()
    assert silent(x).shape == (4, 10)
    assert silent.last.status.eq(Status.BUDGET).all()
    strict = dense(stopping=short, on_failure="raise")
    with pytest.raises(NonConvergenceError):
        strict(x)


def test_a_cell_that_diverges_is_reported():
    layer = Equilibrium(FreeCell(Scaled(3.0))).eval()
    with pytest.raises(NonConvergenceError, match="2 of 2 samples"):
        layer(torch.ones(2, 3))


def test_functional_refuses_what_does_not_fit():
    z = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 4\)"):
        fixed_point(lambda z: torch.zeros(2, 4), z)
    with pytest.raises(ShapeError, match=r"float32.*float64"):
        fixed_point(lambda z: 0.5 * z.double(), z)
    with pytest.raises(ConfigError, match="2 flags for 1 arguments"):
        fixed_point(lambda z, x: z, z, z, batched=(True, True))
    with pytest.raises(ConfigError, match="1 further arguments"):
        fixed_point(NemonCell(3, 3).bind(z), z, z)
    with pytest.raises(ShapeError, match=r"`z0` has shape \(3,\)"):
        fixed_point(lambda z: z, torch.zeros(3))
