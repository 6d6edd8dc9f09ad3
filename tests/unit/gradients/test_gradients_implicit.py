"""The implicit gradient: to third order, under every transform, for dense, conv and free cells."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from wellposed.cells.free import FreeCell
from wellposed.cells.nemon import NemonCell, NemonConv2d
from wellposed.core.activations import ReLU, Tanh
from wellposed.errors import ConfigError
from wellposed.gradients.implicit import Implicit
from wellposed.gradients.truncated import Unrolled
from wellposed.nn.equilibrium import Equilibrium
from wellposed.nn.functional import fixed_point
from wellposed.solvers.base import Stopping
from wellposed.solvers.picard import Averaged, Jacobi, Picard

# the first use of forward mode makes torch compile its own decompositions, which it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

EXACT = Stopping(rtol=1e-13, atol=1e-15, max_evaluations=5000)
SHARP = Implicit(rtol=1e-13)


class Mix(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.inner = nn.Linear(n, n, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


def cell_of(kind):
    torch.manual_seed(0)
    if kind == "dense-relu":
        return NemonCell(4, 4, dtype=torch.float64, activation=ReLU())
    if kind == "dense-tanh":
        return NemonCell(4, 4, dtype=torch.float64, activation=Tanh())
    return FreeCell(Mix())


def layer_of(kind, gradient=SHARP, solver=None):
    return Equilibrium(
        cell_of(kind), gradient=gradient, stopping=EXACT, eval_stopping=EXACT, solver=solver
    )


def with_parameters(layer):
    names = [n for n, _ in layer.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def call(x, *tensors):
        return functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    return call, values


def sample(rows=2, n=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, n, dtype=torch.float64, generator=generator)


KINDS = ["dense-relu", "dense-tanh", "free"]


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_by_finite_differences(kind):
    call, values = with_parameters(layer_of(kind))
    x = sample().requires_grad_()
    assert gradcheck(call, (x, *values), atol=1e-7, fast_mode=kind == "dense-tanh")
    assert gradgradcheck(call, (x, *values), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_third_derivative_equals_that_of_the_unrolled_iteration(kind):
    def third(layer):
        x = sample().requires_grad_()
        y = (layer(x) ** 3).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        (h,) = torch.autograd.grad((g * g).sum(), x, create_graph=True)
        parameters = list(layer.parameters())
        return torch.autograd.grad((h * h).sum(), [x, *parameters], allow_unused=True)

    pairs = zip(third(layer_of(kind)), third(layer_of(kind, Unrolled(80))), strict=True)
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", [Picard(), Jacobi(), Averaged()], ids=repr)
def test_the_gradient_does_not_depend_on_the_solver(solver):
    x = sample().requires_grad_()
    layer, reference = layer_of("dense-tanh", solver=solver), layer_of("dense-tanh")
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(reference(x).square().sum(), x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_convolution_cell_by_finite_differences(padding):
    torch.manual_seed(0)
    cell = NemonConv2d(1, 2, image=(4, 6), padding=padding, stride=2, dtype=torch.float64)
    call, values = with_parameters(Equilibrium(cell, gradient=SHARP, stopping=EXACT))
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(call, (x, *values), atol=1e-7, fast_mode=True)
    assert gradgradcheck(call, (x, *values), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms_agree_with_autograd(kind):
    layer = layer_of(kind)
    x = sample()

    def loss(x):
        return layer(x).pow(3).sum()

    probe = x.clone().requires_grad_()
    (reference,) = torch.autograd.grad(loss(probe), probe)
    assert torch.allclose(grad(loss)(x), reference, atol=1e-12)
    assert torch.allclose(jacrev(loss)(x), reference, atol=1e-12)
    assert torch.allclose(jacfwd(loss)(x), reference, atol=1e-12)
    v = sample(seed=2)
    assert torch.allclose(jvp(loss, (x,), (v,))[1], (reference * v).sum(), atol=1e-11)
    second = torch.autograd.functional.hessian(loss, x)
    assert torch.allclose(hessian(loss)(x), second, atol=1e-10)
    assert torch.allclose(jacrev(jacrev(loss))(x), second, atol=1e-10)
    stacked = torch.stack([sample(seed=s) for s in range(3)])
    each = torch.stack([layer(part) for part in stacked])
    assert torch.allclose(vmap(layer)(stacked), each, atol=1e-12)
    whole = torch.autograd.functional.jacobian(layer, x)
    assert torch.allclose(jacrev(layer)(x), whole, atol=1e-12)
    with pytest.raises(ConfigError, match="jacrev"):
        torch.autograd.functional.jacobian(layer, x, vectorize=True)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients_through_sequential(kind):
    net = nn.Sequential(layer_of(kind), nn.Linear(4, 3, dtype=torch.float64))
    x, labels = sample(5), torch.tensor([0, 1, 2, 0, 1])
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, row, label):
        scores = functional_call(net, parameters, (row[None],))
        return nn.functional.cross_entropy(scores, label[None])

    batch = vmap(grad(loss), (None, 0, 0))(parameters, x, labels)
    for i in range(5):
        value = nn.functional.cross_entropy(net(x[i : i + 1]), labels[i : i + 1])
        one = torch.autograd.grad(value, list(net.parameters()))
        for name, reference in zip(parameters, one, strict=True):
            assert torch.allclose(batch[name][i], reference, atol=1e-11)


def test_nothing_of_a_transform_stays_in_the_layer():
    layer = layer_of("dense-relu")
    vmap(grad(lambda row: layer(row[None]).sum()))(sample(3))
    assert layer.last is not None
    kept = (layer.last.value, layer.last.residual, layer.last.status, layer.last.evaluations)
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_wants_a_gradient_gets_one(kind):
    layer = layer_of(kind)
    for p in layer.parameters():
        p.requires_grad_(False)
    assert not layer(sample()).requires_grad
    x = sample().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())
    free = layer_of(kind)
    first = next(free.parameters())
    for p in free.parameters():
        p.requires_grad_(p is first)
    free(sample()).sum().backward()
    assert first.grad is not None
    assert sum(p.grad is not None for p in free.parameters()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_depend_on_grad_mode_not_on_training(kind):
    layer = layer_of(kind).eval()
    x = sample(3).requires_grad_()
    y = layer(x)
    (evaluated,) = torch.autograd.grad(y.sum(), x)
    (trained,) = torch.autograd.grad(layer.train()(x).sum(), x)
    assert torch.allclose(evaluated, trained, atol=1e-12)
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()
    assert torch.allclose(layer(x), y)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice_twice_in_a_graph_and_nested(kind):
    layer = layer_of(kind)
    x = sample().requires_grad_()
    y = layer(x).square().sum()
    (one,) = torch.autograd.grad(y, x, retain_graph=True)
    (two,) = torch.autograd.grad(y, x)
    assert torch.equal(one, two)
    again = x.detach().requires_grad_()
    assert gradcheck(lambda x: layer(layer(x) + x), again, atol=1e-7, fast_mode=True)

    def nested(z, w, x):
        below = fixed_point(
            lambda y, z, x: torch.tanh(0.3 * y + 0.5 * z + x),
            torch.zeros_like(x),
            z,
            x,
            stopping=EXACT,
            gradient=SHARP,
        )
        return torch.tanh(below.value @ w)

    w = (0.3 * sample(4)).requires_grad_()

    def outer(w, x):
        start = torch.zeros_like(x)
        return fixed_point(nested, start, w, x, stopping=EXACT, gradient=SHARP).value

    x = sample().requires_grad_()
    assert gradcheck(outer, (w, x), atol=1e-7, fast_mode=True)


def test_start_gets_no_gradient():
    z0, x = sample().requires_grad_(), sample(seed=3).requires_grad_()
    z = fixed_point(lambda z, x: 0.5 * torch.tanh(z) + x, z0, x).value
    g = torch.autograd.grad(z.sum(), (z0, x), allow_unused=True)
    assert g[0] is None
    assert g[1] is not None


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_is_clean():
    layer = layer_of("dense-relu")
    x = torch.cat([sample(), torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        layer(x).square().sum().backward()
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        g.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_slope_at_a_kink_is_the_one_that_autograd_takes():
    # every pre-activation of the second sample is exactly zero
    layer = layer_of("dense-relu")
    with torch.no_grad():
        layer.cell.inject.bias.zero_()
    x = torch.stack([sample()[0], torch.zeros(4, dtype=torch.float64)]).requires_grad_()
    (ours,) = torch.autograd.grad(layer(x).sum(), x)
    (theirs,) = torch.autograd.grad(layer_like(layer, Unrolled(60))(x).sum(), x)
    assert torch.equal(ours[1], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(ours, theirs, atol=1e-13)


def layer_like(layer, gradient):
    return Equilibrium(layer.cell, gradient=gradient, stopping=EXACT, eval_stopping=EXACT)


def test_strided_inputs_and_cotangents():
    layer = layer_of("dense-tanh")
    wide = torch.randn(4, 6, dtype=torch.float64).t()[::2].requires_grad_()
    assert not wide.is_contiguous()
    (g,) = torch.autograd.grad(layer(wide).t().contiguous().sum(), wide)
    copy = wide.detach().contiguous().requires_grad_()
    (h,) = torch.autograd.grad(layer(copy).sum(), copy)
    assert torch.allclose(g, h, atol=1e-13)
    conv = Equilibrium(NemonConv2d(2, 3, image=(5, 4)), stopping=Stopping(1e-6))
    x = torch.randn(3, 2, 5, 4)
    y = conv(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(y, conv(x), atol=1e-5)


def test_weights_become_explicit_once_a_forward_and_never_in_backward(monkeypatch):
    layer, count = layer_of("dense-relu"), []
    original = NemonCell.explicit
    monkeypatch.setattr(NemonCell, "explicit", lambda cell: count.append(1) or original(cell))
    y = layer(sample().requires_grad_())
    assert len(count) == 1
    y.sum().backward()
    assert len(count) == 1


def test_an_adjoint_that_misses_its_tolerance_is_flagged():
    layer = layer_of("free", Implicit(rtol=1e-13, max_evaluations=2))
    solution = layer.solve(sample().requires_grad_())
    assert solution.adjoint is not None
    assert solution.adjoint.converged is None
    with pytest.warns(UserWarning, match="Adjoint equation"):
        solution.value.sum().backward()
    assert solution.adjoint.converged is False
    assert layer.last.adjoint.converged is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = layer_of("free").solve(sample().requires_grad_())
        good.value.sum().backward()
    assert good.adjoint.converged
