"""Monotone Lipschitz networks: order on random pairs, slopes, refusals, shapes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import order
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.nn.blend import Blend
from wellposed.nn.export import export
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.monotone import MonotoneResidual, convolutional_monotone, lipschitz_monotone
from wellposed.nn.norm_chain import norm_chain
from wellposed.nn.residual import Residual
from wellposed.nn.vector_norm import Budgets, constrain

LEGAL = (
    ("1->max", "max->max", "max->max"),
    ("2->max", "max->max", "max->max"),
    ("max->max", "max->max", "max->max"),
    ("1->1", "1->1", "1->1"),
    ("1->1", "1->max", "max->max"),
    ("1->1", "2->max", "max->max"),
    ("1->1", "max->max", "max->max"),
)
ILLEGAL = (
    ("max->max", "1->1", "1->1"),
    ("1->max", "1->1", "1->1"),
    ("1->max", "1->max", "1->max"),
    ("1->max", "2->max", "max->max"),
    ("2->max", "2->max", "max->max"),
    ("1->1", "max->max", "1->1"),
)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Any multipliers prove a bound: here six steps of their search serve as well as forty."""
    monkeypatch.setattr("wellposed.certify.multipliers._STEPS", 6)


def dense(kinds, widths, budget=1.0):
    layers = []
    for k, kind in enumerate(kinds):
        layers.append(constrain(nn.Linear(widths[k], widths[k + 1]), kind, budget))
        if k < len(kinds) - 1:
            layers.append(GroupSort(group_size=2, dim=-1))
    return nn.Sequential(*layers)


def architecture(seed):
    """One of twenty legal networks, in float64, with its raw weights times 20."""
    torch.manual_seed(seed)
    n = 3 + seed % 4
    signs = [(1, -1, 0)[(seed + i) % 3] for i in range(n)]
    lam = (0.5, 1, 3.0)[seed % 3]
    width, outputs = 4 + 2 * (seed % 5), 1 + seed % 3
    if seed < 10:
        kinds = LEGAL[seed % len(LEGAL)]
        body = dense(kinds, (n, width, width, outputs), lam ** (1 / 3))
        net = MonotoneResidual(body, signs, lam)
    elif seed < 14:
        many = [signs, *([-s for s in signs],) * (outputs - 1)]
        net = lipschitz_monotone(
            (n, width, width, outputs), many, lam, learned_budgets=True, pinned=seed % 2 == 0
        )
    elif seed < 17:
        inner = nn.Sequential(
            constrain(nn.Linear(width, width), "max->max", 1), GroupSort(group_size=2, dim=-1)
        )
        block = Blend(inner) if seed < 16 else Residual(inner)
        share = (lam / (1 if seed < 16 else 2)) ** 0.5
        body = nn.Sequential(
            constrain(nn.Linear(n, width), "1->max", share),
            nn.Tanh() if seed == 14 else MaxMin(dim=-1),
            block,
            constrain(nn.Linear(width, outputs), "max->max", share),
        )
        net = MonotoneResidual(body, signs, lam)
    else:
        net = convolutional_monotone((2, 5, 5), (4, 4), (1, -1), lam, outputs=outputs)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    return net.double()


@pytest.mark.parametrize("seed", range(20))
def test_order_of_a_hundred_thousand_pairs(seed):
    """Acceptance check 12: legal chains, weights times 20."""
    net = architecture(seed)
    signs = net.signs.reshape(-1, net.signs.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    for row, s in enumerate(signs):
        count = 100_000 // len(signs)
        x = 3 * torch.randn(count, len(s), generator=generator, dtype=torch.float64)
        step = torch.rand(count, len(s), generator=generator, dtype=torch.float64) * s
        step = step * (torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 4)
        with torch.no_grad():
            change = net(x + step) - net(x)
        if len(signs) > 1:
            change = change[:, row]
        assert float(change.min()) >= -1e-6


@pytest.mark.parametrize("seed", range(20))
def test_slopes_of_the_body(seed):
    """Acceptance check 13: |dg/dx_i| <= lambda; the sum reaches up to twice that."""
    net = architecture(seed)
    n = net.signs.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(20_000 if n < 10 else 500, n, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y = net.body(x)
    for j in range(y.shape[1]):
        (slope,) = torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)
        assert float(slope.abs().max()) <= net.constant * (1 + 1e-5)


@pytest.mark.parametrize("seed", [0, 4, 8, 13, 15])
def test_what_the_type_promises_is_proved_from_the_weights(seed):
    net = architecture(seed).eval()
    shape = (net.signs.shape[-1],)
    order(net, in_shape=shape).require(net.signs)
    whole, body = (
        wp.lipschitz(part, norm_in="1", norm_out="max", in_shape=shape).value
        for part in (net, net.body)
    )
    assert body <= net.constant
    assert whole <= 2 * net.constant * (1 + 1e-12)


def test_the_whole_has_twice_the_constant():
    net = lipschitz_monotone((1, 2, 1), [1], 1.0)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(5.0)
    x = torch.linspace(-1, 1, 9)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, 2.0), rtol=1e-5, atol=0)
    proved = wp.lipschitz(net.eval(), norm_in="1", norm_out="max", in_shape=(1,)).value
    assert 2 - 1e-5 <= proved <= 2


