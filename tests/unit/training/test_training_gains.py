"""Gains of differences of logits on the tape, and the loss that trains them."""

import pytest
import torch
from torch import nn

from wellposed.certify import lipschitz
from wellposed.certify.composed import composed_gains
from wellposed.errors import ConfigError
from wellposed.nn.groupsort import GroupSort, MaxMin
from wellposed.nn.normalise import Normalise
from wellposed.training import Examples, Ramp
from wellposed.training.controller import Constant
from wellposed.training.gains import GainMarginLoss, LogitGain, gain_accuracy, logit_gains
from wellposed.training.regulariser import Regulariser


def net(activation=nn.Sigmoid, seed=0, scale=1.0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(
        Normalise((0.3,), (0.4,)),
        nn.Flatten(),
        nn.Linear(9, 8),
        activation(),
        nn.Linear(8, 6),
        activation(),
        nn.Linear(6, 3),
    ).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    return model


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU, nn.Tanh, nn.LeakyReLU, MaxMin])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3, 1e-3])
def test_no_difference_of_logits_moves_further(activation, scale):
    model = net(activation, scale=scale).eval()
    gains = logit_gains(model).detach()
    assert torch.allclose(gains, gains.mT, rtol=1e-9)
    assert gains.diagonal().tolist() == [0.0, 0.0, 0.0]
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2000, 1, 3, 3, generator=generator, dtype=torch.float64)
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = step * torch.rand(2000, 1, 1, 1, generator=generator, dtype=torch.float64).pow(4)
    y = torch.cat([x + step, x + 1e-4 * step])
    change = model(y) - model(torch.cat([x, x]))
    gaps = (change[:, :, None] - change[:, None]).detach().abs()
    distance = torch.linalg.vector_norm((y - torch.cat([x, x])).flatten(1), dim=1)
    assert bool((gaps <= distance[:, None, None] * gains * (1 + 1e-9) + 1e-12).all())


def test_they_are_exact_for_a_linear_network_and_below_the_product():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    W = (model[1].weight @ model[0].weight).detach()
    expected = torch.linalg.vector_norm(W[:, None] - W, dim=2)
    assert torch.allclose(logit_gains(model).detach(), expected)
    deep = net(nn.ReLU).eval()
    product = lipschitz(deep, norm_in="2", in_shape=(1, 3, 3), method="product").value
    assert float(logit_gains(deep).detach().amax()) < 0.9 * 2**0.5 * product


def test_they_agree_with_the_certified_ones_up_to_rounding():
    model = net(nn.Sigmoid).eval()
    proved = composed_gains(model, (1, 3, 3), 3)
    mine = logit_gains(model).detach()
    # either may be the smaller one, but not by much: both are of the same family of bounds
    assert float((mine / proved)[~torch.eye(3, dtype=torch.bool)].min()) > 0.5
    orthogonal = nn.Sequential(nn.Flatten(), nn.Linear(9, 4, bias=False), GroupSort(group_size=2),
                               nn.Linear(4, 3, bias=False)).double()  # fmt: skip
    with torch.no_grad():
        nn.init.orthogonal_(orthogonal[1].weight)
        nn.init.orthogonal_(orthogonal[3].weight)
    off = logit_gains(orthogonal).detach()[~torch.eye(3, dtype=torch.bool)]
    assert torch.allclose(off, torch.full((6,), 2**0.5, dtype=torch.float64))


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU, MaxMin])
def test_gradients_are_right(activation):
    model = net(activation, seed=3)
    weight = model[2].weight
    (slope,) = torch.autograd.grad(logit_gains(model).square().amax(), weight)
    direction = torch.randn_like(weight)
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-6 * direction)
            found.append(float(logit_gains(model).square().amax()))
            weight.sub_(sign * 1e-6 * direction)
    assert (found[0] - found[1]) / 2e-6 == pytest.approx(float((slope * direction).sum()), rel=1e-5)


def test_a_network_of_zeros_has_finite_gradients():
    model = net(scale=0.0)
    logit_gains(model).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_other_networks_are_refused_by_name():
    for layer in (nn.Softmax(1), nn.GELU(), nn.BatchNorm1d(4), nn.Conv2d(1, 1, 1)):
        with pytest.raises(ConfigError, match=type(layer).__name__):
            logit_gains(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match="no linear layer"):
        logit_gains(nn.Sequential(nn.Flatten()))
    with pytest.raises(ConfigError, match="ReLU"):
        logit_gains(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match="`radius`"):
        GainMarginLoss(Ramp(0.0, -1.0))


def examples(count=60):
    generator = torch.Generator().manual_seed(4)
    centres = torch.rand(3, 1, 3, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = torch.randn(count, 1, 3, 3, generator=generator, dtype=torch.float64)
    return Examples(centres[labels] + 0.02 * noise, labels)


def test_the_loss_is_clean_at_radius_zero_and_worse_beyond():
    model, data = net(seed=5), examples()
    clean, _ = GainMarginLoss(Ramp(0.0, 0.0)).loss(model, data.inputs, data.labels, 0.5)
    expected = nn.functional.cross_entropy(model(data.inputs), data.labels)
    assert torch.equal(clean, expected)
    values = [
        float(GainMarginLoss(Ramp(r, r)).loss(model, data.inputs, data.labels, 0.5)[0].detach())
        for r in (0.1, 0.3, 1.0)
    ]
    assert float(clean.detach()) < values[0] < values[1] < values[2]


def test_training_it_certifies_and_attacks_agree():
    data, certified = examples(), {}
    for name, radius in (("clean", 0.0), ("margin", 0.3)):
        model = net(nn.ReLU, seed=6)
        loss = GainMarginLoss(Ramp(radius, radius))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(100):
            optimiser.zero_grad()
            loss.loss(model, data.inputs, data.labels, 0.0)[0].backward()
            optimiser.step()
        certified[name] = gain_accuracy(model, data, 0.3)
        assert loss.watched(model, data) == {
            "validation_certified": gain_accuracy(model, data, radius)
        }
    assert certified["margin"] > certified["clean"] + 0.2
    # no point of the ball around a certified example is misclassified
    gains, logits = logit_gains(model).detach(), model(data.inputs).detach()
    worst = logits + 0.3 * gains[data.labels]
    sure = worst.argmax(1) == data.labels
    generator = torch.Generator().manual_seed(7)
    for _ in range(50):
        step = torch.randn(data.inputs.shape, generator=generator, dtype=torch.float64)
        step = 0.3 * step / torch.linalg.vector_norm(step.flatten(1), dim=1)[:, None, None, None]
        assert bool((model(data.inputs + step).argmax(1) == data.labels)[sure].all())


def test_the_term_drives_the_gain_down():
    model = net(nn.ReLU, seed=8)
    kept = Regulariser(LogitGain(), Constant(1.0))
    first = kept.term.figures(model)["logit_gain"]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        kept.extra(model).backward()
        optimiser.step()
    assert kept.term.figures(model)["logit_gain"] < 0.7 * first
