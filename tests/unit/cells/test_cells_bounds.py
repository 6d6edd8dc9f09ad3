"""What the cells promise, measured on the materialised matrix, whatever their parameters."""

import pytest
import torch

from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.core.activations import GELU, ReLU, SiLU, Tanh
from wellposed.core.norms import MaxNorm
from wellposed.errors import ConfigError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping

SCALES = [1.0, 10.0, 1e3, 1e-3]


def disturb(cell, scale, rounding):
    """Adversarial parameters: scaled, of random sign, maybe rounded to bfloat16."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in cell.parameters():
            sign = torch.randint(2, p.shape, generator=generator) * 2.0 - 1
            p.copy_((torch.randn(p.shape, generator=generator) + p.abs()) * sign * scale)
            if rounding:
                p.copy_(p.bfloat16())
    return cell


def log_norm(cell):
    affine = cell.explicit().double()
    A = affine.A.materialise()
    eta = affine.witness.expand(affine.A.out_shape).flatten()
    assert torch.isfinite(A).all()
    assert torch.isfinite(eta).all()
    assert (eta > 0).all()
    return float(MaxNorm(eta).log_norm(A)), float(A.abs().sum(1).amax())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.9, -0.5])
def test_log_norm_of_the_dense_cell(scale, rounding, margin):
    torch.manual_seed(0)
    cell = disturb(NemonCell(3, 17, margin=margin), scale, rounding)
    measured, _ = log_norm(cell)
    assert measured <= margin + 1e-6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_log_norm_of_the_convolution_cell(scale, rounding, padding, stride):
    torch.manual_seed(0)
    cell = NemonConv2d(2, 3, image=(8, 6), padding=padding, stride=stride)
    measured, _ = log_norm(disturb(cell, scale, rounding))
    assert measured <= 1e-6


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_bound_is_met_by_positive_kernels(padding):
    # every tap positive, no damping: the published shift is exceeded here, ours is attained
    cell = NemonConv2d(1, 2, image=(7, 7), padding=padding)
    with torch.no_grad():
        cell.K.abs_()
        cell.damping.fill_(-30)
    measured, _ = log_norm(cell)
    assert -1e-4 <= measured <= 0


@pytest.mark.parametrize("log_eta", [1e3, -1e3, 1e6])
def test_extreme_weights_stay_finite(log_eta):
    torch.manual_seed(0)
    for cell in (NemonCell(3, 9), NemonConv2d(1, 3, image=(5, 5))):
        with torch.no_grad():
            cell.log_eta[0] = log_eta
        measured, size = log_norm(cell)
        assert measured <= 1e-6 * max(1.0, size) * 1e-3
        explicit = cell.explicit()
        (explicit.A.weight.sum() + explicit.bias.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in cell.parameters() if p.grad is not None)


@pytest.mark.parametrize("scale", [0.0, *SCALES])
@pytest.mark.parametrize("bound", [0.95, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinity_norm_cell(scale, bound, dtype):
    torch.manual_seed(0)
    cell = disturb(InfNormCell(3, 40, bound=bound, dtype=dtype), scale, False)
    norm = MaxNorm().operator_norm(cell.explicit().double().A.materialise())
    assert norm <= bound
    cell.explicit().A.weight.square().sum().backward()
    assert torch.isfinite(cell.W.grad).all()


def test_rows_inside_the_ball_are_left_alone():
    torch.manual_seed(0)
    cell = InfNormCell(2, 5)
    with torch.no_grad():
        cell.W.mul_(0.01)
    assert torch.equal(cell.explicit().A.weight, cell.W)


@pytest.mark.parametrize("activation", [GELU(), SiLU()], ids=lambda a: a.name)
def test_steep_activations_are_allowed_below_their_bound(activation):
    torch.manual_seed(0)
    limit = 1 / activation.steepest
    with pytest.raises(ConfigError, match="`bound` must lie in"):
        InfNormCell(3, 6, bound=0.95, activation=activation)
    cell = disturb(InfNormCell(3, 6, bound=0.99 * limit, activation=activation), 1.0, False)
    layer = Equilibrium(cell, eval_stopping=Stopping(max_evaluations=2000)).eval()
    x = torch.randn(4, 3)
    z = layer(x)
    map_ = cell.bind(x)
    assert torch.allclose(map_(z), z, atol=1e-3)


CELLS = {
    "dense": lambda: NemonCell(4, 6, margin=0.2),
    "dense tanh": lambda: NemonCell(4, 6, activation=Tanh()),
    "conv": lambda: NemonConv2d(1, 3, image=(2, 2)),
    "infnorm": lambda: InfNormCell(4, 6),
}


@pytest.mark.parametrize("kind", CELLS)
def test_no_parameter_is_dead_at_the_start(kind):
    torch.manual_seed(0)
    layer = Equilibrium(CELLS[kind]())
    x = torch.randn(64, 4) if kind != "conv" else torch.randn(64, 1, 2, 2)
    (layer(x) * torch.randn(64, *layer.cell.explicit().A.out_shape)).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad.abs().sum() > 0, name
        if name.endswith((".T", ".W")):
            free = ~torch.eye(len(p), dtype=torch.bool) if name.endswith(".T") else slice(None)
            assert (p.grad[free] != 0).float().mean() > 0.9, name


def test_unused_centres_do_not_matter():
    cell = NemonCell(3, 5)
    before = cell.explicit().A.weight.clone()
    with torch.no_grad():
        cell.T.diagonal().add_(100)
    assert torch.equal(cell.explicit().A.weight, before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NemonCell(3, 4, margin=1.0), ConfigError, "below 1, got 1.0"),
        (lambda: NemonCell(3, 4, margin=float("nan")), ConfigError, "below 1, got nan"),
        (lambda: NemonCell(3, 4, activation=GELU()), ConfigError, "gelu has slopes"),
        (lambda: NemonCell(0, 4), ShapeError, "`n_in` must be at least 1, got 0"),
        (lambda: NemonConv2d(1, 2, image=(4, 4), kernel=2), ConfigError, "must be odd, got 2"),
        (lambda: NemonConv2d(1, 2, image=(4, 4), padding="same"), ConfigError, "'same'"),
        (
            lambda: NemonConv2d(1, 2, image=(5, 4), padding="circular", stride=2),
            ShapeError,
            "stride 2",
        ),
        (lambda: InfNormCell(3, 4, bound=1.0), ConfigError, "got 1.0"),
        (lambda: InfNormCell(3, 4, bound=0.0), ConfigError, "got 0.0"),
        (lambda: InfNormCell(3, 4, activation=ReLU(), bound=float("nan")), ConfigError, "nan"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
