"""Strong monotonicity of convolutional and dense cells: proved, attained, refused."""

from dataclasses import replace

import pytest
import torch

from wellposed.cells.infnorm import InfNormCell
from wellposed.cells.monotone import MonotoneCell
from wellposed.cells.monotone_conv import MonotoneConv2d
from wellposed.cells.multitier import MultiTierCell
from wellposed.cells.nemon import NemonConv2d
from wellposed.certify.lipschitz import lipschitz
from wellposed.certify.monotone import modulus, two_norm_gain
from wellposed.certify.wellposed import wellposedness
from wellposed.core.activations import GELU, ReLU
from wellposed.core.affine import Affine
from wellposed.core.norms import TwoNorm
from wellposed.core.operators import Convolution
from wellposed.errors import NotCertifiableError
from wellposed.nn.equilibrium import Equilibrium

CELLS = {
    "zeros": lambda **o: MonotoneConv2d(2, 3, image=(5, 6), **o),
    "strided": lambda **o: MonotoneConv2d(2, 3, image=(7, 9), stride=2, inject=5, **o),
    "circular": lambda **o: MonotoneConv2d(2, 3, image=(6, 8), padding="circular", stride=2, **o),
    "tiers": lambda **o: MultiTierCell(1, (2, 3), image=(8, 8), **o),
    "dense": lambda **o: MonotoneCell(4, 9, **o),
    "scaled zeros": lambda **o: MonotoneConv2d(2, 3, image=(5, 6), scaled=True, **o),
    "scaled circular": lambda **o: MonotoneConv2d(
        2, 3, image=(6, 8), padding="circular", stride=2, scaled=True, **o
    ),
    "scaled dense": lambda **o: MonotoneCell(4, 9, scaled=True, **o),
}


def wild(cell, scale, *, signs=False, rounding=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in cell.parameters():
            value = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            value = value.sign() if signs else value
            p.copy_(scale * (value.bfloat16() if rounding else value))
    return cell


def dense(affine):
    affine = affine.double()
    return affine.A.materialise(), affine.B.materialise()


def metric_of(affine):
    shape = affine.A.out_shape
    lam = affine.double().metric
    lam = torch.ones(shape, dtype=torch.float64) if lam is None else lam.expand(shape)
    return lam.flatten()


def least(A, lam):
    k = lam.sqrt()
    M = k[:, None] * (torch.eye(len(A), dtype=A.dtype) - A) / k
    return float(torch.linalg.eigvalsh((M + M.mT) / 2)[0])


def stretched(A, B, draws=8, steps=12):
    """The largest 2-norm of ``(I - [d] A)^-1 [d] B`` over slopes that were drawn and attacked."""
    generator = torch.Generator().manual_seed(1)
    eye, best = torch.eye(len(A), dtype=A.dtype), 0.0
    for draw in range(draws):
        d = torch.rand(len(A), generator=generator, dtype=A.dtype)
        d = (d < 0.2 * (1 + draw % 5)).to(A.dtype) if draw % 2 else d
        for _ in range(steps):
            J = torch.linalg.solve(eye - d[:, None] * A, d[:, None] * B)
            U, s, Vh = torch.linalg.svd(J, full_matrices=False)
            best = max(best, float(s[0]))
            # derivative of u^T J v with respect to d: one term a neuron
            left = torch.linalg.solve((eye - d[:, None] * A).mT, U[:, 0])
            pull = left * (A @ (J @ Vh[0]) + B @ Vh[0])
            d = (pull > 0).to(A.dtype)
    return best


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0, 1e3])
@pytest.mark.parametrize("ugly", [{}, {"signs": True}, {"rounding": True}], ids=str)
def test_what_is_proved_holds_and_the_gain_beats_the_product_of_norms(name, scale, ugly):
    affine = wild(CELLS[name](margin=0.3), scale, **ugly).explicit()
    A, B = dense(affine)
    lam = metric_of(affine)
    m, true = modulus(affine), least(A, lam)
    k = lam.sqrt()
    assert m <= true + 1e-12 * (1 + float((k[:, None] * A / k).abs().sum()))
    if not m > 0:
        with pytest.raises(NotCertifiableError):
            two_norm_gain(affine)
        return
    gain, size = two_norm_gain(affine), float(torch.linalg.matrix_norm(B, 2))
    # the tori that stand for zero padding are a little larger
    uneven = float((lam.amax() / lam.amin()).sqrt())
    assert gain <= 1.3 * uneven * size / m
    assert stretched(A, B, draws=2, steps=4) <= gain * (1 + 1e-9)


@pytest.mark.parametrize("name", CELLS)
def test_attacked_slopes_stay_below_the_gain(name):
    affine = wild(CELLS[name](margin=0.5), 0.4).explicit()
    A, B = dense(affine)
    assert stretched(A, B) <= two_norm_gain(affine)


def test_the_margin_of_a_circular_cell_is_exact():
    for seed, name in enumerate(["circular", "circular", "scaled circular"]):
        affine = wild(CELLS[name](margin=0.4), 0.5, seed=seed).explicit()
        true = least(dense(affine)[0], metric_of(affine))
        assert modulus(affine) == pytest.approx(true, abs=1e-9)


