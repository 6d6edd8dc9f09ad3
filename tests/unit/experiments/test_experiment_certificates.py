import pytest
import torch
from torch import nn

from wellposed.certify import enclose, lipschitz
from wellposed.core.records import Certificate, Estimate
from wellposed.core.sets import Box
from wellposed.errors import AuditError, ConfigError, ShapeError
from wellposed.experiments.certificates import (
    audit_curves,
    audit_records,
    certify_model,
    estimate_model,
)
from wellposed.experiments.config import parse
from wellposed.experiments.models import build_model
from wellposed.nn.normalise import Normalise


def model(kind="nemon"):
    variant = parse({"model": {"kind": kind, "states": 8}}).resolved()[kind]
    return build_model(variant, shape=(1, 4, 4), classes=3, mean=(0.1,), std=(0.3,), seed=1).eval()


def test_bounds_fall_from_l0_to_l3_and_stay_above_what_is_measured():
    net = model()
    proved = certify_model(net, (1, 4, 4)).records
    levels = [record.value for record in proved[:4]]
    assert levels == sorted(levels, reverse=True)
    composed = next(r for r in proved[4:] if r.norm_in == "max")
    assert composed.value == pytest.approx(levels[3], rel=1e-9)
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    measured = estimate_model(net, images)
    assert {r.norm_in for r in measured} == {"max", "1", "2"}
    assert audit_records([r.to_dict() for r in [*proved, *measured]], "net") == len(proved)


def test_the_audit_finds_a_false_certificate():
    proved = Certificate("lipschitz", 1.0, "max", "max", "made up")
    measured = Estimate("lipschitz", 1.1, "max", "max", "found")
    with pytest.raises(AuditError, match=r"net: .*1\.1.*'made up'"):
        audit_records([proved.to_dict(), measured.to_dict()], "net")


def test_the_audit_finds_an_attack_that_helps():
    curves = {"clean": 0.9, "curves": {"pgd": {"accuracy": [0.9, 0.95]}}}
    with pytest.raises(AuditError, match=r"reaches 0\.95"):
        audit_curves(curves, "net")
    audit_curves({"clean": 0.9, "curves": {"pgd": {"accuracy": [0.9, 0.5]}}}, "net")


def test_normalise_is_certified_exactly():
    layer = Normalise((0.1, 0.2), (0.5, 0.25))
    bound = lipschitz(nn.Sequential(layer, nn.Flatten()), in_shape=(2, 3, 3))
    assert bound.value >= 4.0
    assert bound.value == pytest.approx(4.0, rel=1e-12)
    x = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    box = Box(x - 0.1, x + 0.1)
    image = enclose(layer, box)
    double = Normalise((0.1, 0.2), (0.5, 0.25)).double()
    double.load_state_dict(layer.state_dict())
    for corner in (box.lower, box.upper, x):
        assert bool((image.lower <= double(corner)).all() & (double(corner) <= image.upper).all())


def test_normalise_refuses():
    with pytest.raises(ConfigError, match="positive"):
        Normalise((0.1,), (0.0,))
    with pytest.raises(ConfigError, match="2 values and `std` 1"):
        Normalise((0.1, 0.2), (1.0,))
    with pytest.raises(ShapeError, match=r"\(2, 16\)"):
        Normalise((0.1,), (1.0,))(torch.zeros(2, 16))
