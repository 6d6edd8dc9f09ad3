"""Retention as a loss: its estimator, its scale, its teacher, and what it is refused for."""

import copy
import math

import pytest
import torch
from torch import nn

from wellposed.core.operators import Convolution
from wellposed.core.opnorm import operator_norm
from wellposed.errors import ConfigError, NonConvergenceError, ShapeError
from wellposed.files.atomic import digest
from wellposed.nn.binary import BinaryConv2d, BinaryLinear
from wellposed.nn.effective import effective_operator
from wellposed.nn.link import Link, watched_links
from wellposed.nn.residual import Residual
from wellposed.nn.signs import EDE
from wellposed.training import CrossEntropy, Examples, Recipe, fit
from wellposed.training.annealing import Annealed, annealed
from wellposed.training.certified import Ramp
from wellposed.training.interrupt import InterruptedRunError
from wellposed.training.objective import Objective
from wellposed.training.retention import (
    FeatureStrength,
    RetentionLoss,
    WeightStrength,
    retention,
    top_singular,
)

ONE = Ramp(1.0, 1.0)
STRENGTHS = [FeatureStrength(), FeatureStrength(per_sample=False), WeightStrength()]


def network(seed=0, *, binary=True, channels=(3, 3, 4)):
    torch.manual_seed(seed)
    blocks = []
    for into, out in zip(channels[:-1], channels[1:], strict=True):
        stride = 1 if into == out else 2
        conv = (
            BinaryConv2d(into, out, 3, stride=stride, padding=1, estimator=EDE(0.1, 2.0))
            if binary
            else nn.Conv2d(into, out, 3, stride, 1, bias=False)
        )
        body = nn.Sequential(conv, nn.BatchNorm2d(out))
        body = Residual(body) if stride == 1 else body
        blocks.append(Link(nn.Sequential(body, nn.Hardtanh()), out))
    front = [nn.Conv2d(1, channels[0], 3, padding=1), nn.BatchNorm2d(channels[0]), nn.Hardtanh()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 3)]
    return nn.Sequential(*front, *blocks, *tail)


def task(count=48):
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(3, 1, 6, 6, generator=g)
    labels = torch.randint(0, 3, (count,), generator=g)
    noise = 0.2 * torch.randn(count, 1, 6, 6, generator=g)
    return Examples((centres[labels] + noise).clamp(0, 1), labels)


def warmed(model):
    """Running statistics of the task."""
    model.train()
    for _ in range(20):
        model(task().inputs)
    return model


# --- the estimator ----------------------------------------------------------------------------


def relu_features(seed, c_in, c_out, pixels, batch=16):
    g = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, c_in, pixels, pixels, generator=g).relu()
    mix = torch.randn(c_out, c_in, 3, 3, generator=g) / math.sqrt(9 * c_in)
    return source, nn.functional.conv2d(source, mix, padding=1).relu()


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(("c_in", "c_out"), [(16, 32), (128, 128), (256, 64)])
def test_sigma_of_relu_features_after_five_and_twenty_steps(c_in, c_out, per_sample):
    matrix = retention(*relu_features(0, c_in, c_out, 7), per_sample=per_sample)
    exact = torch.linalg.svdvals(matrix)[:, 0]
    start = torch.full((c_out,), 1 / math.sqrt(c_out))
    for steps, error in ((5, 0.10), (20, 0.02)):
        found, right = top_singular(matrix, start, steps)
        assert bool((found <= exact * (1 + 1e-5)).all())
        assert bool((found >= (1 - error) * exact).all())
        assert torch.allclose(torch.linalg.vector_norm(right, dim=1), torch.ones(len(right)))


def test_warm_starts_make_up_for_few_steps():
    source, target = (f - f.mean((2, 3), keepdim=True) for f in relu_features(1, 64, 64, 7))
    matrix = retention(source, target, per_sample=False)
    exact = float(torch.linalg.svdvals(matrix)[0, 0])
    v = torch.full((64,), 1 / 8)
    errors = []
    for _ in range(15):
        found, right = top_singular(matrix, v, 2)
        v = right[0]
        errors.append(1 - float(found) / exact)
    assert errors[-1] < 0.01
    assert errors[-1] < 0.2 * errors[0]


