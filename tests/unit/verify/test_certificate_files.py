"""Proofs as the library makes them: found, written, read back, checked; and their refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import wellposed_check
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Scope
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.wellposed import wellposedness
from wellposed.cli.app import status
from wellposed.core.activations import LeakyReLU
from wellposed.core.network import Network
from wellposed.core.sets import Ball, Box
from wellposed.errors import ConfigError, DataError, NotCertifiableError, ShapeError
from wellposed.verify.branch import Budget, Problem, branch
from wellposed.verify.certificate import Forest, Proof, load_certificate, save_certificate
from wellposed.verify.classifier import Classifier
from wellposed.verify.containment import contain
from wellposed.verify.evidence import Evidence
from wellposed.verify.statement import Statement
from wellposed.verify.weights import export_network


def network(seed, kind, n=8, d=3, q=3):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    A, B = draw(n, n), draw(n, n)
    if kind == "monotone":
        W = 0.5 * torch.eye(n) - A.mT @ A / n + (B - B.mT) / n**0.5
        activation = None
    else:
        own = torch.rand(n, generator=g, dtype=torch.float64)
        W = 0.9 * A / A.abs().sum(1, keepdim=True) - 3 * torch.diag(own)
        activation = LeakyReLU(0.1)
    return Network.of(
        W, draw(n, d), draw(n), draw(q, n), draw(q), D=draw(q, d), activation=activation
    ), draw(1, d)


def decide(net, region, label, wellposed):
    """A proof of whichever verdict is found."""
    task = Classifier.of(net, (net.d,))
    evidence, statement = Evidence(task), Statement.of_label(label, net.q)
    proof = evidence.prove(region, statement, task.scope(region))
    if proof is not None:
        return proof
    rows = task.rows(torch.tensor([label]))
    case = Problem(net, task.system, task.scope(region), wellposed)
    for answer in branch(case, rows, Budget()):
        if answer.status == "falsified":
            return evidence.refute(region, statement, answer.witness)
    raise AssertionError("undecided")


@pytest.mark.parametrize("kind", ["max-norm", "monotone"])
@pytest.mark.parametrize("shape", ["box", "ball"])
def test_every_saved_certificate_is_accepted(tmp_path, kind, shape):
    verdicts = []
    for seed in range(8):
        net, x = network(seed, kind)
        wellposed = wellposedness(net)
        assert wellposed.kind == kind
        region = Box.around(x, 0.2) if shape == "box" else Ball(x, 0.3, low=x - 0.2, high=x + 0.25)
        label = int(net.output(equilibrium(net, x, wellposed).z, x).argmax())
        proof = decide(net, region, label, wellposed)
        save_certificate(tmp_path / "a.npz", proof)
        export_network(net, tmp_path / "w.npz")
        files = str(tmp_path / "a.npz"), str(tmp_path / "w.npz")
        verdict, _ = wellposed_check.check(*files)
        assert verdict == ("falsified" if proof.forest is None else "verified")
        verdicts.append(verdict)
        # what was read is written alike
        again = load_certificate(tmp_path / "a.npz", net)
        save_certificate(tmp_path / "b.npz", again)
        with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as two:
            assert set(one.files) == set(two.files)
            same = [k for k in one.files if np.array_equal(one[k], two[k])]
            assert set(one.files) - set(same) <= {"modulus", "lower", "upper"}
            np.testing.assert_allclose(one["lower"], two["lower"], rtol=1e-12)
        # a larger claim is not covered
        with np.load(tmp_path / "a.npz") as file:
            arrays = dict(file)
        name = "upper" if verdict == "verified" else "offset"
        arrays[name] = arrays[name] + (3 if verdict == "verified" else 1e6)
        np.savez(tmp_path / "a.npz", **arrays)
        if name == "offset" or shape == "box":
            with pytest.raises(wellposed_check.RejectedError):
                wellposed_check.check(*files)
    assert "verified" in verdicts


def test_contained_bounds_hold_and_are_tight_for_a_linear_network():
    for seed, kind in ((0, "max-norm"), (1, "monotone"), (2, "monotone")):
        net, x = network(seed, kind)
        wellposed = wellposedness(net)
        task = Classifier.of(net, (net.d,))
        region = Box.around(x, 0.3)
        held = contain(task.system, task.scope(region), wellposed)
        g = torch.Generator().manual_seed(0)
        u = torch.rand(500, net.d, generator=g, dtype=torch.float64)
        points = region.lower + u * (region.upper - region.lower)
        v = net.preactivation(equilibrium(net, points, wellposed).z, points)
        assert bool((v >= held.scope.lower - 1e-9).all())
        assert bool((v <= held.scope.upper + 1e-9).all())
    # all neurons on: the bounds are those of the linear map
    net = Network.of(0.5 * torch.eye(1), torch.ones(1, 1), 10 * torch.ones(1), torch.ones(2, 1),
                     torch.zeros(2))  # fmt: skip
    wellposed, system = wellposedness(net), DenseSystem(net)
    region = Box(torch.full((1, 1), -1.0).double(), torch.full((1, 1), 1.0).double())
    start = Scope.of(system, region, Box(torch.tensor([[5.0]]), torch.tensor([[50.0]])))
    held = contain(system, start, wellposed)
    assert held.scope.lower.item() == pytest.approx(18, abs=1e-5)
    assert held.scope.upper.item() == pytest.approx(22, abs=1e-5)


def test_a_region_too_large_for_any_box_keeps_the_bounds_of_the_witness():
    net, x = network(1, "monotone")
    wellposed, task = wellposedness(net), Classifier.of(net, (net.d,))
    region = Box.around(x, 1e4)
    # bounds that are only believed prove nothing, and are not used
    start = Scope.of(task.system, region, Box.around(torch.zeros(1, net.n), 1.0))
    held = contain(task.system, start, wellposed)
    g = torch.Generator().manual_seed(0)
    u = torch.rand(500, net.d, generator=g, dtype=torch.float64)
    points = region.lower + u * (region.upper - region.lower)
    v = net.preactivation(equilibrium(net, points, wellposed).z, points)
    assert bool(((v >= held.scope.lower) & (v <= held.scope.upper)).all())
    assert bool(((v - held.anchor).abs() > 100).any())
    with pytest.raises(ShapeError, match="expected 1"):
        contain(task.system, start.select(torch.tensor([0, 0])), wellposed)


def test_the_command(tmp_path, capsys):
    net, x = network(3, "monotone")
    wellposed = wellposedness(net)
    label = int(net.output(equilibrium(net, x, wellposed).z, x).argmax())
    save_certificate(tmp_path / "a.npz", decide(net, Box.around(x, 0.01), label, wellposed))
    export_network(net, tmp_path / "w.safetensors")
    assert status(["check", str(tmp_path / "a.npz"), str(tmp_path / "w.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "accepted: verified" in told
    assert f"class {label} of 3" in told
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    arrays["rows"] = arrays["rows"][::-1] * [[1.0], [-1.0]]
    np.savez(tmp_path / "b.npz", **arrays)
    assert status(["check", str(tmp_path / "b.npz"), str(tmp_path / "w.safetensors")]) == 1
    assert "rejected" in capsys.readouterr().err
    other, _ = network(4, "monotone")
    export_network(other, tmp_path / "v.npz")
    assert status(["check", str(tmp_path / "a.npz"), str(tmp_path / "v.npz")]) == 2
    assert "digest" in capsys.readouterr().err


def test_damaged_and_foreign_files_are_named(tmp_path):
    net, _ = network(0, "monotone")
    path = tmp_path / "c.npz"
    with pytest.raises(DataError, match="cannot be read"):
        load_certificate(path, net)
    path.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_certificate(path, net)
    np.savez(path, W=np.zeros(1))
    with pytest.raises(DataError, match="lacks"):
        load_certificate(path, net)
    held = {k: np.zeros(1) for k in ("lower", "upper", "point", "anchor")}
    np.savez(path, format=np.array(9), digest=np.array("x"), **held)
    with pytest.raises(DataError, match="format 9"):
        load_certificate(path, net)
    np.savez(path, format=np.array(2), digest=np.array(net.digest()), **held)
    with pytest.raises(DataError, match="lacks 'rows'"):
        load_certificate(path, net)


def test_statements():
    own = Statement.of_label(1, 3)
    y = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).double()
    assert own.margin(y).tolist() == [1.0, -1.0]
    rows, zero = torch.eye(2).double(), torch.zeros(2).double()
    either = Statement(rows, zero, torch.tensor([0, 0]))
    assert either.margin(torch.tensor([[-1.0, 0.5]]).double()).tolist() == [0.5]
    for label, classes in ((3, 3), (-1, 3), (0, 1)):
        with pytest.raises(ConfigError, match="label"):
            Statement.of_label(label, classes)
    for clause in ([0, 2], [1, 0], [1, 1]):
        with pytest.raises(ShapeError, match="clause"):
            Statement(rows, zero, torch.tensor(clause))
    with pytest.raises(ShapeError, match="rows"):
        Statement(rows, torch.zeros(3).double(), torch.tensor([0, 1]))
    with pytest.raises(NotCertifiableError, match="NaN"):
        Statement(rows * torch.nan, zero, torch.tensor([0, 1]))
    net, x = network(0, "monotone")
    forest = Forest.of_rows([torch.tensor([-1])], [torch.zeros(1, 8)])
    common = net.digest(), Box.around(x, 0.1), own, wellposedness(net), x[0], x[0]
    with pytest.raises(ShapeError, match="neither"):
        Proof(*common, None, forest)
    two = Box.around(x.repeat(2, 1), 0.1)
    with pytest.raises(ShapeError, match="one region"):
        Proof(common[0], two, *common[2:])
