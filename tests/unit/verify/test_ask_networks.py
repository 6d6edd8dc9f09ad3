"""What users ask: ranges, radii, constants and monotonicity of models, in the units of inputs."""

import pytest
import torch
from tests.unit.verify.small_nets import box, cells, exact_minimum, network, output_rows
from torch import nn

import wellposed as wp
from wellposed.certify.dual import Rows
from wellposed.errors import ConfigError, NotCertifiableError, ShapeError
from wellposed.verify.classifier import Classifier

MEAN, STD = 0.4, 0.25


def model(n=5, outputs=3, scaled=True):
    torch.manual_seed(0)
    layers = [nn.Flatten(), wp.Equilibrium(wp.NemonCell(4, n)), nn.Linear(n, outputs)]
    front = [wp.Normalise((MEAN,), (STD,))] if scaled else []
    net = nn.Sequential(*front, *layers).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net


def image(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(1, 1, 2, 2, generator=draw, dtype=torch.float64)


def points(region, count=2000):
    draw = torch.Generator().manual_seed(5)
    part = torch.rand(count, *region.shape[1:], generator=draw, dtype=torch.float64)
    part[::2] = part[::2].round()
    low, high = region.box.lower, region.box.upper
    return low + part * (high - low)


def slopes(net, x):
    """Derivatives of every output at inputs, shape (outputs, B, d)."""
    x = x.clone().requires_grad_()
    y = net(x)
    grads = [torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0] for k in range(y.shape[1])]
    return torch.stack([g.flatten(1) for g in grads])


def test_the_range_of_every_output_and_of_differences():
    net, region = model(), wp.Box.around(image(), 0.2).clip(0, 1)
    found = wp.output_range(net, region, [0, 1, 2, (0, 1)], budget=wp.Budget(seconds=20))
    with torch.no_grad():
        y = net(points(region))
    y = torch.cat([y, y[:, :1] - y[:, 1:2]], 1)
    for k, one in enumerate(found):
        assert one.smallest.lower <= float(y[:, k].min()) + 1e-9
        assert one.largest.upper >= float(y[:, k].max()) - 1e-9
        assert max(one.smallest.width, one.largest.width) <= 1e-3
        assert float(y[:, k].min()) - one.smallest.upper < 0.2
    assert len(wp.output_range(net, region, budget=wp.Budget(seconds=0))) == 3


def test_weights_answer_as_enumeration_says():
    net, region = network(0, n=4), box(seed=0)
    (found,) = wp.output_range(net, region, [0], budget=wp.Budget(seconds=20, batch=16))
    least = exact_minimum(net, region, output_rows(net))
    assert found.smallest.lower - 1e-7 <= float(least[0]) <= found.smallest.upper + 1e-7


@pytest.mark.parametrize("norm", ["max", "1", "2"])
def test_the_lipschitz_constant_is_in_the_units_of_the_model(norm):
    net, region = model(), wp.Box.around(image(), 0.2).clip(0, 1)
    found = wp.local_lipschitz(net, region, norm, seconds=30)
    d = slopes(net, points(region, 400))
    dual = {"max": d.abs().sum(2), "1": d.abs().amax(2), "2": d.norm(dim=2)}[norm]
    assert found.upper >= float(dual.max()) * (1 - 1e-6)
    assert found.width <= 1e-3 * found.upper
    assert found.lower <= float(dual.max()) * 1.2
    one = wp.local_lipschitz(net, region, norm, output=1, seconds=30)
    assert one.upper <= found.upper + 1e-9
    assert one.upper >= float(dual[1].max()) * (1 - 1e-6)