def test_sigma_at_the_ends_of_the_range_of_floats():
    g = torch.Generator().manual_seed(2)
    matrix = torch.rand(3, 5, 4, generator=g)
    start = torch.ones(4)
    base, _ = top_singular(matrix, start, 30)
    for c in (1e-30, 1e30):
        assert torch.allclose(top_singular(c * matrix, start, 30)[0] / c, base, rtol=1e-5)
    zero = torch.zeros(2, 5, 4, requires_grad=True)
    found, right = top_singular(zero, start, 5)
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert bool(zero.grad.isfinite().all())
    assert bool(right.isfinite().all())


def test_the_gradient_of_sigma_is_that_of_the_singular_value():
    g = torch.Generator().manual_seed(3)
    matrix = torch.rand(2, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    found, _ = top_singular(matrix, torch.ones(4), 60)
    (one,) = torch.autograd.grad(found.sum(), matrix)
    (two,) = torch.autograd.grad(torch.linalg.svdvals(matrix)[:, 0].sum(), matrix)
    assert torch.allclose(one, two, atol=1e-9)


def test_retention_matrices_by_the_definition():
    g = torch.Generator().manual_seed(4)
    source = torch.randn(3, 2, 8, 8, generator=g)
    target = torch.randn(3, 5, 4, 4, generator=g)
    pooled = nn.functional.avg_pool2d(source, 2)
    expected = torch.einsum("bcxy,bdxy->bcd", pooled, target) / 16
    assert torch.allclose(retention(source, target), expected, atol=1e-6)
    batch = retention(source, target, per_sample=False)
    assert torch.allclose(batch[0], expected.mean(0), atol=1e-6)
    vectors = retention(source[:, :, 0, 0], target[:, :, 0, 0])
    assert torch.allclose(vectors[1], torch.outer(source[1, :, 0, 0], target[1, :, 0, 0]))
    for bad in (target.flatten(1), target[:2], torch.zeros(3, 5, 4)):
        with pytest.raises(ShapeError, match="compared"):
            retention(source, bad)


# --- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_network_that_is_its_own_teacher_pays_nothing(strength):
    model = warmed(network(binary=False)).eval()
    loss = RetentionLoss(CrossEntropy(), model, ONE, strength)
    data = task()
    with torch.no_grad():
        for _ in range(3):
            found, _ = loss.loss(model, data.inputs, data.labels, 0.5)
        base, _ = CrossEntropy().loss(model, data.inputs, data.labels, 0.5)
    assert float(found) == pytest.approx(float(base), abs=1e-6)


def test_the_value_is_that_of_the_formula():
    model, teacher = warmed(network()), warmed(network(1, binary=False)).eval()
    data = task()
    loss = RetentionLoss(CrossEntropy(), teacher, Ramp(0.3, 0.3), FeatureStrength(200), beta=3.0)
    with torch.no_grad():
        copied = copy.deepcopy(model)
        found, logits = loss.loss(model, data.inputs, data.labels, 0.5)
        with watched_links(copied) as own:
            assert torch.equal(copied(data.inputs), logits)
        with watched_links(teacher) as other:
            teacher(data.inputs)
        expected = nn.functional.cross_entropy(logits, data.labels)
        for factor, a, b in zip((1 / 3, 1.0), own.crossings, other.crossings, strict=True):
            top = [torch.linalg.svdvals(retention(c.source, c.target))[:, 0] for c in (a, b)]
            expected += 0.3 * factor * (top[0] / top[1] - 1).square().mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


class Scaled(nn.Module):
    def __init__(self, factor, body):
        super().__init__()
        self.factor, self.body = factor, body

    def forward(self, x):
        return self.factor * self.body(x)


def test_the_term_has_no_scale():
    g = torch.Generator().manual_seed(5)
    weights = [torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g)]
    x, y = torch.randn(20, 3, generator=g), torch.zeros(20, dtype=torch.int64)
    values = []
    # features of another size, then twice as many samples
    for c, copies in ((1e-6, 1), (1.0, 1), (1e6, 1), (1.0, 2)):
        nets = []
        for w in weights:
            linear = nn.Linear(3, 4, bias=False)
            linear.weight = nn.Parameter(w)
            nets.append(nn.Sequential(Link(Scaled(c, linear), 4)).double())
        with torch.no_grad():
            loss = RetentionLoss(CrossEntropy(), nets[1], ONE, FeatureStrength(50))
            batch = x.double().repeat(copies, 1), y.repeat(copies)
            term = loss.loss(nets[0], *batch, 0.0)[0] - CrossEntropy().loss(nets[0], *batch, 0.0)[0]
        values.append(float(term))
    assert values[1] > 0.05
    assert values == pytest.approx([values[1]] * 4, rel=1e-5)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_no_parameter_learns_from_the_term_alone(strength):
    model, data = network(), task()
    names = {}
    for kind in ("base", "term"):
        model.zero_grad(set_to_none=True)
        base = CrossEntropy()
        loss = RetentionLoss(base, warmed(network(1, binary=False)), ONE, strength)
        value = (base if kind == "base" else loss).loss(model, data.inputs, data.labels, 0.5)[0]
        if kind == "term":
            value = value - base.loss(model, data.inputs, data.labels, 0.5)[0]
        value.backward()
        names[kind] = {
            n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())
        }
    assert names["term"]
    assert names["term"] <= names["base"]
    # and nothing that is trained lives outside of the network
    assert not any(p.requires_grad for p in loss.teacher.parameters())