def test_a_metric_that_is_no_metric_is_refused():
    affine = wild(CELLS["scaled zeros"](), 0.3).explicit().double()
    for wrong in (-affine.metric, affine.metric * float("nan"), torch.ones(1, 5, 6)):
        with pytest.raises(NotCertifiableError, match="positive number for each of its 3"):
            modulus(replace(affine, metric=wrong))


def test_the_metric_proves_what_the_plain_norm_cannot():
    cell = MonotoneConv2d(1, 2, image=(4, 4), kernel=1, margin=0.5, scaled=True)
    with torch.no_grad():
        cell.F.zero_()
        cell.S.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]])[:, :, None, None])
        cell.log_scale.copy_(torch.tensor([1.5, -1.5]))
    affine = cell.explicit()
    assert modulus(affine) == pytest.approx(0.5, abs=1e-5)
    assert modulus(replace(affine, metric=None)) < 0
    assert wellposedness(cell).weights.unique().numel() == 2


def test_the_gain_is_attained_by_a_scalar_symbol():
    # one channel, A = a I: z = B x / (1 - a) on all slopes one
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 1, 1] = 0.25
    inject = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    affine = Affine(
        Convolution(kernel, (4, 5), "circular"), Convolution(inject, (4, 5), "circular"),
        torch.zeros(1, 1, 1, dtype=torch.float64), ReLU(),
    )  # fmt: skip
    assert two_norm_gain(affine) == pytest.approx(1 / 0.75, rel=1e-6)
    assert two_norm_gain(affine) >= 1 / 0.75


@pytest.mark.parametrize("name", CELLS)
def test_modules_are_certified_and_composed(name):
    cell = wild(CELLS[name](margin=0.5), 0.4)
    found = wellposedness(Equilibrium(cell))
    assert found.margin > 0
    shape = cell.explicit().A.out_shape
    net = torch.nn.Sequential(
        Equilibrium(cell), torch.nn.Flatten(), torch.nn.Linear(shape.numel() if hasattr(
            shape, "numel") else int(torch.tensor(shape).prod()), 3)
    ).eval()  # fmt: skip
    bound = lipschitz(net, norm_in=TwoNorm())
    A, B = dense(cell.explicit())
    head = net[2].weight.detach().double()
    linear = head @ torch.linalg.solve(torch.eye(len(A), dtype=A.dtype) - A, B)
    assert float(torch.linalg.matrix_norm(linear, 2)) <= bound.value
    assert bound.value <= 4 * two_norm_gain(cell.explicit()) * float(
        torch.linalg.matrix_norm(head, 2)
    )


def test_weights_that_were_edited_by_hand_are_refused():
    affine = wild(CELLS["zeros"](), 0.5).explicit().double()
    kernel = affine.A.weight.clone()
    kernel[0, 0, 2, 2] += 1e3
    edited = replace(affine, A=affine.A.with_weight(kernel))
    assert modulus(edited) < 0
    for question in (two_norm_gain, wellposedness):
        with pytest.raises(NotCertifiableError, match=r"margin of monotonicity.*-"):
            question(edited)
    kernel[0, 0, 2, 2] = float("nan")
    with pytest.raises(NotCertifiableError, match="NaN"):
        modulus(replace(affine, A=affine.A.with_weight(kernel)))


def test_a_margin_within_rounding_of_nothing_is_refused():
    # I - A is singular: A is the identity at the constant frequency
    kernel = torch.zeros(1, 1, 1, 1, dtype=torch.float64) + 1.0
    A = Convolution(kernel, (4, 4), "circular")
    affine = Affine(A, A, torch.zeros(1, 1, 1, dtype=torch.float64), ReLU())
    assert -1e-10 < modulus(affine) <= 0


def test_a_changed_cell_and_a_wrong_activation_are_refused():
    cell = wild(CELLS["zeros"](margin=1.0), 0.5)
    cell.margin = -40.0
    with pytest.raises(NotCertifiableError):
        lipschitz(Equilibrium(cell), norm_in="2")
    affine = replace(wild(CELLS["zeros"](), 0.1).explicit(), activation=GELU())
    with pytest.raises(NotCertifiableError, match="slopes"):
        two_norm_gain(affine)
    with pytest.raises(NotCertifiableError):
        wellposedness(torch.nn.ReLU())


def test_cells_of_the_max_norm_keep_their_bounds():
    torch.manual_seed(0)
    for cell in (NemonConv2d(1, 3, image=(5, 5)), InfNormCell(4, 6)):
        assert lipschitz(cell).norm_in == "max"
        assert wellposedness(cell).margin > 0
        A, B = dense(cell.explicit())
        linear = torch.linalg.solve(torch.eye(len(A), dtype=A.dtype) - A, B)
        assert float(torch.linalg.matrix_norm(linear, 2)) <= lipschitz(cell, norm_in="2").value
