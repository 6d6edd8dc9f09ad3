"""`lipschitz`: composition, norms, refusals by name, and rules through the conformance kit."""

import pytest
import torch
from torch import nn

import wellposed as wp
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify import Slopes, enclose, enclose_rule, lipschitz, lipschitz_rule
from wellposed.certify.linear import spectral_norm
from wellposed.core.activations import ReLU, Softplus, Tanh
from wellposed.core.affine import Affine
from wellposed.core.norms import MaxNorm, OneNorm, TwoNorm
from wellposed.core.operators import Dense
from wellposed.core.records import Certificate, Estimate
from wellposed.core.sets import Box
from wellposed.errors import AuditError, ConfigError, NotCertifiableError, ShapeError
from wellposed.testing.rules import check_rule
from wellposed.verify.audit import audit


def _net(activation=None, p=4, n=6, k=3):
    cell = wp.NemonCell(p, n, margin=0.5, activation=activation, dtype=torch.float64)
    return nn.Sequential(wp.Equilibrium(cell), nn.Linear(n, k, dtype=torch.float64))


class _Active(wp.AffineCell):
    """Nonnegative weights and a large bias: every neuron is active and L3 is attained."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.A = nn.Parameter(torch.rand(5, 5, generator=g, dtype=torch.float64) / 6)
        self.B = nn.Parameter(torch.rand(5, 4, generator=g, dtype=torch.float64))

    def explicit(self):
        return Affine(Dense(self.A), Dense(self.B), torch.full((5,), 9.0).double(), ReLU())


class _Expanding(_Active):
    def explicit(self):
        A = Dense(self.A * 30).off_diagonal()
        return Affine(A, Dense(self.B), torch.zeros(5).double(), ReLU())


@pytest.mark.parametrize("activation", [ReLU(), Softplus()], ids=repr)
def test_equilibrium_rule_conforms(activation):
    report = check_rule(
        lambda: _net(activation),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        witness=lambda: nn.Sequential(wp.Equilibrium(_Active())),
        outside=[
            lambda: wp.Equilibrium(_Expanding()),
            lambda: nn.Sequential(_net(), nn.LayerNorm(3)),
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
        ],
        rounds=1,
    )
    assert report.checked == 24
    assert report.witness[0] <= 1 + 1e-6


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_convolution_rules_conform(padding):
    def make():
        cell = wp.NemonConv2d(2, 2, image=(6, 6), padding=padding, stride=2)
        return nn.Sequential(
            wp.Equilibrium(cell), nn.MaxPool2d(2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)
        )

    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert check_rule(make, x, rounds=1, norms=(MaxNorm(), TwoNorm())).checked == 16


def test_explicit_layers_conform():
    def make():
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.GELU(),
            nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4),
            nn.SiLU(), nn.Linear(4, 2), nn.ELU(), nn.Hardtanh(), nn.Identity(),
        )  # fmt: skip

    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    report = check_rule(
        make, x, rounds=1, rule=lambda m, norm: lipschitz(m, norm_in=norm, in_shape=(2, 6, 6))
    )
    assert report.checked == 24


def test_propagation_is_never_worse_than_the_product_of_norms():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), _net(p=8), nn.Tanh(), nn.Linear(3, 2))
    net.double()
    for name in ("max", "1", "2"):
        best = lipschitz(net, norm_in=name).value
        assert best <= lipschitz(net, norm_in=name, method="product").value * (1 + 1e-12)
        assert best <= lipschitz(net, norm_in=name, method="componentwise").value * (1 + 1e-12)


def test_linear_layer_in_every_norm_with_weights():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    eta, xi = torch.rand(4).double() + 0.1, torch.rand(3).double() + 0.1
    for kind in (MaxNorm, OneNorm):
        exact = float(kind(xi).operator_norm(layer.weight.detach(), kind(eta)))
        value = lipschitz(layer, norm_in=kind(eta), norm_out=kind(xi)).value
        assert exact <= value <= exact * (1 + 1e-12)
    exact = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert exact <= lipschitz(layer, norm_in="2").value <= exact * (1 + 1e-6)
    weighted = float(TwoNorm(xi).operator_norm(layer.weight.detach(), TwoNorm(eta)))
    assert weighted <= lipschitz(layer, norm_in=TwoNorm(eta), norm_out=TwoNorm(xi)).value


@pytest.mark.parametrize("shape", [(3, 7), (20, 4), (1, 1)])
@pytest.mark.parametrize("scale", [0.0, 1e-120, 1e-8, 1.0, 1e8])
def test_spectral_norm_is_an_upper_bound(shape, scale):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    exact = float(torch.linalg.matrix_norm(W, 2))
    assert exact <= spectral_norm(W) <= exact * (1 + 1e-6) + 1e-99


def test_shape_is_inferred_or_asked_for():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ShapeError, match="in_shape"):
        lipschitz(net)
    assert lipschitz(net, in_shape=(1, 4, 4)).value > 0
    with pytest.raises(ShapeError, match="does not accept"):
        lipschitz(net, in_shape=(1, 9, 9))
    with pytest.raises(ShapeError, match="region"):
        lipschitz(net, in_shape=(1, 4, 4), region=Box.around(torch.zeros(1, 5, 5), 1.0))
    with pytest.raises(ShapeError, match="takes inputs"):
        lipschitz(_net(), in_shape=(9,))


class _Own(nn.Module):
    def forward(self, x):
        return x.abs()


class _Overridden(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, args, out: out * 2)
    return layer


def _patched():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    return layer


class _Rebound(_Active):
    def bind(self, x):
        return super().bind(2 * x)


REFUSED = {
    "unknown": (_Own, "no Lipschitz rule"),
    "overridden forward": (lambda: _Overridden(2, 2), "replaces the `forward` of Linear"),
    "hook": (_hooked, "hooks"),
    "patched": (_patched, "replaces the `forward`"),
    "own bind": (lambda: wp.Equilibrium(_Rebound()), "replaces `bind`"),
    "dropout": (nn.Dropout, "training mode"),
    "batch norm": (lambda: nn.BatchNorm1d(2), "training mode"),
    "tanh GELU": (lambda: nn.GELU(approximate="tanh"), "options"),
    "mixing flatten": (lambda: nn.Flatten(0), "mixes the batch"),
    "dilated pool": (lambda: nn.MaxPool2d(2, dilation=2), "dilation"),
    "layer norm": (lambda: nn.LayerNorm(2), "no Lipschitz rule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_submodule(name):
    make, message = REFUSED[name]
    with pytest.raises(NotCertifiableError, match=message) as caught:
        lipschitz(nn.Sequential(nn.Identity(), nn.Sequential(make())), in_shape=(4,))
    assert "1.0" in caught.value.message
    assert caught.value.hint


def test_weights_that_are_not_finite_are_refused():
    net = _net()
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(NotCertifiableError, match="NaN"):
        lipschitz(net)
    net = _net()
    with torch.no_grad():
        net[0].cell.T[0, 1] = float("inf")
    with pytest.raises(NotCertifiableError, match="NaN or infinity"):
        lipschitz(net)


def test_expanding_cells_are_refused_with_the_measured_factor():
    with pytest.raises(NotCertifiableError, match=r"factor [1-9]") as caught:
        lipschitz(wp.Equilibrium(_Expanding()))
    assert "margin" in caught.value.hint


def test_bad_arguments():
    with pytest.raises(ConfigError, match="norm_out"):
        lipschitz(_net(), norm_in="max", norm_out="inf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="norm_in"):
        lipschitz(_net(), norm_in="inf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="method"):
        lipschitz(_net(), method="best")  # type: ignore[arg-type]


def test_a_registered_rule_is_composed():
    class Absolute(nn.Module):
        def forward(self, x):
            return x.abs()

    net = nn.Sequential(nn.Linear(3, 2), Absolute())
    with pytest.raises(NotCertifiableError):
        lipschitz(net)
    lipschitz_rule.register(Absolute, lambda module, site: Slopes(1.0, site.shape))
    assert lipschitz(net).value == pytest.approx(lipschitz(net[0]).value)
    with pytest.raises(NotCertifiableError, match="no box rule"):
        lipschitz(nn.Sequential(net, nn.ReLU()), region=Box.around(torch.zeros(3), 1.0))
    enclose_rule.register(
        Absolute,
        lambda module, box: Box(torch.zeros_like(box.lower), box.upper.abs() + box.lower.abs()),
    )
    assert lipschitz(net, region=Box.around(torch.zeros(3), 1.0)).region == "box of inputs"


def test_certificate_records_rule_assumptions_and_parts():
    certificate = lipschitz(_net())
    assert certificate.claim == "lipschitz"
    assert "2106.03194" in certificate.parts[0].rule
    assert any("exact arithmetic" in text for text in certificate.assumes)
    assert Certificate.from_json(certificate.to_json()) == certificate


@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=repr)
def test_local_certificate_holds_on_its_box_and_is_never_worse(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), _net(activation), nn.GELU(), nn.Linear(3, 2))
    net.double()
    x = torch.randn(4, dtype=torch.float64)
    whole = lipschitz(net).value
    for eps in (10.0, 0.3, 1e-2):
        region = Box.around(x, eps)
        local = lipschitz(net, region=region)
        assert local.value <= whole
        start = x + eps * (torch.rand(6, 4).double() * 2 - 1)
        found = lipschitz_lower(net, start, region=region, radii=(eps / 10, eps), rounds=2)
        audit([local], [found])
        box = enclose(net, region.unsqueeze())
        with torch.no_grad():
            assert bool(box.contains(net.eval()(start)).all())


def test_image_boxes_of_explicit_layers_contain_the_images():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), nn.Softplus(),
        nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.LeakyReLU(0.1), nn.Dropout(), nn.Flatten(),
        nn.Linear(12, 3), nn.ReLU6(),
    ).double()  # fmt: skip
    net(torch.randn(20, 1, 6, 6, dtype=torch.float64))  # running statistics
    net.eval()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    box = enclose(net, Box.around(x, 0.1))
    samples = x + 0.1 * (torch.rand(500, 1, 6, 6, dtype=torch.float64) * 2 - 1)
    with torch.no_grad():
        assert bool(box.contains(net(samples)).all())
    assert lipschitz(net, in_shape=(1, 6, 6), region=Box.around(x[0], 0.1)).value > 0


def test_audit():
    bound = Certificate("lipschitz", 1.0, "max", "max", "L3")
    low = Estimate("lipschitz", 0.5, "max", "max", "pairs")
    summary = audit([bound, Certificate("lipschitz", 1.0, "2", "2", "x")], [low])
    assert summary.comparisons[0].ratio == 2
    assert summary.unmatched == ("lipschitz 2 2",)
    for value in (1.1, float("nan"), float("inf")):
        with pytest.raises(AuditError, match="above the certificate"):
            audit([bound], [low, Estimate("lipschitz", value, "max", "max", "pairs")])
    with pytest.raises(ConfigError, match="slack"):
        audit([], [], slack=-1.0)


def test_a_false_certificate_is_caught():
    net = _net()
    truth = lipschitz_lower(net, torch.randn(4, 4).double())
    with pytest.raises(AuditError):
        audit([Certificate("lipschitz", truth.value * 0.99, "max", "max", "made up")], [truth])