def count(module, counts, name):
    return module.register_forward_hook(lambda *_: counts.__setitem__(name, counts[name] + 1))


@pytest.mark.parametrize(("strength", "runs"), list(zip(STRENGTHS, (1, 1, 0), strict=True)))
def test_each_network_runs_once_a_step_and_the_teacher_never_changes(strength, runs, tmp_path):
    model, teacher = network(), warmed(network(1, binary=False))
    assert teacher.training
    loss = RetentionLoss(CrossEntropy(), teacher, ONE, strength)
    before, given = digest(loss.teacher.state_dict()), digest(teacher.state_dict())
    counts = {"model": 0, "teacher": 0}
    handles = [count(model, counts, "model"), count(loss.teacher, counts, "teacher")]
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    seen = int(norm.num_batches_tracked)
    fit(model, task(), Recipe(epochs=2, batch=16), tmp_path, objective=Annealed(loss))
    for handle in handles:
        handle.remove()
    assert counts == {"model": 6, "teacher": 6 * runs}
    assert int(norm.num_batches_tracked) - seen == 6
    assert digest(loss.teacher.state_dict()) == before
    assert digest(teacher.state_dict()) == given
    assert not any(m.training for m in loss.teacher.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("strength", STRENGTHS[:2])
def test_training_with_it_brings_the_ratios_to_one(strength, tmp_path):
    teacher, data = warmed(network(1, binary=False)), task()
    fit(teacher, data, Recipe(epochs=4, batch=16, lr=1e-2), tmp_path / "teacher")
    left = {}
    for weight in (0.0, 3.0):
        model = network(2)
        loss = RetentionLoss(CrossEntropy(), teacher, Ramp(weight, weight), strength)
        recipe = Recipe(epochs=12, batch=16, lr=1e-2)
        fit(model, data, recipe, tmp_path / str(weight), objective=annealed(model, loss))
        model.eval()
        fine = FeatureStrength(20, strength.per_sample)
        full = RetentionLoss(CrossEntropy(), teacher, ONE, fine)
        with torch.no_grad():
            plain, _ = CrossEntropy().loss(model, data.inputs, data.labels, 1.0)
            left[weight] = float(full.loss(model, data.inputs, data.labels, 1.0)[0] - plain)
    assert left[3.0] < 0.7 * left[0.0]


def test_a_weight_of_zero_is_the_base_loss_and_wakes_no_teacher():
    model, data = network(), task()
    loss = RetentionLoss(CrossEntropy(), network(1, binary=False), Ramp(0.0, 1.0, 0.5, 1.0))
    loss.teacher.forward = None  # type: ignore[method-assign]
    found, _ = loss.loss(model, data.inputs, data.labels, 0.2)
    base, _ = CrossEntropy().loss(model, data.inputs, data.labels, 0.2)
    assert torch.equal(found, base)


class _Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    data, teacher = task(), warmed(network(1, binary=False))
    recipe = Recipe(epochs=2, batch=16, lr=1e-2, checkpoint_steps=1)

    def objective():
        return Annealed(RetentionLoss(CrossEntropy(), teacher, Ramp(0.5, 0.5)))

    whole = network()
    fit(whole, data, recipe, tmp_path / "whole", objective=objective())
    steps = []
    original = RetentionLoss.loss

    def stopping(self, *args):
        steps.append(1)
        if len(steps) == 5:
            raise _Stop
        return original(self, *args)

    monkeypatch.setattr(RetentionLoss, "loss", stopping)
    with pytest.raises((_Stop, InterruptedRunError)):
        fit(network(), data, recipe, tmp_path / "part", objective=objective())
    monkeypatch.setattr(RetentionLoss, "loss", original)
    again = network(7)
    fit(again, data, recipe, tmp_path / "part", objective=objective(), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# --- effective operators ----------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_the_effective_operator_is_what_the_link_does_without_its_sign(binary):
    link = next(m for m in warmed(network(3, binary=binary)).eval().modules() if type(m) is Link)
    norm = next(m for m in link.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
    body = link.body[0].body
    operator = effective_operator(link.body, (6, 6))
    x = torch.randn(2, 3, 6, 6).sign()
    with torch.no_grad():
        y, zero = body(x), body[1](torch.zeros(2, 3, 6, 6))
        assert torch.allclose(operator.apply(x), y - zero, atol=1e-5)
    bracket = operator_norm(operator.detach())
    dense = float(torch.linalg.matrix_norm(operator.detach().materialise().double(), 2))
    assert bracket.lower <= dense * (1 + 1e-9)
    assert bracket.upper >= dense * (1 - 1e-9)


def test_the_norm_of_weights_by_the_norm_engine():
    model, teacher = warmed(network()), warmed(network(1, binary=False))
    data = task()
    loss = RetentionLoss(CrossEntropy(), teacher, ONE, WeightStrength())
    with torch.no_grad(), watched_links(model) as seen:
        model(data.inputs)
        ratios = loss.strength.ratios(seen.crossings, loss.teacher, data.inputs)
    links = [m for m in loss.teacher.modules() if isinstance(m, Link)]
    for ratio, own, other in zip(ratios, seen.crossings, links, strict=True):
        image = tuple(own.source.shape[-2:])
        above = operator_norm(effective_operator(own.link.body, image).detach())
        below = operator_norm(effective_operator(other.body, image).detach())
        # both are taken on a grid that is larger by half a kernel
        assert float(ratio) == pytest.approx(above.upper / below.upper, rel=0.05)


def test_a_new_teacher_has_norms_of_its_own():
    strength, data, model = WeightStrength(), task(), warmed(network())
    found = []
    for seed in range(1, 6):
        loss = RetentionLoss(CrossEntropy(), warmed(network(seed, binary=False)), ONE, strength)
        fresh = RetentionLoss(CrossEntropy(), loss.teacher, ONE, WeightStrength())
        with torch.no_grad(), watched_links(model) as seen:
            model(data.inputs)
            found.append(
                [float(r) for r in strength.ratios(seen.crossings, loss.teacher, data.inputs)]
            )
            again = fresh.strength.ratios(seen.crossings, fresh.teacher, data.inputs)
        assert found[-1] == pytest.approx([float(r) for r in again])
        del loss, fresh
    assert len({tuple(f) for f in found}) == 5


def test_links_without_an_effective_operator_are_refused():
    for body in (
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)),
        nn.Linear(3, 3),
        nn.Conv2d(2, 2, 3, padding=1, groups=2),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        BinaryConv2d(2, 2, 3, padding=2, dilation=2),
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2, track_running_stats=False)),
    ):
        with pytest.raises(ConfigError):
            effective_operator(body, (6, 6))
    operator = effective_operator(nn.Conv2d(2, 3, 3, padding=1), (5, 4))
    assert isinstance(operator, Convolution)
    assert operator.image == (5, 4)


