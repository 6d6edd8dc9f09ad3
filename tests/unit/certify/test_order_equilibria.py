"""`order` of equilibria and of layers with one hidden row: sound, tight on witnesses, refusing."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.certify import order
from wellposed.certify.loop import Loop
from wellposed.core.affine import Affine
from wellposed.core.operators import Dense
from wellposed.core.sets import Box
from wellposed.errors import NonConvergenceError, NotCertifiableError, ShapeError
from wellposed.nn.explicit import ExplicitLayer, Hidden
from wellposed.nn.lben import LBEN
from wellposed.nn.lben_conv import LBENConv
from wellposed.nn.sandwich import Sandwich
from wellposed.nn.sll import CPL, SLL
from wellposed.solvers.base import Stopping

UGLY = {
    "plain": lambda w: w,
    "x10": lambda w: 10 * w,
    "x1e3": lambda w: 1e3 * w,
    "x1e-3": lambda w: 1e-3 * w,
    "signs": lambda w: w * (1 - 2 * (torch.rand(w.shape) < 0.5).to(w)),
    "positive": lambda w: w.abs(),
    "bfloat16": lambda w: w.bfloat16().to(w),
    "sparse": lambda w: w * (torch.rand(w.shape) < 0.4).to(w),
}
FINE = Stopping(rtol=1e-10, max_evaluations=1000)


def lben(**options):
    return LBEN(4, 5, 3, gamma=2.0, margin=1.0, stopping=FINE, eval_stopping=FINE, **options)


LAYERS = {
    "SLL": lambda: SLL(4, 6),
    "SLL, tanh": lambda: SLL(4, 3, activation=wp.Tanh()),
    "CPL": lambda: CPL(4, 6),
    "Sandwich": lambda: Sandwich(4, 3),
    "LBEN": lben,
    "LBEN, skip": lambda: lben(skip=True),
    "monotone": lambda: wp.Equilibrium(wp.MonotoneCell(4, 5), eval_stopping=FINE),
    "monotone, scaled": lambda: wp.Equilibrium(
        wp.MonotoneCell(4, 5, scaled=True), eval_stopping=FINE
    ),
    "max norm": lambda: wp.Equilibrium(wp.InfNormCell(4, 5), eval_stopping=FINE),
}
GENERAL = {
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, 2, 1), (2, 6)),
    "conv1d, reflected": (lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, padding=1), (1, 3, 2, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 2, 3, 2), (2, 4)),
    "transposed, groups": (lambda: nn.ConvTranspose2d(2, 4, 2, groups=2), (2, 3, 2)),
    "transposed, 3-D": (lambda: nn.ConvTranspose3d(1, 1, 2), (1, 2, 2, 2)),
}


def contradicted(net, x, signs, step=1e-3, slack=1e-9):
    """How many differences, one input at a time, have another sign than the one derived."""
    shape = x.shape[1:]
    with torch.no_grad():
        base, wrong = net(x).flatten(1), 0
        for i in range(signs.shape[1]):
            moved = x.flatten(1).clone()
            moved[:, i] += step
            change = net(moved.reshape(-1, *shape)).flatten(1) - base
            room = slack * (1 + base.abs())
            for sign, bad in ((1, change < -room), (-1, change > room), (0, change.abs() > room)):
                wrong += int(bad[:, signs[:, i] == sign].sum())
    return wrong


@pytest.mark.parametrize("name", LAYERS)
def test_no_difference_contradicts_a_sign_at_ugly_parameters(name):
    torch.manual_seed(0)
    known = 0
    for ugly, change in UGLY.items():
        net = LAYERS[name]().double().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(change(parameter))
        try:
            signs = order(net, in_shape=(4,)).signs
        except NotCertifiableError:
            assert ugly in ("x10", "x1e3")  # too close to the end of what is well posed
            continue
        known += int((~signs.isnan()).sum())
        x = torch.randn(64, 4, dtype=torch.float64)
        for scale, step in ((1.0, 1e-3), (1.0, 1.0), (30.0, 10.0)):
            try:
                assert contradicted(net, scale * x, signs, step, 1e-7) == 0
            except NonConvergenceError:
                assert ugly in ("x10", "x1e3")
        if name in ("SLL", "SLL, tanh", "CPL", "Sandwich"):
            local = order(net, region=Box.around(x[0], 0.1)).signs
            assert int(local.isnan().sum()) <= int(signs.isnan().sum())
            near = x[0] + 0.05 * (2 * torch.rand(64, 4).double() - 1)
            assert contradicted(net, near, local, 0.05, 1e-10) == 0
    assert known


def test_signs_hold_after_training_steps():
    torch.manual_seed(1)
    net = nn.Sequential(SLL(4, 8), Sandwich(4, 4), lben()).double()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    x = torch.rand(32, 4, dtype=torch.float64)
    for _ in range(5):
        optimiser.zero_grad()
        net(x)[:, 0].sub(x.sum(1)).square().mean().backward()
        optimiser.step()
    found = order(net.eval(), region=Box.around(x[0], 1e-4)).signs
    assert contradicted(net, x[:1], found, 1e-4) == 0


@pytest.mark.parametrize("name", GENERAL)
def test_layers_of_every_dimension(name):
    torch.manual_seed(2)
    make, shape = GENERAL[name]
    layer = make().double()
    found = order(layer, in_shape=shape).signs
    x = torch.randn(3, *shape, dtype=torch.float64)
    assert contradicted(layer, x, found) == 0
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], x[0])
    matrix = matrix.reshape(found.shape)
    if "reflected" in name:  # a sum of two taps is rounded
        assert bool((found[~found.isnan()] == matrix.sign()[~found.isnan()]).all())
    else:
        assert torch.equal(found, matrix.sign())
    with torch.no_grad():
        layer.weight.abs_()
    assert bool((order(layer, in_shape=shape).signs >= 0).all())


class Row(ExplicitLayer):
    """``x + K phi(L x + b)`` with given weights."""

    def __init__(self, L, K, b=0.0, shortcut=True):
        super().__init__()
        self.L, self.K = (torch.tensor(M, dtype=torch.float64) for M in (L, K))
        self.b, self.shortcut = torch.full((len(L),), b, dtype=torch.float64), shortcut

    def explicit(self):
        return Hidden(self.L, self.b, self.K, torch.ones(len(self.L)), wp.ReLU(), self.shortcut)


def test_the_interval_of_a_slope_is_exact():
    below, above = Row([[1.0]], [[-0.999]]), Row([[1.0]], [[-1.001]])
    assert order(below).signs.tolist() == [[1]]
    assert order(above).signs.isnan().all()
    x = torch.ones(1, 1, dtype=torch.float64)
    assert float(above(x + 1) - above(x)) < 0  # and it does fall
    # where its neuron sleeps it rises
    asleep = Box(torch.tensor([-3.0]).double(), torch.tensor([-0.1]).double())
    assert order(above, region=asleep).signs.tolist() == [[1]]
    # two neurons whose slopes come and go together are bounded apart
    assert order(Row([[1.0], [2.0]], [[0.5, -0.3]])).signs.tolist() == [[1]]
    assert order(Row([[1.0], [2.0]], [[0.5, -0.6]])).signs.isnan().all()
    assert order(Row([[1.0], [0.0]], [[0.0, 2.0]], shortcut=False)).signs.tolist() == [[0]]
    with pytest.raises(ShapeError, match="shape"):
        order(below, in_shape=(2,))
    broken = Row([[float("nan")]], [[1.0]])
    with pytest.raises(NotCertifiableError, match="NaN"):
        order(broken)


class Wired(wp.AffineCell):
    """An equilibrium with given weights."""

    def __init__(self, A, B):
        super().__init__()
        self.A, self.B = (torch.tensor(M, dtype=torch.float64) for M in (A, B))

    def explicit(self):
        bias = torch.full((len(self.A),), 0.3, dtype=torch.float64)
        bias[0] = 5.0
        return Affine(Dense(self.A), Dense(self.B), bias, wp.ReLU())


@pytest.mark.parametrize("other", [1.0, 0.5])
def test_what_comes_straight_outweighs_the_way_round_up_to_its_size(other):
    # dz_0 = dx (1 - a c) where both neurons are awake
    a = 1.0 / other
    less, more = (Wired([[0.0, -a * s], [0.0, 0.0]], [[1.0], [other]]) for s in (0.999, 1.001))
    assert order(wp.Equilibrium(less)).signs.tolist() == [[1], [1]]
    found = order(wp.Equilibrium(more)).signs
    assert found[0].isnan().all()
    layer = wp.Equilibrium(more, eval_stopping=FINE).eval()
    x = torch.ones(1, 1, dtype=torch.float64) * 0.1
    assert float((layer(x + 0.1) - layer(x))[0, 0]) < 0


def test_paths_count_where_only_the_two_norm_knows_an_equilibrium():
    """A strong rotation among two states: no contraction in a max norm, but monotone."""
    A = [[0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -5.0], [0.0, 0.0, 5.0, 0.0]]
    B = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    cell = Wired(A, B)
    with pytest.raises(NotCertifiableError, match="factor"):
        Loop(cell.explicit())
    found = order(wp.Equilibrium(cell)).signs
    assert found[:, 0].tolist() == [1, 1, 0, 0]
    assert found[:2, 1].tolist() == [0, 0]
    assert found[2:, 1].isnan().all()  # round the loop the sign turns
    layer = wp.Equilibrium(cell, solver=wp.PeacemanRachford(), eval_stopping=FINE).eval()
    assert contradicted(layer, torch.randn(40, 2).double(), found, 0.1, 1e-8) == 0
    # nothing is said where neither norm proves that there is one equilibrium
    A[2][3] = 5.0
    with pytest.raises(NotCertifiableError, match="In the 2-norm"):
        order(wp.Equilibrium(Wired(A, B)))


def test_a_monotone_cell_with_one_sign_a_state_is_ordered():
    torch.manual_seed(3)
    cell = wp.MonotoneCell(3, 4, margin=0.05, dtype=torch.float64)
    with torch.no_grad():
        # -F^T F of one sign pattern: columns of opposite signs
        cell.F.copy_(torch.eye(4).double() - 0.2 * torch.rand(4, 4).double().tril(-1))
        cell.S.zero_()
        cell.inject.weight.copy_(torch.rand(4, 3).double())
    off = cell.explicit().A.weight.clone().fill_diagonal_(0)
    assert bool((off >= -1e-9).all())
    layer = wp.Equilibrium(cell, eval_stopping=FINE).eval()
    assert bool((order(layer).signs == 1).all())


def test_images_of_bounded_networks():
    torch.manual_seed(4)
    net = LBENConv(
        1, 2, 2, image=(3, 3), gamma=1.0, margin=5.0, dtype=torch.float64, eval_stopping=FINE
    ).eval()
    with torch.no_grad():
        net.cell.inject.abs_().mul_(3)
        net.readout.weight.abs_()
    found = order(net, in_shape=(1, 3, 3)).signs
    assert contradicted(net, torch.randn(8, 1, 3, 3).double(), found, 0.1, 1e-8) == 0


def test_refusals_name_the_reason():
    foreign = lben()
    foreign.layer.cell = wp.NemonCell(4, 5)
    with pytest.raises(NotCertifiableError, match="another cell"):
        order(foreign)
    ratio = wp.Equilibrium(wp.SubhomogeneousCell(4, 5))
    with pytest.raises(NotCertifiableError, match="general cell") as error:
        order(ratio, in_shape=(4,))
    assert "order_rule" in (error.value.hint or "")
    wide = wp.Equilibrium(wp.NemonCell(1, 5000))
    with pytest.raises(NotCertifiableError, match="states"):
        order(wide)
    hooked = SLL(4)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(NotCertifiableError, match="hooks"):
        order(hooked)
