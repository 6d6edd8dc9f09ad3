"""The cascade: bad input, interruption, ties, inputs without a domain, smooth networks."""

from __future__ import annotations

import pytest
import torch
from cascade_nets import (
    SMALL,
    check,
    classes,
    contracting,
    module,
    monotone,
    weights,
)
from torch import nn

from wellposed.attacks import PGD
from wellposed.certify.dual import Rows
from wellposed.core.activations import Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.verify import branch as branch_module
from wellposed.verify import cascade
from wellposed.verify.branch import Budget, Problem, branch
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.verdicts import Tier, Verdicts
from wellposed.verify.witness import Probe


def test_smooth_networks_end_before_branching() -> None:
    network = Network.of(*weights(monotone(12)), activation=Tanh())
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(12))
    y = classes(network, x)
    region = Box.around(x, torch.tensor([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])[:, None]).clip(0, 1)
    found = verify(network, x, y, region)
    check(network, x, y, region, found)
    assert found.counts["verified"] >= 2
    assert found.counts["unknown"] >= 1


def test_smooth_networks_may_have_no_margin_left_for_the_ascent() -> None:
    network = Network.of(*weights(contracting(6)), activation=Tanh())
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(5)).double()[1:2]
    y, region = classes(network, x), Box.around(x, 0.35)
    found = verify(network, x, y, region, domain=None)
    check(network, x, y, region, found)
    assert [v.method for v in found.verdicts] == [Tier.TIGHTENED.value]


def test_a_linear_model_is_decided_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    x = torch.rand(6, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    for radius in (0.01, 0.1, 0.3):
        region = Box.around(x, radius).clip(0, 1)
        found = verify(model, x, y, region)
        W, c = model[0].weight.detach().double(), model[0].bias.detach().double()
        rows, offset = W[y][:, None] - W, c[y][:, None] - c
        least = region.minimum(rows) + offset
        least = least.scatter(1, y[:, None], torch.inf).amin(1)
        expected = ["verified" if low > 0 else "falsified" for low in least.tolist()]
        assert [v.status for v in found.verdicts] == expected


def test_without_a_domain() -> None:
    """Inputs far from [0, 1]: no attack on pixels, the rest as always."""
    model = module(13, scale=1.0)
    x = 5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(13))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[5] = (y[5] + 1) % 3
    region = Box.around(x, 0.3)
    with pytest.raises(ShapeError, match="domain"):
        verify(model, x, y, region)
    found = verify(model, x, y, region, domain=None, budget=SMALL)
    check(model, x, y, region, found)
    assert found.verdicts[5].status == "falsified"
    wide = verify(model, x, y, region, domain=(-50.0, 50.0), until=Tier.LINEAR)
    assert wide.counts["verified"] > 0


def test_bad_input_is_named() -> None:
    network = contracting(14)
    x = torch.rand(3, 3)
    region = Box.around(x, 0.01).clip(0, 1)
    y = torch.tensor([0, 1, 2])
    for bad in (torch.tensor([0, 1, 3]), torch.tensor([-1, 1, 2])):
        with pytest.raises(ConfigError, match="no class"):
            verify(network, x, bad, region)
    with pytest.raises(ShapeError, match="int64"):
        verify(network, x, y.float(), region)
    with pytest.raises(ShapeError, match="one for each input"):
        verify(network, x, y[:2], region)
    with pytest.raises(ShapeError, match="one for each"):
        verify(network, x, y, region.select(torch.arange(2)))
    with pytest.raises(ShapeError, match="domain"):
        verify(network, x, y, Box.around(x, 2.0))
    with pytest.raises(ShapeError, match="NaN"):
        Box.around(x * torch.nan, 0.1)
    wild = Network.of(3 * network.W.abs() + 1, *weights(network)[1:])
    with pytest.raises(NotCertifiableError, match="well posed"):
        verify(wild, x, y, region)
    broken = module(14)
    with torch.no_grad():
        broken[1].weight[0, 0] = torch.nan
    with pytest.raises(NotCertifiableError, match="NaN"):
        verify(broken, x, y, region)
    with pytest.raises(NotCertifiableError, match="GELU"):
        verify(nn.Sequential(nn.Linear(3, 3), nn.GELU()), x, y, region)


def test_no_inputs_and_huge_regions() -> None:
    network = contracting(15)
    none = verify(network, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long),
                  Box(torch.zeros(0, 3).double(), torch.zeros(0, 3).double()))  # fmt: skip
    assert none.verdicts == ()
    assert none.certified == 0
    x = torch.rand(2, 3)
    region = Box.around(x, 1e12)
    y = classes(network, x)
    found = verify(network, x, y, region, domain=None, budget=Budget(seconds=0.5))
    assert found.counts["verified"] == 0


def test_a_margin_of_zero_is_neither_verified_nor_falsified() -> None:
    """Two logits that are always equal."""
    base = contracting(16)
    C, c = base.C.clone(), base.c.clone()
    C[1], c[1] = C[0], c[0]
    c[2] = -100.0
    network = Network.of(base.W, base.U, base.b, C, c)
    x = torch.rand(2, 3)
    region = Box.around(x, 0.05).clip(0, 1)
    found = verify(network, x, torch.zeros(2, dtype=torch.long), region, budget=Budget(seconds=0.3))
    assert found.counts["unknown"] == 2


