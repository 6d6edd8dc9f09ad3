"""Networks too large for matrices, in the 2-norm: margins by the gain, refuted at single points."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.gradient import PGD
from wellposed.core.sets import Ball, Box
from wellposed.errors import NotCertifiableError
from wellposed.nn.lben_conv import LBENConv
from wellposed.nn.normalise import Normalise
from wellposed.nn.stiefel import stiefel
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.lipschitz import margin_bounds, point_margins
from wellposed.verify.verdicts import Tier


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layer = LBENConv(1, 6, 2, image=(16, 16), gamma=4.0, inject=3, padding="zeros")
    tail = [nn.AvgPool2d(2), nn.Flatten(), stiefel(nn.Linear(128, 5))]
    return nn.Sequential(Normalise((0.1,), (0.3,)), layer, *tail).eval()


def data(model, count=6):
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


def ball(x, radius):
    return Ball(x.double(), radius, 0.0, 1.0)


def test_verdicts_of_a_network_without_matrices(model):
    x, y = data(model)
    wrong = y.clone()
    wrong[0] = (y[0] + 1) % 5
    found = verify(model, x, wrong, ball(x, 0.01), attack=PGD(eps=0.01, norm="2", steps=2),
                   until=Tier.LIPSCHITZ).verdicts  # fmt: skip
    assert Classifier.of(model, (1, 16, 16)).network is None
    assert found[0].status == "falsified"
    assert found[0].margin < 0
    sure = [v.status == "verified" for v in found[1:]]
    assert sum(sure) >= 3
    assert all(v.method == "lipschitz" for v, s in zip(found[1:], sure, strict=True) if s)


def test_what_is_verified_resists_attacks_and_witnesses_err(model):
    x, y = data(model)
    task = Classifier.of(model, (1, 16, 16))
    gain = wp.lipschitz(model, norm_in="2", in_shape=(1, 16, 16)).value
    with torch.no_grad():
        top = model(x).topk(2, 1).values
    for eps in (0.02, 0.3):
        bound = margin_bounds(task, y, ball(x, eps)).amin(1)
        # the margin at the centre less what it may lose
        want = (top[:, 0] - top[:, 1]).double() - 2**0.5 * gain * eps
        assert torch.allclose(bound, want, atol=1e-4)
        tried = PGD(eps=eps, norm="2", steps=5).attack(model, x, y)
        assert not bool((tried.success & (bound > 0)).any())
        attack = PGD(eps=eps, norm="2", steps=5)
        found = verify(model, x, y, ball(x, eps), attack=attack, until=Tier.LIPSCHITZ).verdicts
        for i, verdict in enumerate(found):
            if verdict.status == "falsified":
                point = torch.tensor(verdict.witness, dtype=torch.float64).reshape(1, 1, 16, 16)
                assert float((point - x[i].double()).norm()) <= eps
                with torch.no_grad():
                    assert int(model(point.float()).argmax()) != int(y[i])


def test_margins_at_points_are_those_of_the_model(model):
    x, y = data(model)
    task = Classifier.of(model, (1, 16, 16))
    with torch.no_grad():
        out = model(x).double()
    own = nn.functional.one_hot(y, 5).bool()
    true = (out.gather(1, y[:, None]) - out)[~own].reshape(6, 4)
    found = point_margins(task, y, x.double())
    assert torch.allclose(found, true, atol=1e-3)
    assert bool((found >= margin_bounds(task, y, ball(x, 0.0))).all())


def test_later_methods_leave_it_as_it_is_and_boxes_are_refused(model):
    x, y = data(model, 2)
    attack = PGD(eps=3.0, norm="2", steps=1)
    found = verify(model, x, y, ball(x, 3.0), attack=attack)
    assert {v.status for v in found.verdicts} <= {"unknown", "falsified"}
    box = Box((x.double() - 1e-3).clamp(0, 1), (x.double() + 1e-3).clamp(0, 1))
    with pytest.raises(NotCertifiableError, match="max norm"):
        verify(model, x, y, box, attack=PGD(eps=1e-3, norm="max", steps=1))


def test_a_network_that_is_not_monotone_has_no_bounds(model):
    layer = LBENConv(1, 6, 2, image=(16, 16), gamma=4.0, inject=3)
    layer.cell.margin = -50.0
    broken = nn.Sequential(layer, nn.Flatten(), nn.Linear(512, 5)).eval()
    task = Classifier.of(broken, (1, 16, 16))
    x, y = data(model)
    assert task.points is None
    assert margin_bounds(task, y, ball(x, 0.01)) is None
