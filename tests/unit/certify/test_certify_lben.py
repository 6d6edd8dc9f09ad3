"""The 2-norm gain of LBEN: sound, tight, refused where it does not hold, used by margins."""

from math import sqrt

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify.enclose import enclose
from wellposed.certify.gain import gain_of
from wellposed.certify.lben import explicit_network
from wellposed.certify.lmi import joint_gain
from wellposed.certify.lower import lower
from wellposed.certify.pairwise import PairwiseL2
from wellposed.certify.wellposed import monotone_witness, wellposedness
from wellposed.core.network import Network
from wellposed.core.norms import TwoNorm
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.nn.lben import LBEN
from wellposed.nn.normalise import Normalise
from wellposed.solvers.base import Stopping
from wellposed.testing import check_rule
from wellposed.verify.classifier import Classifier

TIGHT = Stopping(rtol=1e-12, max_evaluations=20000)


def make(gamma=0.5, skip=False, n=10, seed=0, dtype=torch.float64, q=4):
    torch.manual_seed(seed)
    layer = LBEN(6, n, q, gamma=gamma, skip=skip, eval_stopping=TIGHT, dtype=dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    return layer.eval()


# the attack may stop short of its own tolerance: it is then a weaker attack
@pytest.mark.filterwarnings("ignore:Adjoint equation")
@pytest.mark.parametrize("skip", [False, True])
def test_the_rule_is_sound_at_ugly_parameters(skip):
    report = check_rule(
        lambda: make(skip=skip, n=5),
        torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double(),
        norms=(TwoNorm(),),
        rounds=1,
    )
    assert report.refused == 0
    assert report.tightest >= 1


def test_a_bound_that_is_attained():
    # z = relu(3 x1 + 4 x2 + 1), y = 2 z: the gain 10 is attained and found
    one = torch.ones(1, 1).double()
    net = Network.of(0 * one, torch.tensor([[3.0, 4.0]]), one[0], 2 * one, one[0])
    assert joint_gain(PairwiseL2.of(net)).gain == pytest.approx(10, rel=1e-9)
    assert joint_gain(PairwiseL2.of(net)).gain >= 10


def test_the_joint_gain_is_that_of_its_inequality():
    net = explicit_network(make(skip=True))
    proof = PairwiseL2.of(net, net.metric)
    found = joint_gain(proof)

    def least(gamma, theta):
        # by blocks, for the multiplier theta gamma metric
        lam = net.metric * theta * gamma
        Z = lam[:, None] * (torch.eye(net.n).double() - net.W)
        cross = -(lam[:, None] * net.U) - net.C.mT @ net.D / gamma
        corner = gamma * torch.eye(net.d).double() - net.D.mT @ net.D / gamma
        top = torch.cat([Z + Z.mT - net.C.mT @ net.C / gamma, cross], 1)
        return float(torch.linalg.eigvalsh(torch.cat([top, torch.cat([cross.mT, corner], 1)]))[0])

    assert least(found.gain * (1 + 1e-6), found.theta) > 0
    assert least(found.gain * (1 - 1e-6), found.theta) < 0


@pytest.mark.parametrize("theta", [-1.0, 0.0, float("inf"), 1e9])
def test_a_theta_that_proves_nothing_gives_infinity(theta):
    net = explicit_network(make())
    assert joint_gain(PairwiseL2.of(net, net.metric), theta).gain == torch.inf


def test_any_theta_that_proves_something_is_sound():
    layer = make()
    net = explicit_network(layer)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    attacked = lipschitz_lower(layer, x, norm_in=TwoNorm(), rounds=1).value
    best = joint_gain(PairwiseL2.of(net, net.metric))
    for part in (0.1, 0.5, 0.9, 1.1):
        found = joint_gain(PairwiseL2.of(net, net.metric), part * best.theta)
        assert found.gain >= best.gain * (1 - 1e-6)
        assert found.gain >= attacked


@pytest.mark.parametrize("skip", [False, True])
def test_pairs_of_inputs_never_exceed_it(skip):
    for seed in range(3):
        layer = make(skip=skip, seed=seed)
        bound = wp.lipschitz(layer, norm_in="2").value
        assert bound <= 0.5
        x = torch.randn(200, 6, generator=torch.Generator().manual_seed(seed)).double()
        near = x + 10.0 ** -torch.arange(200.0).remainder(5)[:, None].double() * torch.randn(200, 6)
        with torch.no_grad():
            ratio = (layer(x) - layer(near)).norm(dim=1) / (x - near).norm(dim=1)
        assert float(ratio.max()) <= bound * (1 + 1e-6)


def test_the_scaling_of_pixels_divides_it():
    layer = make()
    bare = wp.lipschitz(layer, norm_in="2").value
    model = nn.Sequential(Normalise((0.1,), (0.25,)), nn.Flatten(), layer)
    whole = wp.lipschitz(model, norm_in="2", in_shape=(1, 2, 3)).value
    assert whole == pytest.approx(4 * bare, rel=1e-6)


def test_weights_edited_by_hand_lose_the_bound():
    net = explicit_network(make())
    before = gain_of(net).joint
    # three times the readout: still monotone, gain three times as large
    other = Network.of(net.W, net.U, net.b, 3 * net.C, net.c, metric=net.metric)
    assert gain_of(other).joint == pytest.approx(3 * before, rel=1e-6)
    # monotone no more in any metric
    broken = net.W.clone()
    broken[0, 0] = 1.5
    with pytest.raises(NotCertifiableError):
        gain_of(Network.of(broken, net.U, net.b, net.C, net.c, metric=net.metric))


def test_a_parameter_edited_to_break_the_inequality_is_noticed():
    layer = make(gamma=None, n=6)
    layer.cell.gamma = None
    assert wp.lipschitz(layer, norm_in="2").value > 0
    layer.cell.margin = -1e3
    with pytest.raises(NotCertifiableError, match="monotonicity"):
        wp.lipschitz(layer, norm_in="2")


def test_a_bad_offer_is_only_a_bad_hint():
    net = explicit_network(make())
    for metric in (-net.metric, torch.full_like(net.metric, torch.nan), 1 / net.metric**9):
        other = Network.of(net.W, net.U, net.b, net.C, net.c, metric=metric)
        assert gain_of(other).joint >= 0.999 * joint_gain(PairwiseL2.of(net, net.metric)).gain / 3
        assert monotone_witness(other).margin > 0


def test_the_witness_reaches_wellposedness():
    layer = make(n=12)
    with torch.no_grad():
        layer.cell.log_psi.copy_(torch.linspace(-40, 40, 12))
    net = lower(layer, (6,)).network()
    assert net.metric is not None
    found = wellposedness(net)
    assert found.kind == "monotone"
    assert torch.equal(found.weights, net.metric)


def model_of(layer):
    return nn.Sequential(Normalise((0.4,), (0.3,)), nn.Flatten(), layer).double().eval()


@pytest.mark.parametrize("skip", [False, True])
def test_margins_agree_with_the_gain_and_survive_attacks(skip):
    layer = make(gamma=2.0, skip=skip, seed=1)
    model = model_of(layer)
    x = torch.rand(40, 1, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    found = wp.l2_certified(model, x, y, steps=20)
    bound = wp.lipschitz(model, norm_in="2", in_shape=(1, 2, 3)).value
    # never worse than the margin certificate of the gain, pair by pair
    assert bool((found.gains <= sqrt(2) * bound * (1 + 1e-9)).all())
    top = logits.topk(2, 1).values
    by_gain = (top[:, 0] - top[:, 1]) / (sqrt(2) * bound)
    assert bool((found.radius >= by_gain * (1 - 1e-6) - 1e-9).all())
    assert float(found.radius.min()) >= 0
    # projected ascent on the margin inside of the ball
    radius = found.radius[:, None, None, None]
    moved = x.clone()
    for _ in range(25):
        point = moved.clone().requires_grad_()
        out = model(point)
        gap = out.gather(1, y[:, None]) - out
        worst = gap.masked_fill(gap == 0, torch.inf).amin(1).sum()
        step = torch.autograd.grad(worst, point)[0]
        size = step.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        moved = point.detach() - 0.3 * radius * step / size
        away = moved - x
        far = away.flatten(1).norm(dim=1).clamp(min=1e-300)[:, None, None, None]
        moved = x + away * (0.9999 * radius / far).clamp(max=1)
        with torch.no_grad():
            assert torch.equal(model(moved).argmax(1), y)


def test_the_cascade_uses_the_same_gains():
    model = model_of(make(gamma=1.0))
    task = Classifier.of(model, (1, 2, 3))
    gains = task.pair_gains(torch.full((6,), 0.3, dtype=torch.float32).double())
    bound = wp.lipschitz(model, norm_in="2", in_shape=(1, 2, 3)).value
    assert bool((gains <= sqrt(2) * bound * (1 + 1e-9)).all())


@pytest.mark.parametrize("skip", [False, True])
def test_the_lowered_network_has_the_same_outputs(skip):
    layer = make(skip=skip)
    net, again = lower(layer, (6,)).network(), explicit_network(layer)
    for name in ("W", "U", "b", "C", "c", "D"):
        assert torch.allclose(getattr(net, name), getattr(again, name), rtol=0, atol=0)


@pytest.mark.parametrize("skip", [False, True])
def test_boxes_hold_where_the_max_norm_contracts(skip):
    layer = make(skip=skip)
    layer.cell.margin = 1.0
    with torch.no_grad():
        layer.cell.V.mul_(0.2)
        layer.cell.S.mul_(0.02)
        layer.cell.log_psi.zero_()
        layer.cell.inject.weight.mul_(0.2)
        layer.cell.readout.weight.mul_(0.2)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).double()
    box = enclose(layer, Box(x - 1e-3, x + 1e-3))
    with torch.no_grad():
        for point in (x, x + 1e-3, x - 1e-3):
            y = layer(point)
            assert bool(((box.lower <= y) & (y <= box.upper)).all())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="takes inputs of shape"):
        wp.lipschitz(make(), norm_in="2", in_shape=(7,))


def test_a_layer_that_runs_another_cell_is_refused():
    layer = make()
    layer.layer.cell = make().cell
    with pytest.raises(NotCertifiableError, match="another cell"):
        wp.lipschitz(layer, norm_in="2", in_shape=(6,))
    with pytest.raises(NotCertifiableError, match="another cell"):
        enclose(layer, Box(torch.zeros(1, 6).double(), torch.ones(1, 6).double()))
