"""Lowering: the system has the module's outputs; what has no rule is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.cells.base import AffineCell
from wellposed.certify.blocks import INPUT
from wellposed.certify.bounds import interval_bounds
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.crown import crown
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.lower import lower
from wellposed.core.activations import LeakyReLU, Tanh
from wellposed.core.sets import Ball, Box
from wellposed.errors import NotCertifiableError, ShapeError

EQ = wp.Equilibrium
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False)), (4,)),
    "identity": (nn.Identity, (3,)),
    "one layer": (lambda: nn.Linear(4, 3), (4,)),
    "leaky": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.25), nn.Linear(5, 4),
                              nn.LeakyReLU(0.25), nn.Linear(4, 3)),
        (4,),
    ),
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "sigmoid": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)), (4,)),
    "elu": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 3)), (4,)),
    "output is an activation": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)),
    "activation twice": (lambda: nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(4, 2)), (4,)),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.9), nn.ReLU(), nn.Linear(5, 3)), (4,)
    ),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()),
                              nn.Sequential(nn.Sequential(nn.Linear(5, 2)))),
        (4,),
    ),
    "two equilibria": (
        lambda: nn.Sequential(EQ(wp.NemonCell(4, 6)), nn.Linear(6, 5), EQ(wp.NemonCell(5, 4)),
                              nn.Linear(4, 3)),
        (4,),
    ),
    "leaky equilibrium": (
        lambda: nn.Sequential(EQ(wp.NemonCell(4, 6, activation=LeakyReLU(0.1))),
                              nn.Linear(6, 3), nn.LeakyReLU(0.1)),
        (4,),
    ),
    "tanh equilibrium": (
        lambda: nn.Sequential(EQ(wp.NemonCell(4, 6, activation=Tanh())), nn.Linear(6, 3)), (4,)
    ),
    "bare cell is a layer": (lambda: EQ(wp.NemonCell(4, 6)), (4,)),
    "zeros": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(),
                              nn.Linear(60, 3)),
        (2, 4, 5),
    ),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                              nn.Flatten(), nn.Linear(60, 3)),
        (2, 4, 5),
    ),
    "reflect": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
                              nn.Flatten(), nn.Linear(60, 3)),
        (2, 4, 5),
    ),
    "replicate": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 5, padding=2, padding_mode="replicate"), nn.ReLU(),
                              nn.Flatten(), nn.Linear(60, 3)),
        (2, 4, 5),
    ),
    "same": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 1), padding="same"), nn.ReLU(), nn.Flatten(),
                              nn.Linear(60, 3)),
        (2, 4, 5),
    ),
    "stride, groups, dilation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2),
            nn.ReLU(), nn.Conv2d(4, 2, 2, stride=2), nn.Flatten(), nn.Linear(4, 3)),
        (2, 5, 4),
    ),
    "average": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten(),
                              nn.Linear(8, 3)),
        (1, 5, 6),
    ),
    "adaptive": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                              nn.Flatten(), nn.Linear(8, 3)),
        (1, 5, 6),
    ),
    "max": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        (1, 6, 7),
    ),
    "max overlaps and pads": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d((3, 2), (1, 2), (1, 1)), nn.ReLU(),
                              nn.Flatten(), nn.Linear(24, 3)),
        (1, 6, 6),
    ),
    "max of the input": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)), (1, 6, 5)
    ),
    "normalise": (
        lambda: nn.Sequential(wp.Normalise([0.3, 0.5], [0.2, 0.7]), nn.Conv2d(2, 2, 3), nn.ReLU(),
                              nn.Flatten(), nn.Linear(8, 3)),
        (2, 4, 4),
    ),
    "conv equilibria": (
        lambda: nn.Sequential(
            EQ(wp.NemonConv2d(1, 2, image=(4, 4), padding="circular")),
            EQ(wp.NemonConv2d(2, 2, image=(4, 4), stride=2)), nn.AvgPool2d(2), nn.Flatten(),
            EQ(wp.NemonCell(2, 5)), nn.Linear(5, 3)),
        (1, 4, 4),
    ),
    "unflatten": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.ReLU(),
                              nn.Flatten(), nn.Linear(8, 2)),
        (16,),
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().double().eval(), shape


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_module(name: str) -> None:
    model, shape = built(name)
    lowered = replace(lower(model, shape), exact=True)  # near enough for this comparison
    network = lowered.network()
    x = torch.rand(20, *shape).double()
    entered = lowered.enter(Box(x, x)).box.centre
    v = approximate_equilibrium(network, entered)
    with torch.no_grad():
        y = model(x).flatten(1)
    torch.testing.assert_close(network.output(network.phi(v), entered), y, rtol=1e-6, atol=1e-6)
    assert lowered.system.blocks[-1].linear
    assert network.q == y.shape[1]


@pytest.mark.parametrize(
    ("pool", "exact"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d((4, 2)), True),
        (nn.AvgPool2d(3), False),
        (nn.AvgPool2d(3, divisor_override=8), True),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), False),
        (nn.AvgPool2d(2, ceil_mode=True), False),
        (nn.AdaptiveAvgPool2d(2), False),
        (nn.AdaptiveAvgPool2d((3, 1)), True),
    ],
)
def test_averages_are_numbers_only_of_a_power_of_two_pixels(pool: nn.Module, exact: bool) -> None:
    lowered = lower(nn.Sequential(pool, nn.Flatten(), nn.ReLU()).double().eval(), (1, 6, 4))
    assert lowered.exact == exact
    if not exact:
        with pytest.raises(NotCertifiableError, match="averages of other than 2"):
            lowered.network()


@pytest.mark.parametrize("name", MODELS)
def test_bounds_hold_for_the_module(name: str) -> None:
    """Intervals and CROWN of the lowered system against corners of the module itself."""
    model, shape = built(name)
    lowered = lower(model, shape)
    region = Box.around(
        torch.rand(3, *shape), torch.tensor([0.3, 0.03, 1e-6]).reshape(3, *[1] * len(shape))
    )
    entered = lowered.enter(region)
    bounds = interval_bounds(lowered.system, entered)
    scope = Scope.of(lowered.system, entered, bounds)
    q = lowered.outputs.stop - lowered.outputs.start
    state = torch.zeros(q, lowered.system.n).double()
    state[:, lowered.outputs] = torch.eye(q).double()
    rows = Rows(state, None, torch.zeros(q).double()).select(torch.arange(q).repeat(3))
    index = torch.arange(3).repeat_interleave(q)
    low = crown(lowered.system, scope.select(index), rows)[0].reshape(3, q)
    high = -crown(lowered.system, scope.select(index), -rows)[0].reshape(3, q)
    share = torch.rand(100, 3, *shape).double()
    share[:60] = share[:60].round()
    x = region.lower + share * (region.upper - region.lower)
    with torch.no_grad():
        y = model(x.reshape(-1, *shape)).reshape(100, 3, q)
    slack = 1e-6 * (1 + y.abs())
    assert ((y >= low - slack) & (y <= high + slack)).all()
    out = Box(bounds.lower[:, lowered.outputs], bounds.upper[:, lowered.outputs])
    assert ((y >= out.lower - slack) & (y <= out.upper + slack)).all()
    # the smallest region is bounded tightly
    assert float((high - low)[2].max()) < 1e-3


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Odd(AffineCell):
    def __init__(self) -> None:
        super().__init__()
        self.inner = wp.NemonCell(4, 3)

    def explicit(self):
        return self.inner.explicit()

    def bind(self, u: Tensor):
        return self.inner.bind(2 * u)


def hooked() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "GELU": (nn.GELU, (4,)),
    "SiLU": (nn.SiLU, (4,)),
    "Softplus": (nn.Softplus, (4,)),
    "Softmax": (lambda: nn.Softmax(1), (4,)),
    "LSTM": (lambda: nn.LSTM(4, 3), (4,)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4).train(), (4,)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(1, track_running_stats=False).eval(), (1, 4, 4)),
    "LayerNorm": (lambda: nn.LayerNorm(4), (4,)),
    "Doubled": (lambda: Doubled(4, 3), (4,)),
    "Linear": (hooked, (4,)),
    "Tanh": (lambda: nn.Sequential(nn.ReLU(), nn.Tanh()), (4,)),
    "LeakyReLU": (lambda: nn.Sequential(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)), (4,)),
    "MaxPool2d": (lambda: nn.Sequential(nn.Tanh(), nn.MaxPool2d(2)), (1, 4, 4)),
    "Dropout": (lambda: nn.Dropout(0.5).train(), (4,)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5).train(), (1, 4, 4)),
    "ELU": (lambda: nn.ELU(2.0), (4,)),
    "Odd": (lambda: EQ(Odd()), (4,)),
    "FreeCell": (lambda: EQ(wp.FreeCell(nn.Identity())), (4,)),
    "Normalise": (lambda: nn.Sequential(nn.ReLU(), wp.Normalise([0.0], [1.0])), (1, 4, 4)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    make, shape = REFUSED[name]
    with pytest.raises(NotCertifiableError, match=name):
        lower(nn.Sequential(nn.Identity(), make()), shape)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, return_indices=True),
    ],
)
def test_max_pools_that_are_not_covered(pool: nn.Module) -> None:
    with pytest.raises(NotCertifiableError, match="MaxPool2d"):
        lower(pool, (1, 6, 6))


def test_negative_slopes_are_refused() -> None:
    with pytest.raises(NotCertifiableError, match="LeakyReLU"):
        lower(nn.LeakyReLU(-0.1), (4,))
    with pytest.raises(NotCertifiableError, match="LeakyReLU"):
        lower(nn.LeakyReLU(1.5), (4,))


def test_scaling_after_a_change_of_shape_is_refused() -> None:
    """Regions are scaled in the shape of the inputs: anything else would scale other numbers."""
    three = wp.Normalise([0.1, 0.5, 0.9], [0.1, 1.0, 10.0])
    model = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), three, nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(NotCertifiableError, match="Normalise"):
        lower(model, (12,))
    with pytest.raises(NotCertifiableError, match="Normalise"):
        lower(nn.Sequential(wp.Normalise([0.0], [1.0]), wp.Normalise([0.0], [1.0])), (1, 2, 2))
    inside = wp.Residual(wp.Normalise([0.5], [0.1]))
    with pytest.raises(NotCertifiableError, match="Residual"):
        lower(nn.Sequential(inside, nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    with pytest.raises(ShapeError, match="3 channels"):
        lower(nn.Sequential(three, nn.Flatten()), (1, 2, 2))


def test_layers_that_do_not_fit() -> None:
    with pytest.raises(ShapeError):
        lower(nn.Linear(4, 3), (5,))
    with pytest.raises(ShapeError):
        lower(EQ(wp.NemonCell(4, 3)), (5,))
    with pytest.raises(NotCertifiableError):
        lower(nn.Flatten(0), (2, 2))
    lowered = lower(nn.Linear(4, 3), (4,))
    with pytest.raises(ShapeError, match="unsqueeze"):
        lowered.enter(Box(torch.zeros(4).double(), torch.ones(4).double()))


def test_broken_weights_are_refused() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1, 2] = torch.nan
    with pytest.raises(NotCertifiableError, match="NaN"):
        lower(nn.Sequential(nn.Linear(4, 4), layer), (4,))
    cell = wp.NemonCell(4, 3)
    with torch.no_grad():
        cell.inject.bias[0] = torch.inf
    with pytest.raises(NotCertifiableError, match="infinity"):
        lower(EQ(cell), (4,))


def test_enter_rounds_outward() -> None:
    from fractions import Fraction

    torch.manual_seed(3)
    model = nn.Sequential(
        wp.Normalise([0.1307, 0.7], [0.3081, 1e-3]), nn.Flatten(), nn.Linear(8, 2)
    )
    lowered = lower(model, (2, 2, 2))
    box = Box.around(torch.rand(3, 2, 2, 2), 0.1)
    entered = lowered.enter(box)
    assert isinstance(entered, Box)
    scaling = model[0]
    for end, low in ((box.lower, entered.lower), (box.upper, entered.upper)):
        for k in range(3):
            for j, value in enumerate(end[k].flatten().tolist()):
                mean, std = (Fraction(float(t[j // 4])) for t in (scaling.mean, scaling.std))
                exact = (Fraction(value) - mean) / std
                found = Fraction(float(low[k, j]))
                assert found <= exact if end is box.lower else found >= exact
    ball = lowered.enter(Ball(torch.rand(3, 2, 2, 2), 0.1, 0.0, 1.0))
    assert isinstance(ball, Ball)
    assert ball.shape == (3, 8)


def test_blocks_of_a_tournament_read_the_right_pixels() -> None:
    lowered = lower(nn.MaxPool2d(3, 2, 1), (2, 5, 5))
    for k, block in enumerate(lowered.system.blocks):
        assert all(link.source == INPUT or link.source < k for link in block.links)
    network = lowered.network()
    x = torch.randn(30, 2, 5, 5).double()
    v = approximate_equilibrium(network, x.flatten(1))
    y = network.output(network.phi(v), x.flatten(1))
    assert torch.allclose(y, nn.functional.max_pool2d(x, 3, 2, 1).flatten(1), rtol=0, atol=1e-12)


def test_the_attacked_weights_are_the_lowered_ones() -> None:
    """Training on does not change what was lowered; lowering again does."""
    layer = nn.Linear(4, 3)
    lowered = lower(layer, (4,))
    before = lowered.network()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert before.digest() == lowered.network().digest()
    assert lower(layer, (4,)).network().digest() != before.digest()