def test_weights_that_left_their_bound_lose_the_proof():
    net = export(lipschitz_monotone((2, 4, 1), [1, 1]))
    order(net, in_shape=(2,)).require([1, 1])
    with torch.no_grad():
        net[0].body[0].weight.mul_(2)
    with pytest.raises(NotCertifiableError):
        order(net, in_shape=(2,)).require([1, 1])


def test_a_network_starts_with_steep_slopes():
    torch.manual_seed(0)
    net = lipschitz_monotone((4, 8, 8, 1), [1, 1, 0, 0])
    for layer in net.body:
        if isinstance(layer, nn.Linear):
            rows = layer.weight.detach().abs().sum(1)
            assert float(rows.min()) >= 1 - 1e-5


@pytest.mark.parametrize("kinds", LEGAL, ids=" ".join)
def test_legal_chains(kinds):
    chain = norm_chain(dense(kinds, (3, 4, 4, 2), 0.5))
    assert chain.constant == pytest.approx(0.125)
    MonotoneResidual(dense(kinds, (3, 4, 4, 2)), [1, 0, -1])


@pytest.mark.parametrize("kinds", ILLEGAL, ids=" ".join)
def test_illegal_chains_are_refused_by_name(kinds):
    with pytest.raises(ConfigError, match="is illegal") as error:
        MonotoneResidual(dense(kinds, (3, 4, 4, 1)), [1, 0, -1])
    assert ", ".join(kinds[:1]) in str(error.value)
    assert "`body.2`" in str(error.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4),
        nn.Dropout(),
        nn.GELU(),
        nn.SiLU(),
        nn.Softplus(),
        nn.LeakyReLU(-2),
        nn.ELU(2.0),
        nn.Linear(4, 4),
        nn.Bilinear(4, 4, 4),
        GroupSort(group_size=2),
        MaxMin(dim=0),
        nn.AvgPool2d(2, divisor_override=1),
        nn.MaxPool1d(2),
        nn.Flatten(0),
        nn.PReLU(),
        wp.Equilibrium(wp.NemonCell(4, 4)),
        wp.Equilibrium(wp.InfNormCell(4, 4)),
    ],
    ids=repr,
)
def test_layers_without_a_place_are_refused_by_name(layer):
    body = nn.Sequential(
        constrain(nn.Linear(3, 4), "1->max"), layer, constrain(nn.Linear(4, 1), "max->max")
    )
    with pytest.raises(ConfigError, match=r"body\.1"):
        MonotoneResidual(body, [1, 0, -1])


def test_other_refusals():
    body = dense(("1->max", "max->max"), (3, 4, 1), 1.2)
    with pytest.raises(ConfigError, match=r"1\.44"):
        MonotoneResidual(body, [1, 1, 1], 1.4)
    MonotoneResidual(body, [1, 1, 1], 1.44)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="positive"):
            MonotoneResidual(body, [1, 1, 1], bad)
    with pytest.raises(ConfigError, match=r"0\.5"):
        MonotoneResidual(body, [1, 0.5, 0], 2)
    with pytest.raises(ShapeError, match="signs"):
        MonotoneResidual(body, [], 2)
    with pytest.raises(ShapeError, match="signs"):
        lipschitz_monotone((3, 4, 1), [1, 1])
    with pytest.raises(ConfigError, match="multiple"):
        lipschitz_monotone((3, 5, 1), [1, 1, 0])
    with pytest.raises(ConfigError, match="widths"):
        lipschitz_monotone((3,), [1, 1, 0])
    with pytest.raises(ConfigError, match="kind"):
        lipschitz_monotone((3, 4, 1), [1, 1, 0], first="one-inf")
    body[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="hooks"):
        MonotoneResidual(body, [1, 1, 1], 2)
    with pytest.raises(ConfigError, match="last axis"):
        MonotoneResidual(constrain(nn.Conv1d(3, 3, 1), "max->max"), [1, 1, 1])


def test_shares_of_learned_budgets_must_all_be_there():
    budgets = Budgets(3, 1.0)
    body = nn.Sequential(
        constrain(nn.Linear(3, 4), "1->max", budgets, index=0),
        constrain(nn.Linear(4, 1), "max->max", budgets, index=1),
    )
    with pytest.raises(ConfigError, match="shares"):
        MonotoneResidual(body, [1, 1, 1])