# --- bad input --------------------------------------------------------------------------------


class Twice(Objective):
    def loss(self, model, inputs, labels, done):
        model(inputs)
        return CrossEntropy().loss(model, inputs, labels, done)

    def watched(self, model, held_out):
        return {}


def test_bad_arguments_are_refused():
    teacher, data = network(1, binary=False), task()
    for make in (
        lambda: RetentionLoss(CrossEntropy(), teacher, Ramp(-1.0, 0.0)),
        lambda: RetentionLoss(CrossEntropy(), teacher, ONE, beta=0.0),
        lambda: RetentionLoss(CrossEntropy(), teacher, ONE, beta=math.inf),
        lambda: RetentionLoss(CrossEntropy(), nn.Linear(2, 2), ONE),
        lambda: FeatureStrength(steps=0),
    ):
        with pytest.raises(ConfigError):
            make()
    loss = RetentionLoss(Twice(), teacher, ONE)
    with pytest.raises(ConfigError, match="runs the network 2 times"):
        loss.loss(network(), data.inputs, data.labels, 0.0)
    loss = RetentionLoss(CrossEntropy(), teacher, ONE)
    for other in (network(channels=(3, 3, 5)), network(channels=(3, 3)), nn.Flatten()):
        with pytest.raises(ConfigError, match=r"channels.*expected the same"):
            loss.loss(other, data.inputs, data.labels, 0.0)
    with pytest.raises(ShapeError):
        Link(nn.Identity(), 0)


