"""Sound margins over boxes."""

import pytest
import torch
from torch import nn

from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.certify import enclose
from wellposed.certify.margins import box_certified, box_margins
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.normalise import Normalise


def ugly(cell, size):
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(size * torch.randn_like(p))
    return cell


def dense():
    torch.manual_seed(0)
    cell = ugly(NemonCell(16, 8, margin=0.9), 2.0)
    return (
        nn.Sequential(Normalise((0.2,), (0.3,)), nn.Flatten(), Equilibrium(cell), head(8))
        .double()
        .eval()
    )


def convolutional():
    torch.manual_seed(1)
    cell = ugly(NemonConv2d(1, 2, image=(4, 4), margin=0.5), 1.0)
    return nn.Sequential(Equilibrium(cell), nn.ReLU(), nn.Flatten(), head(32)).double().eval()


def head(n):
    layer = nn.Linear(n, 4)
    with torch.no_grad():
        layer.weight.mul_(10)
    return layer


def worst_found(net, box, labels, rounds):
    """Smallest margins at corners and points on the way down the gradient."""
    low, high = box.lower, box.upper
    found = torch.full((len(labels), 4), torch.inf, dtype=torch.float64)
    x = low + torch.rand_like(low).round() * (high - low)
    for _ in range(rounds):
        x = x.detach().requires_grad_()
        y = net(x)
        gaps = y.gather(1, labels[:, None]) - y
        found = torch.minimum(found, gaps.detach().scatter(1, labels[:, None], torch.inf))
        target = gaps.scatter(1, labels[:, None], torch.inf).amin(1).sum()
        (g,) = torch.autograd.grad(target, x)
        random = low + torch.rand_like(low).round() * (high - low)
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.3, random, torch.where(g > 0, low, high))
    return found


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 1.0])
def test_no_point_of_the_box_lies_below(make, eps):
    net = make()
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    box = Box.around(x, eps).clip(0, 1)
    bounds = box_margins(net, box, labels, batch=4)
    assert bounds.dtype == torch.float64
    assert bool(torch.isinf(bounds.gather(1, labels[:, None])).all())
    # the attacked network is solved to 1e-10 only
    assert bool((worst_found(net, box, labels, 12) >= bounds - 1e-8).all())


def test_tight_at_a_point():
    net, x = dense(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    labels = torch.tensor([2, 0, 1])
    bounds = box_margins(net, Box.around(x, 0.0), labels)
    y = net(x)
    gaps = (y.gather(1, labels[:, None]) - y).scatter(1, labels[:, None], torch.inf)
    assert bool((bounds <= gaps + 1e-8).all())
    assert torch.allclose(bounds, gaps, atol=1e-8)


def test_exact_for_a_linear_network():
    net = nn.Sequential(nn.Flatten(), head(4))
    box = Box.around(torch.rand(2, 1, 2, 2), 0.25)
    labels = torch.tensor([1, 3])
    bounds = box_margins(net, box, labels)
    C, c = net[1].weight.detach().double(), net[1].bias.detach().double()
    for i, y in enumerate(labels.tolist()):
        for j in set(range(4)) - {y}:
            row = C[y] - C[j]
            corner = torch.where(row > 0, box.lower[i].flatten(), box.upper[i].flatten())
            exact = float(row @ corner + c[y] - c[j])
            assert exact - 1e-12 * (1 + abs(exact)) <= float(bounds[i, j]) <= exact


def test_folding_beats_enclosed_logits():
    net, x = dense(), torch.rand(5, 1, 4, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    box = Box.around(x, 0.05)
    bounds = box_margins(net, box, labels)
    logits = enclose(net, box)
    apart = logits.lower.gather(1, labels[:, None]) - logits.upper
    other = torch.isfinite(bounds)
    assert bool((bounds > apart)[other].all())
    unfolded = box_margins(nn.Sequential(net, nn.Identity()), box, labels)
    assert torch.allclose(unfolded[other], apart[other], rtol=1e-9)


def test_certified_means_every_margin_is_positive():
    net = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
    box = Box.around(torch.tensor([[1.0, 0.0], [1.0, 0.9], [0.0, 1.0]]), 0.2)
    assert box_certified(net, box, torch.tensor([0, 0, 0])).tolist() == [True, False, False]


def test_bad_input():
    net, x = dense(), torch.rand(2, 1, 4, 4)
    box = Box.around(x, 0.1)
    for labels in (torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(ShapeError, match="classes from 0 to 3"):
            box_margins(net, box, labels)
    with pytest.raises(ShapeError, match="one class for each box"):
        box_margins(net, box, torch.tensor([0]))
    with pytest.raises(ShapeError, match="int64"):
        box_margins(net, box, torch.tensor([0.0, 1.0]))
    with pytest.raises(NotCertifiableError, match="Softmax"):
        box_margins(nn.Sequential(net[0], nn.Softmax(1), net[-1]), box, torch.tensor([0, 1]))
    net[-1].register_forward_hook(lambda *_: None)
    with pytest.raises(NotCertifiableError, match="hooks"):
        box_margins(net, box, torch.tensor([0, 1]))


def test_weights_that_are_not_numbers_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight[0, 0] = torch.nan
    with pytest.raises(NotCertifiableError, match="NaN"):
        box_margins(net, Box.around(torch.rand(1, 1, 2, 2), 0.1), torch.tensor([0]))