def test_integer_constants_and_batches_of_any_shape():
    net = lipschitz_monotone((3, 4, 2), [1, 0, -1], 2).eval()
    x = torch.randn(2, 5, 3)
    y = net(x)
    assert y.shape == (2, 5, 2)
    assert y.dtype == torch.float32
    torch.testing.assert_close(net(x[0]), y[0])
    torch.testing.assert_close(net(x[0, 0]), y[0, 0])
    assert net(x[:, :0]).shape == (2, 0, 2)
    with pytest.raises(ShapeError, match="last axis"):
        net(torch.randn(3, 4))
    wrong = MonotoneResidual(dense(("1->max", "max->max"), (3, 4, 2)), [[1, 1, 1]] * 3)
    with pytest.raises(ShapeError, match="3 outputs"):
        wrong(x)


def test_the_state_holds_no_promise():
    a, b = (lipschitz_monotone((3, 4, 1), [1, 0, s], lam) for s, lam in ((1, 1.0), (-1, 5.0)))
    a.load_state_dict(b.state_dict())
    assert a.signs.tolist() == [1, 0, 1]
    assert float(a.body[2].weight.detach().abs().sum()) <= 1


def test_an_equilibrium_may_stand_in_the_chain():
    torch.manual_seed(0)
    cell = wp.InfNormCell(4, 6, bound=0.5)
    constrain(cell.inject, "1->max", 0.5)
    body = nn.Sequential(wp.Equilibrium(cell), constrain(nn.Linear(6, 1), "max->max"))
    assert norm_chain(body).constant == pytest.approx(1.0)
    net = MonotoneResidual(body, [1, 1, -1, 0]).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    x = torch.randn(2000, 4, dtype=torch.float64)
    step = torch.rand(2000, 4, dtype=torch.float64) * net.signs
    with torch.no_grad():
        assert float((net(x + step) - net(x)).min()) >= -1e-8
    with pytest.raises(ConfigError, match="illegal"):
        MonotoneResidual(nn.Sequential(constrain(nn.Linear(4, 4), "1->max"), *body), [0] * 4)


def test_blend_stays_between_its_branches():
    block = Blend(nn.Linear(3, 3), 0.25)
    x = torch.randn(2, 3)
    torch.testing.assert_close(block(x), 0.75 * x + 0.25 * block.body(x))
    with pytest.raises(ConfigError, match="weight"):
        Blend(nn.Identity(), 1.0)
    with pytest.raises(ShapeError, match="equal shapes"):
        Blend(nn.Linear(3, 2))(x)


def nets_to_export():
    torch.manual_seed(0)
    yield lipschitz_monotone((5, 8, 8, 2), [1, -1, 0, 0, 1], 2.0, learned_budgets=True), (7, 5)
    yield convolutional_monotone((1, 6, 6), (4,), [1]), (3, 36)
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    yield nn.Sequential(orthogonal, GroupSort(group_size=2, dim=-1)), (3, 4)
    yield nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))), (3, 4)
    yield constrain(nn.Linear(4, 2), "1->1"), (3, 4)


@pytest.mark.parametrize("case", range(5))
def test_export_to_plain_layers(case):
    """Acceptance check 16."""
    net, shape = list(nets_to_export())[case]
    net.eval()
    x = torch.randn(shape)
    before = net(x)
    plain = export(net)
    assert isinstance(plain, nn.Sequential)
    assert not any("parametriz" in type(m).__name__.lower() for m in plain.modules())
    assert not any("parametriz" in name for name in plain.state_dict())
    torch.testing.assert_close(plain(x), before, rtol=0, atol=1e-6)
    assert torch.equal(net(x), before)  # and the module is as it was
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), plain(x))
    with torch.no_grad():
        next(plain.parameters()).zero_()
    assert torch.equal(net(x), before)
    assert torch.equal(copy.deepcopy(net)(x), before)


@pytest.mark.slow
def test_exported_networks_are_compiled_whole():
    net = export(lipschitz_monotone((5, 8, 8, 1), [1, -1, 0, 0, 1]))
    x = torch.randn(7, 5)
    # the default backend writes C++, which not every machine can build
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", range(3))
def test_exported_networks_reach_onnx(case, tmp_path):
    """Acceptance check 16: what a reference evaluator makes of the file, batch size left open."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net, shape = list(nets_to_export())[case]
    plain = export(net.eval())
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        plain,
        (torch.randn(shape),),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}  # standard operators only
    (name,) = (given.name for given in model.graph.input)
    for batch in (shape[0], 1, 11):
        x = 3 * torch.randn(batch, *shape[1:])
        (found,) = reference.ReferenceEvaluator(model).run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), plain(x), rtol=0, atol=1e-5)
