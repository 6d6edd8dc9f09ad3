"""The cascade: agrees with brute force, its witnesses are real, nothing is verified by default."""

from __future__ import annotations

import pytest
import torch
from cascade_nets import (
    SMALL,
    check,
    classes,
    contracting,
    grid,
    margins,
    module,
    monotone,
)
from torch import nn

import wellposed as wp
from wellposed.core.activations import LeakyReLU
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.verify import cascade
from wellposed.verify.branch import Budget
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.verdicts import Tier


@pytest.mark.parametrize("make", [contracting, monotone])
@pytest.mark.parametrize("seed", range(2))
def test_networks_against_a_grid(make, seed: int) -> None:
    network = make(seed)
    torch.manual_seed(seed)
    x = torch.rand(8, 3)
    y = torch.randint(3, (8,))
    y[:6] = classes(network, x)[:6]
    radius = torch.tensor([0.0, 0.003, 0.03, 0.1, 0.3, 1.0, 0.01, 0.3]).double()[:, None]
    region = Box((x.double() - radius).clamp(0, 1), (x.double() + radius).clamp(0, 1))
    found = verify(network, x, y, region, budget=SMALL)
    check(network, x, y, region, found)
    assert found.counts["unknown"] == 0
    assert found.verdicts[0].status == "verified"


def test_leaky_networks_with_identities() -> None:
    base = contracting(7, slope=0.2)
    network = Network.of(base.W, base.U, base.b, base.C, base.c, activation=LeakyReLU(0.2),
                         linear=torch.arange(6) % 3 == 0)  # fmt: skip
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(7))
    region = Box.around(x, torch.tensor([0.01, 0.05, 0.1, 0.2, 0.4, 0.8])[:, None]).clip(0, 1)
    y = classes(network, x)
    found = verify(network, x, y, region, budget=SMALL)
    check(network, x, y, region, found)
    assert found.counts["unknown"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_modules_against_a_grid(seed: int) -> None:
    model = module(seed)
    x = torch.rand(8, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[7] = (y[7] + 1) % 3
    radius = torch.tensor([0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.0])[:, None]
    region = Box.around(x, radius).clip(0, 1)
    found = verify(model, x, y, region, budget=SMALL)
    check(model, x, y, region, found)
    assert found.counts["unknown"] == 0
    assert found.verdicts[7].status == "falsified"
    assert found.verdicts[7].method == Tier.ATTACK.value


def test_images_with_scaling_and_convolution() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        wp.Normalise([0.5], [0.1]),
        wp.Equilibrium(wp.NemonConv2d(1, 2, image=(2, 2))),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    x = torch.rand(6, 1, 2, 2)
    with torch.no_grad():
        y = model(x).argmax(1)
    region = Box.around(x, torch.tensor([0.01, 0.05, 0.1, 0.2, 0.4, 0.9]).reshape(6, 1, 1, 1))
    region = region.clip(0, 1)
    found = verify(model, x, y, region, budget=SMALL)
    for k in range(6):
        box = Box(region.lower[k].reshape(1, 4), region.upper[k].reshape(1, 4))
        points = grid(box, 0, 5).reshape(-1, 1, 2, 2)
        low = float(margins(model, points, y[k].expand(len(points))).min())
        verdict = found.verdicts[k]
        assert verdict.status in ("verified", "falsified")
        if verdict.status == "verified":
            assert verdict.margin <= low + 1e-9
        else:
            point = torch.tensor(verdict.witness, dtype=torch.float64).reshape(1, 1, 2, 2)
            assert bool(region.select(torch.tensor([k])).contains(point)[0])
            assert float(margins(model, point, y[k : k + 1])) < 0


@pytest.mark.parametrize("as_module", [True, False])
def test_misclassified_inputs_are_falsified_with_themselves(as_module: bool) -> None:
    """Whatever the region, even without any budget."""
    model = module(4) if as_module else monotone(4)
    x = torch.rand(5, 3)
    clean = Classifier.of(model, (3,)).guess(x.double())
    assert clean is not None
    y = (clean + 1) % 3
    for radius in (0.0, 0.2):
        region = Box.around(x, radius)
        region = Box(x.double(), x.double()) if radius == 0 else region.clip(0, 1)
        found = verify(model, x, y, region, budget=Budget(seconds=0), until=Tier.ATTACK)
        for k, verdict in enumerate(found.verdicts):
            assert verdict.status == "falsified"
            assert verdict.witness == tuple(x[k].double().tolist())


@pytest.mark.parametrize("budget", [Budget(seconds=0.0), Budget(nodes=0)])
def test_without_a_budget_what_is_left_stays_unknown(budget: Budget) -> None:
    network = monotone(5, n=16)
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(5))
    region = Box.around(x, 0.2).clip(0, 1)
    y = classes(network, x)
    quick = verify(network, x, y, region, budget=budget)
    assert quick.counts["unknown"] > 0
    assert all(v.nodes == 0 for v in quick.verdicts)
    assert all(v.margin <= 0 for v in quick.verdicts if v.status == "unknown")
    tight = verify(network, x, y, region, until=Tier.TIGHTENED)
    assert [v.status for v in tight.verdicts] == [v.status for v in quick.verdicts]
    whole = verify(network, x, y, region, budget=SMALL)
    check(network, x, y, region, whole)
    for before, after in zip(quick.verdicts, whole.verdicts, strict=True):
        assert before.status in ("unknown", after.status)


def test_every_tier_only_adds() -> None:
    network = contracting(6, n=10)
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(6))
    region = Box.around(x, 0.05).clip(0, 1)
    y = classes(network, x)
    before = [None] * 12
    shares = []
    for tier in Tier:
        found = verify(network, x, y, region, until=tier, budget=SMALL)
        shares.append(found.certified)
        for k, verdict in enumerate(found.verdicts):
            assert before[k] in (None, "unknown", verdict.status)
            before[k] = verdict.status
    assert shares == sorted(shares)
    assert shares[-1] > shares[1]
    full = verify(network, x, y, region, budget=SMALL)
    assert full.share(Tier.BRANCHING) == full.certified
    assert full.share(Tier.ATTACK) == 0
    assert full.upper >= full.certified


