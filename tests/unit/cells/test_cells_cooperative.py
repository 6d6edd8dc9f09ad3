"""Cooperative cells: equilibria that keep the order of chosen inputs."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.cells.cooperative import CooperativeCell
from wellposed.certify import order
from wellposed.core.activations import Tanh
from wellposed.errors import ConfigError, NotCertifiableError
from wellposed.nn.monotone import lipschitz_monotone
from wellposed.testing import check_cell

SIGNS = (1, -1, 0, 1)


def ugly(seed: int, scale: float) -> CooperativeCell:
    torch.manual_seed(seed)
    activation = Tanh() if seed % 2 else None
    cell = CooperativeCell(4, 6, signs=SIGNS, margin=0.5 * (seed % 3 == 0), activation=activation)
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(scale)
    return cell.double()


def ordered(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    step = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return x, x + step * torch.tensor(SIGNS)


def test_it_is_a_cell():
    torch.manual_seed(0)
    report = check_cell(CooperativeCell(4, 6, signs=SIGNS), torch.randn(5, 4))
    assert report.log_norm is not None
    assert report.log_norm < 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 30.0])
def test_the_equilibrium_keeps_the_order(seed, scale):
    # plain iteration needs some thousand evaluations where the margin is a part in a thousand
    stopping = wp.Stopping(1e-9, 0.0, 20_000)
    layer = wp.Equilibrium(ugly(seed, scale), eval_stopping=stopping).eval()
    x, above = ordered(200, seed)
    with torch.no_grad():
        low, high = layer(x), layer(above)
    size = 1 + float(high.abs().max())
    assert float((high - low).min()) >= -1e-8 * size


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_have_the_signs(seed):
    cell = ugly(seed, 10.0)
    affine = cell.explicit().double()
    A, B = affine.A.materialise(), affine.B.materialise()
    off = A - torch.diag(torch.diagonal(A))
    assert float(off.min()) >= 0
    for j, sign in enumerate(SIGNS):
        if sign:
            assert float((B[:, j] * sign).min()) >= 0
        else:
            assert torch.equal(B[:, j], cell.inject.weight[:, j])


def test_gradients_are_those_of_the_equilibrium():
    torch.manual_seed(0)
    cell = CooperativeCell(3, 4, signs=SIGNS[:3], activation=Tanh()).double()
    layer = wp.Equilibrium(cell).eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def f(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, tuple(layer.parameters()), atol=1e-4, fast_mode=True)


def test_a_monotone_network_may_follow_it():
    torch.manual_seed(0)
    head = lipschitz_monotone((6, 8, 1), [1] * 6)
    net = nn.Sequential(wp.Equilibrium(ugly(0, 3.0)), head).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(20)
        x, above = ordered(2000, 0)
        assert float((net(above) - net(x)).min()) >= -1e-7


@pytest.mark.parametrize("signs", [(1, 1), (1, 2, 0, 0), (0.5, 1, 1, 1)])
def test_bad_signs(signs):
    with pytest.raises(ConfigError, match="signs"):
        CooperativeCell(4, 3, signs=signs)


def test_the_signs_are_proved():
    found = order(wp.Equilibrium(ugly(1, 3.0)).eval())
    found.require(SIGNS)
    with pytest.raises(NotCertifiableError):
        found.require((1, 1, 0, 1))


@pytest.mark.slow
def test_the_example_keeps_its_order(capsys):
    path = Path(__file__).resolve().parents[3] / "examples" / "monotone_equilibrium.py"
    found = run_path(str(path))["main"](steps=5)
    proved = [row for row in found.values() if row["proved"]]
    assert len(proved) == 2
    assert all(row["violation"] < 1e-4 for row in proved)
    assert "not proved" in capsys.readouterr().out