def test_a_teacher_that_is_no_number_or_passes_nothing():
    model, data = network(), task()
    broken = network(1, binary=False)
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ConfigError, match="NaN"):
        RetentionLoss(CrossEntropy(), broken, ONE)
    silent = network(1, binary=False)
    with torch.no_grad():
        for p in silent.parameters():
            p.zero_()
    for strength in STRENGTHS:
        loss = RetentionLoss(CrossEntropy(), silent, ONE, strength)
        found, _ = loss.loss(model.eval(), data.inputs, data.labels, 0.0)
        base, _ = CrossEntropy().loss(model, data.inputs, data.labels, 0.0)
        assert torch.equal(found, base)
        model.zero_grad()
        found.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_zero_kernels_in_the_network_train_on():
    model, data = network(), task()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, BinaryConv2d):
                m.weight.zero_()
    loss = RetentionLoss(CrossEntropy(), warmed(network(1, binary=False)), ONE)
    value, _ = loss.loss(model.train(), data.inputs, data.labels, 0.0)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_training_on_nan_is_noticed(tmp_path):
    model, data = network(), task()
    data.inputs[3] = math.nan
    loss = RetentionLoss(CrossEntropy(), warmed(network(1, binary=False)), ONE)
    with pytest.raises(NonConvergenceError, match="diverged"):
        fit(model, data, Recipe(epochs=1, batch=16), tmp_path, objective=Annealed(loss))
    assert all(bool(m.directions.isfinite().all()) for m in model.modules() if type(m) is Link)


def test_annealing_follows_the_run(tmp_path):
    model, data, seen = network(), task(), []
    layer = next(m for m in model.modules() if isinstance(m, BinaryConv2d))
    layer.register_forward_hook(lambda *_: seen.append(layer.done))
    objective = annealed(model, None, 0.1)
    assert objective == Annealed(CrossEntropy(0.1))
    fit(model, data, Recipe(epochs=2, batch=16), tmp_path, objective=objective)
    assert seen == pytest.approx([step / 6 for step in range(6)])
    plain = nn.Sequential(nn.Linear(2, 2))
    assert annealed(plain, None) is None
    assert annealed(nn.Sequential(BinaryLinear(2, 2, binary_inputs=False)), None) is not None