@pytest.mark.parametrize("make", [contracting, monotone])
def test_balls(make) -> None:
    network = make(8)
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(8))
    y = classes(network, x)
    radius = torch.tensor([0.0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8]).double()
    ball = Ball(x, radius, 0.0, 1.0)
    found = verify(network, x, y, ball, budget=Budget(seconds=2.0))
    g = torch.Generator().manual_seed(9)
    away = torch.randn(2000, 8, 3, generator=g).double()
    away = away / away.norm(dim=-1, keepdim=True) * radius[:, None]
    away[:1000] *= torch.rand(1000, 8, 1, generator=g).double()
    points = (x.double() + away).clamp(0, 1)
    low = torch.stack([margins(network, points[:, k], y[k].expand(2000)).min() for k in range(8)])
    for k, verdict in enumerate(found.verdicts):
        if verdict.status == "verified":
            assert verdict.margin <= float(low[k]) + 1e-9
        elif verdict.status == "falsified":
            point = torch.tensor(verdict.witness, dtype=torch.float64)[None]
            assert bool(ball.select(torch.tensor([k])).contains(point)[0])
            assert float(margins(network, point, y[k : k + 1])) < 0
    assert found.verdicts[0].status == found.verdicts[1].status == "verified"
    assert sum(v.status != "unknown" for v in found.verdicts) >= 5


def test_balls_of_scaled_images() -> None:
    torch.manual_seed(10)
    model = nn.Sequential(
        wp.Normalise([0.5], [0.2]), nn.Flatten(), wp.Equilibrium(wp.NemonCell(4, 6)),
        nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.rand(6, 1, 2, 2)
    with torch.no_grad():
        y = model(x).argmax(1)
    radius = torch.tensor([0.001, 0.01, 0.03, 0.1, 0.3, 1.0]).double()
    ball = Ball(x, radius, 0.0, 1.0)
    found = verify(model, x, y, ball, budget=Budget(seconds=1.0))
    away = torch.randn(500, 6, 1, 2, 2).double()
    away = away / away.flatten(2).norm(dim=-1)[:, :, None, None, None] * radius.reshape(6, 1, 1, 1)
    points = (x.double() + away).clamp(0, 1)
    for k, verdict in enumerate(found.verdicts):
        low = float(margins(model, points[:, k], y[k].expand(500)).min())
        if verdict.status == "verified":
            assert verdict.margin <= low + 1e-9
        if low < -1e-6:
            assert verdict.status != "verified"
    assert found.verdicts[0].status == "verified"
    assert found.counts["verified"] + found.counts["falsified"] >= 3


def test_verdicts_do_not_depend_on_batch_mates(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (monotone(11), module(11)):
        x = torch.rand(6, 3, generator=torch.Generator().manual_seed(11))
        y = Classifier.of(model, (3,)).guess(x.double())
        assert y is not None
        sizes = torch.tensor([0.01, 0.03, 0.06, 0.1, 0.2, 0.3])[:, None]
        region = Box.around(x, sizes).clip(0, 1)
        together = verify(model, x, y, region, until=Tier.TIGHTENED)
        monkeypatch.setattr(cascade, "BATCH", 4)
        in_fours = verify(model, x, y, region, until=Tier.TIGHTENED)
        monkeypatch.undo()
        for k in range(6):
            at = torch.tensor([k])
            alone = verify(model, x[at], y[at], region.select(at), until=Tier.TIGHTENED)
            for other in (alone.verdicts[0], in_fours.verdicts[k]):
                assert other.status == together.verdicts[k].status
                assert other.method == together.verdicts[k].method
                assert other.margin == pytest.approx(together.verdicts[k].margin, rel=1e-9)