def test_monotonicity_by_number_and_by_place():
    net, region = model(), wp.Box.around(image(), 0.05).clip(0, 1)
    d = slopes(net, points(region, 400))
    for k in range(3):
        for feature in range(4):
            low, high = float(d[k, :, feature].min()), float(d[k, :, feature].max())
            place = (0, feature // 2, feature % 2)
            for decreasing, holds in ((False, low >= 0), (True, high <= 0)):
                answer = wp.monotone_in(net, region, feature, k, decreasing=decreasing)
                same = wp.monotone_in(net, region, place, k, decreasing=decreasing)
                assert answer == same == ("verified" if holds else "falsified")


@pytest.mark.parametrize("norm", ["max", "2"])
def test_the_nearest_counter_example_of_a_module(norm):
    net = model()
    x = torch.cat([image(k) for k in (0, 1)])
    with torch.no_grad():
        y = net(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    found = wp.smallest_radius(
        net, x, y, norm, limit=0.5, tolerance=0.01, budget=wp.Budget(seconds=5)
    )  # fmt: skip
    assert (found[1].lower, found[1].upper) == (0.0, 0.0)
    for k, one in enumerate(found[:1]):
        if one.witness is None:
            assert one.lower == 0.5
            continue
        assert one.upper - one.lower <= 0.01
        near = torch.tensor(one.witness, dtype=torch.float64).reshape(1, 1, 2, 2)
        way = (near - x[k : k + 1]).flatten()
        size = float(way.abs().max() if norm == "max" else way.norm())
        assert size <= one.upper <= size * (1 + 1e-9)
        assert 0 <= float(near.min()) <= float(near.max()) <= 1
        with torch.no_grad():
            margin = net(near)[0, y[k]] - net(near)[0].scatter(0, y[k], -torch.inf).max()
        assert float(margin) <= 1e-9
    assert any(one.witness is not None for one in found[:1])


def test_the_nearest_counter_example_of_weights_is_that_of_enumeration():
    net = network(0, n=4)
    x = box(seed=0).centre
    task = Classifier.of(net, (3,))
    label = task.guess(x)
    (found,) = wp.smallest_radius(
        task, x, label, limit=4.0, tolerance=0.01, domain=None,
        budget=wp.Budget(seconds=10, batch=16),
    )  # fmt: skip
    t = int(label)
    row = Rows(net.C[t : t + 1] - net.C[1 - t : 2 - t], net.D[t : t + 1] - net.D[1 - t : 2 - t],
               net.c[t : t + 1] - net.c[1 - t : 2 - t])  # fmt: skip
    if found.witness is None:
        assert found.lower == 4.0
    else:
        assert cells(net, wp.Box.around(x, found.upper), row)
        assert float(exact_minimum(net, wp.Box.around(x, found.upper), row)[0]) <= 1e-7
    assert float(exact_minimum(net, wp.Box.around(x, found.lower), row)[0]) >= -1e-7


def test_without_a_budget_brackets_are_wide_and_true():
    net, region = model(), wp.Box.around(image(), 0.2).clip(0, 1)
    (idle,) = wp.output_range(net, region, [0], budget=wp.Budget(seconds=0))
    assert idle.smallest.lower == -torch.inf
    found = wp.local_lipschitz(net, region, seconds=0)
    exact = wp.local_lipschitz(net, region, seconds=30)
    assert found.upper >= exact.lower
    x = image()
    with torch.no_grad():
        y = net(x).argmax(1)
    (radius,) = wp.smallest_radius(net, x, y, budget=wp.Budget(seconds=0), tolerance=0.1)
    assert radius.lower <= radius.upper


def test_one_output_is_enough_for_a_question():
    net = nn.Sequential(wp.Equilibrium(wp.NemonCell(3, 4)), nn.Linear(4, 1)).double().eval()
    region = wp.Box.around(torch.zeros(1, 3).double(), 0.1)
    assert len(wp.output_range(net, region)) == 1
    assert wp.local_lipschitz(net, region).upper > 0


def test_bad_questions_are_refused():
    net, x = model(), image()
    y = torch.zeros(1, dtype=torch.int64)
    region = wp.Box.around(x, 0.1)
    with pytest.raises(ShapeError, match="batch of one"):
        wp.output_range(net, wp.Box(torch.zeros(4), torch.ones(4)))
    with pytest.raises(ShapeError, match="batch of one"):
        wp.local_lipschitz(net, region.select(torch.tensor([0, 0])))
    with pytest.raises(ShapeError, match="output"):
        wp.output_range(net, region, [3])
    with pytest.raises(ShapeError, match="feature"):
        wp.monotone_in(net, region, 4)
    with pytest.raises(ShapeError, match="feature"):
        wp.monotone_in(net, region, (0, 2, 0))
    with pytest.raises(ConfigError, match="norm"):
        wp.local_lipschitz(net, region, "3")
    with pytest.raises(ConfigError, match="norm"):
        wp.smallest_radius(net, x, y, "1")
    with pytest.raises(ConfigError, match="positive"):
        wp.smallest_radius(net, x, y, limit=0.0)
    with pytest.raises(ConfigError, match="label 3"):
        wp.smallest_radius(net, x, y + 3)
    with pytest.raises(ShapeError, match="domain"):
        wp.smallest_radius(net, x + 1, y)
    with pytest.raises(ShapeError, match="labels"):
        wp.smallest_radius(net, x, torch.zeros(2, dtype=torch.int64))
    smooth = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    with pytest.raises(NotCertifiableError, match=r"tanh.*kink"):
        wp.output_range(smooth, wp.Box.around(torch.zeros(1, 3), 0.1))
    with pytest.raises(NotCertifiableError, match="Softmax"):
        wp.output_range(
            nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), wp.Box.around(x[:, 0, 0], 0.1)
        )