class Breaking:
    """Raises `KeyboardInterrupt` at one call of a function, passes the others on."""

    def __init__(self, action, at: int) -> None:
        self.action, self.left = action, at

    def __call__(self, *given, **named):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.action(*given, **named)


@pytest.mark.parametrize("at", [2])
def test_ctrl_c_keeps_what_is_decided(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = monotone(17, n=12)
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(17))
    y = classes(network, x)
    sizes = torch.tensor([0.001, 0.4] * 4)[:, None]
    region = Box.around(x, sizes).clip(0, 1)
    whole = verify(network, x, y, region, budget=SMALL)
    monkeypatch.setattr(cascade, "decide", Breaking(cascade.decide, at))
    found = verify(network, x, y, region, budget=SMALL)
    assert len(found.verdicts) == 8
    assert found.counts["unknown"] > 0
    assert found.verdicts[0].status == "verified"
    for part, full in zip(found.verdicts, whole.verdicts, strict=True):
        assert part.status in ("unknown", full.status)


def test_ctrl_c_before_the_second_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = contracting(18)
    x = torch.rand(9, 3)
    y = classes(network, x)
    region = Box.around(x, 0.001).clip(0, 1)
    monkeypatch.setattr(cascade, "BATCH", 3)
    monkeypatch.setattr(cascade, "margin_bounds", Breaking(cascade.margin_bounds, 2))
    seen: list[tuple[int, int]] = []
    found = verify(network, x, y, region, progress=lambda done, total: seen.append((done, total)))
    assert [v.status for v in found.verdicts[3:]] == ["unknown"] * 6
    assert found.verdicts[0].status == "verified"
    assert found.verdicts[8].method == "interrupted"
    assert all(total == 9 for _, total in seen)


@pytest.mark.parametrize("name", ["_try_inputs", "_improve", "_prove"])
def test_ctrl_c_anywhere_in_a_search_loses_no_case(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption leaves a case open; a forgotten one would count as verified."""
    network = monotone(19, n=12)
    task = Classifier.of(network, (3,))
    x = torch.rand(1, 3, generator=torch.Generator().manual_seed(19))
    y = classes(network, x)
    region = Box.around(x, 0.35).clip(0, 1)
    case = Problem(network, task.system, task.scope(region), task.wellposed)
    rows = task.rows(y)
    # goals a little above the minimum of every row: no row can be proved
    lowest = branch(case, rows, Budget(seconds=5.0, batch=8), gap=1e-3)
    offset = rows.offset - torch.tensor([a.upper for a in lowest]) - 1e-3
    hard = Rows(rows.state, rows.input, offset)
    assert all(a.status != "verified" for a in branch(case, hard, Budget(seconds=1.0, batch=4)))
    monkeypatch.setattr(Probe, "improve", lambda self, row, x: (x, torch.full((len(x),), 1e9)))
    original = getattr(branch_module._Search, name)
    for at in (1, 2, 3):
        monkeypatch.setattr(branch_module._Search, name, _method(Breaking(original, at)))
        for answer in branch(case, hard, Budget(seconds=1.0, batch=4)):
            assert answer.status == "unknown"
            assert answer.interrupted


def _method(action):
    # an instance has no `__get__`: the search would not be passed on
    def method(self, *given):
        return action(self, *given)

    return method


def test_an_attack_of_ones_own() -> None:
    model = module(20)
    x = torch.rand(6, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    region = Box.around(x, 0.3).clip(0, 1)
    found = verify(model, x, y, region, attack=PGD("max", 0.3, 5, restarts=2), budget=SMALL)
    check(model, x, y, region, found)
    # an attack beyond the region proves nothing
    tiny = Box.around(x, 1e-6).clip(0, 1)
    check(model, x, y, tiny, verify(model, x, y, tiny, attack=PGD("max", 0.9, 5), budget=SMALL))


def test_records_of_verdicts() -> None:
    network = contracting(21)
    x = torch.rand(4, 3)
    y = classes(network, x)
    region = Box.around(x, torch.tensor([0.001, 0.01, 0.2, 0.9])[:, None]).clip(0, 1)
    found = verify(network, x, y, region, budget=SMALL)
    again = Verdicts.from_dict(found.to_dict())
    assert again == found
    both = found + again
    assert len(both.verdicts) == 8
    assert both.certified == found.certified
    for verdict in found.verdicts:
        assert verdict.seconds >= 0
        names = [t.value for t in Tier]
        assert verdict.method in names
        assert set(verdict.bounds) <= set(names)


def test_the_default_attack_keeps_to_the_radius_of_each_input() -> None:
    """One wide region in a batch must not weaken the attack on the narrow ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        # the margin is x_0 - x_1 / 2: falls below zero within 0.1 only near the first input
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    x = torch.tensor([[0.45, 0.8], [0.45, 0.8], [0.9, 0.1]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    for norm in ("max", "2"):
        radius = torch.tensor([0.05, 0.02, 0.9], dtype=torch.float64)
        region = (
            Box.around(x, radius[:, None]).clip(0, 1)
            if norm == "max"
            else Ball(x, radius, 0.0, 1.0)
        )
        found = verify(model, x, y, region, until=Tier.ATTACK)
        assert [v.status for v in found.verdicts] == ["falsified", "unknown", "falsified"], norm
        assert all(v.method == "attack" for v in found.verdicts if v.status == "falsified")
