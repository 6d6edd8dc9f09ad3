"""Curves, convergence and examples: consistent with the model, the certificates and each other."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import wellposed.certify  # noqa: F401 - registers the rules
from wellposed.attacks.corruptions import Inversion, UniformNoise
from wellposed.cells.nemon import NemonCell
from wellposed.data.records import Split
from wellposed.errors import AuditError, ConfigError, NotCertifiableError
from wellposed.experiments import measure
from wellposed.experiments.certified import certified_radii
from wellposed.experiments.convergence import first_problem, race
from wellposed.experiments.curves import Curve, Sample, audit, certified_curve, corruption_curve
from wellposed.experiments.gallery import perturbation_picture, picture
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Solver
from wellposed.solvers.picard import Averaged, Jacobi, Picard

CLASSES = 3


def network(hidden=None):
    torch.manual_seed(0)
    layer = Equilibrium(NemonCell(16, 12, margin=0.5)) if hidden is None else hidden
    width = 12 if hidden is None else 16
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(width, CLASSES))
    with torch.no_grad():
        model[1](torch.zeros(1, 16))
        x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        model[2].bias.sub_(model.eval()(x).mean(0))  # images near a border between classes
    return model.eval()


def split(model, n=60):
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    images = images.to(torch.uint8)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return Split(images, labels)


CONFIG = SimpleNamespace(eps=(0.0, 0.05, 0.2), samples=40, steps=4, restarts=1)


@pytest.fixture(scope="module")
def measured():
    model = network()
    return measure.attack_curves(model, split(model), CONFIG)


def test_curves_are_plain_json_and_complete(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert set(measured["curves"]) == {"uniform-noise", "inversion", "fgsm", "pgd"}
    for curve in measured["curves"].values():
        assert len(curve["eps"]) == len(curve["accuracy"]) == len(curve["spread"])
        assert curve["samples"] == measured["samples"] == 40
        assert set(curve["unsolved"]) == {0}


def test_every_point_of_fgsm_and_pgd_is_at_most_clean_and_pgd_is_monotone(measured):
    fgsm, pgd = measured["curves"]["fgsm"], measured["curves"]["pgd"]
    clean = measured["clean"]
    assert max(fgsm["accuracy"]) <= clean
    assert max(pgd["accuracy"]) <= clean
    assert pgd["accuracy"][0] == pytest.approx(clean)
    assert pgd["accuracy"] == sorted(pgd["accuracy"], reverse=True)
    assert all(p <= f for p, f in zip(pgd["accuracy"], fgsm["accuracy"], strict=True))
    assert pgd["accuracy"][-1] < clean


def test_the_certified_curve_lies_below_every_attack(measured):
    certified = measured["certified"]
    assert certified["accuracy"][0] > 0.5
    assert certified["accuracy"][-1] < certified["accuracy"][0]
    for name in ("uniform-noise", "inversion", "fgsm", "pgd"):
        curve = measured["curves"][name]
        for eps, left in zip(curve["eps"], curve["accuracy"], strict=True):
            proved = [
                a for e, a in zip(certified["eps"], certified["accuracy"], strict=True) if e >= eps
            ]
            assert max(proved, default=0.0) <= left + 1e-9
    assert measured["comparisons"] > 0


def test_the_two_norm_curve_is_drawn_when_asked_for():
    model = network()
    few = SimpleNamespace(eps=(0.0, 0.2), samples=20, steps=3, restarts=1)
    found = measure.attack_curves(model, split(model), few, two_norm=(0.05, 0.2, 0.8))
    curve = found["curves"]["pgd-2"]
    assert curve["norm"] == "2"
    assert curve["accuracy"] == sorted(curve["accuracy"], reverse=True)
    assert max(curve["accuracy"]) <= found["clean"]
    assert curve["accuracy"][-1] < found["clean"]


def test_the_two_norm_is_certified_where_no_equilibrium_stands_in_the_way():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    few = SimpleNamespace(eps=(0.0, 0.2), samples=20, steps=3, restarts=1)
    radii = (0.0, 1e-3, 0.05, 5.0)
    found = measure.attack_curves(model, split(model), few, two_norm=radii)
    proved = found["certified_2"]
    assert proved["eps"] == list(radii)
    assert proved["samples"] == 60
    assert proved["accuracy"] == sorted(proved["accuracy"], reverse=True)
    assert 0.8 < proved["accuracy"][0] <= 0.9  # every tenth label is wrong
    assert proved["accuracy"][-1] == 0
    assert found["comparisons"] > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    equilibrium = network()
    other = measure.attack_curves(equilibrium, split(equilibrium), few, two_norm=radii)
    assert "certified_2" not in other
    assert "equilibrium" in other["not_certified_2"]
    assert "not_certified_2" not in measure.attack_curves(model, split(model), few)


def test_audit_in_the_two_norm_raises_as_well():
    curve = Curve("2", "an attack", (0.0, 0.5), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), (0, 0))
    radii = torch.tensor([1.0, 0.4])
    assert audit(radii, {"pgd-2": curve}, norm="2") == 3
    assert audit(radii, {"pgd-2": curve}) == 0
    with pytest.raises(AuditError, match="pgd-2"):
        audit(torch.tensor([1.0, 0.6]), {"pgd-2": curve}, norm="2")


def test_curves_repeat_with_the_seed():
    model = network()
    one = measure.attack_curves(model, split(model), CONFIG, seed=3)
    two = measure.attack_curves(model, split(model), CONFIG, seed=3)
    assert one["curves"] == two["curves"]


@pytest.mark.parametrize("kind", [UniformNoise, Inversion])
def test_at_amplitude_zero_a_corruption_changes_nothing(kind, measured):
    model = network()
    part = split(model).take(measure.spread_out(split(model), 40))
    sample = Sample(part.floats(), part.labels)
    generator = torch.Generator().manual_seed(0)
    curve = corruption_curve(model, sample, kind, [0.0], generator=generator)
    assert float(curve.correct.mean()) == pytest.approx(measured["clean"])


def test_certified_radii_are_exact_for_a_linear_network_with_two_classes():
    # margin(x') = m + (c_0 - c_1) (x' - x): the radius is m / ||c_0 - c_1||_1
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.double()(x.double())
    y = logits.argmax(1)
    model.float()
    proof = certified_radii(model, x, y)
    slope = (model[1].weight[0] - model[1].weight[1]).double().abs().sum()
    expected = (logits[:, 0] - logits[:, 1]).abs() / slope
    torch.testing.assert_close(proof.radii, expected.detach(), rtol=1e-6, atol=1e-8)
    assert bool((proof.radii <= expected + 1e-12).all())
    assert bool((certified_radii(model, x, 1 - y).radii == 0).all())  # wrong ones get nothing


def test_certified_radii_do_not_depend_on_batch_mates_and_carry_the_error_of_the_solve():
    model = network()
    part = split(model)
    whole = certified_radii(model, part.floats(), part.labels)
    few = certified_radii(model, part.floats()[:3], part.labels[:3])
    torch.testing.assert_close(few.radii, whole.radii[:3], rtol=1e-9, atol=1e-12)
    assert 0 < float(whole.error.max()) < 1e-6
    assert float(whole.radii.max()) > 0


class Opaque(nn.Module):
    def forward(self, x):
        return x.sin()


def test_a_network_without_rules_gets_curves_and_no_certificate():
    model = network(Opaque())
    with pytest.raises(NotCertifiableError):
        certified_radii(model, torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
    found = measure.attack_curves(model, split(model), CONFIG)
    assert found["certified"] is None
    assert "Opaque" in found["not_certified"]


def test_audit_raises_when_a_certified_image_errs():
    radii = torch.tensor([0.2, 0.0, 0.2], dtype=torch.float64)
    good = torch.tensor([[1.0, 0.0, 1.0]])
    assert audit(radii, {"pgd": Curve("max", "", [0.1], good, [0])}) == 2
    bad = torch.tensor([[0.0, 1.0, 1.0]])
    with pytest.raises(AuditError, match=r"1 samples certified beyond 0\.1"):
        audit(radii, {"pgd": Curve("max", "", [0.1], bad, [0])})
    assert audit(radii, {"pgd": Curve("max", "", [0.2], bad, [0])}) == 0  # not beyond its radius


def test_certified_curve_counts_radii():
    radii = torch.tensor([0.0, 0.01, 0.02, 0.04], dtype=torch.float64)
    curve = certified_curve(radii)
    assert (curve["eps"][0], curve["accuracy"][0]) == (0.0, 0.75)
    for eps, share in zip(curve["eps"], curve["accuracy"], strict=True):
        assert share == pytest.approx(float((radii > eps).double().mean()))
    assert certified_curve(torch.zeros(3))["accuracy"] == [0.0]


@dataclass(frozen=True)
class Refusing(Solver):
    def propose(self, map_, z, fz, state):
        raise ConfigError("not for this map")


def test_solvers_race_to_the_same_point_and_failures_are_named():
    model = network()
    found = measure.solver_convergence(
        model,
        split(model).floats(),
        {
            "jacobi": Jacobi(),
            "averaged": Averaged(),
            "crawling": Averaged(alpha=1e-3),
            "no": Refusing(),
        },
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    race = found["solvers"]
    for name in ("jacobi", "averaged"):
        assert race[name]["reached"]
        assert race[name]["residual"][-1] <= 1.01e-6
        assert race[name]["distance"] < 1e-4
        assert race[name]["seconds"] == sorted(race[name]["seconds"])
        assert race[name]["evaluations"][-1] == race[name]["total_evaluations"]
    assert race["jacobi"]["total_evaluations"] < race["averaged"]["total_evaluations"]
    assert not race["crawling"]["reached"]
    assert "budget" in race["crawling"]["status"]
    assert race["no"] == {"refused": "not for this map"}
    assert sum(found["histogram"]["samples"]) == 60
    assert found["histogram"]["solver"] == "Auto"


def test_a_diverging_solver_gives_json_without_infinities():
    model = network()
    with torch.no_grad():
        model[1].cell.damping.fill_(40.0)
    problem = first_problem(model, split(model).floats())
    assert problem is not None
    found = race(problem[0], {"picard": Picard()})["picard"]
    assert not found["reached"]
    json.dumps(found, allow_nan=False)


def test_a_plain_network_has_no_solvers_to_race():
    found = measure.solver_convergence(network(nn.ReLU()), torch.rand(4, 1, 4, 4))
    assert found["none"]
    assert found["solvers"] == {}


def test_examples_carry_their_facts_and_agree_with_the_model():
    model = network()
    part = split(model)
    found = measure.examples(model, part, count=9, pool=50, classes=("a", "b", "c"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["examples"]) == 9
    assert any(e["label"] != e["prediction"] for e in found["examples"])
    for e in found["examples"]:
        x = part.images[e["index"]][None].float() / 255
        with torch.no_grad():
            logits = model(x)[0]
        assert e["prediction"] == int(logits.argmax())
        assert e["label"] == int(part.labels[e["index"]])
        assert e["image"].startswith("data:image/png;base64,")
        if e["label"] != e["prediction"]:
            assert e["certified_radius"] == 0
            assert e["adversarial"] is None
        elif e["adversarial"]:
            assert e["certified_radius"] < e["adversarial"]["distance"]
            assert e["adversarial"]["prediction"] != e["label"]
        assert 0 < e["state_error"] < 1e-2
    assert any(e["adversarial"] for e in found["examples"])


def test_pictures_keep_their_pixels():
    import base64
    from io import BytesIO

    from PIL import Image

    def pixels(uri):
        return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))

    ramp = torch.arange(256.0).reshape(1, 16, 16) / 255
    assert list(pixels(picture(ramp)).tobytes()) == list(range(256))
    colour = torch.rand(3, 5, 7)
    assert pixels(picture(colour)).mode == "RGB"
    change = torch.tensor([[[0.0, 0.1, -0.1]]])
    assert pixels(perturbation_picture(change)).tobytes()[:3] == b"\xff\xff\xff"
