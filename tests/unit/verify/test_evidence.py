"""Verdicts of every kind become files that the independent checker accepts."""

from __future__ import annotations

import pytest
import torch
from small_nets import box, exact_minimum, network, output_rows, samples, states
from torch import nn

import wellposed as wp
import wellposed_check
from wellposed.certify.dual import Rows
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError
from wellposed.experiments.foreign import check_property
from wellposed.verify import classifier
from wellposed.verify.branch import Budget
from wellposed.verify.certificate import load_certificate, save_certificate
from wellposed.verify.classifier import Classifier
from wellposed.verify.evidence import Evidence
from wellposed.verify.property import verify_statement
from wellposed.verify.statement import Statement
from wellposed.verify.weights import export_network

BUDGET = Budget(seconds=30, nodes=20_000, batch=16)


def established(folder, evidence, proof):
    """What the checker says about a proof."""
    save_certificate(folder / "c.npz", proof)
    export_network(evidence.network, folder / "w.npz")
    return wellposed_check.check(str(folder / "c.npz"), str(folder / "w.npz"))


def prove(net, region, statement):
    evidence = Evidence(Classifier.of(net, (net.d,)))
    scope = evidence.task.scope(region)
    return evidence, evidence.prove(region, statement, scope, BUDGET)


KINDS = [
    {"seed": 3, "n": 5, "skew": 4.0},
    {"seed": 23, "n": 5},
    {"seed": 21, "n": 5, "linear": 2, "leak": 0.2},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_that_hold_by_little_are_proved_and_accepted(tmp_path, kind):
    net, region = network(**kind), box(seed=kind["seed"], radius=0.8)
    least = exact_minimum(net, region, output_rows(net))
    for room in (1e-6, 1e-2):
        statement = Statement(torch.eye(2).double(), room - least, torch.tensor([0, 1]))
        evidence, proof = prove(net, region, statement)
        verdict, margin = established(tmp_path, evidence, proof)
        assert verdict == "verified"
        assert 0 < margin <= room + 1e-9
        _, _, v = states(net, samples(region, 500))
        low, high = proof.bounds.lower, proof.bounds.upper
        assert bool(((v > low.amax(0)) & (v < high.amin(0))).all())
    statement = Statement(torch.eye(2).double(), -1e-3 - least, torch.tensor([0, 1]))
    assert prove(net, region, statement)[1] is None


def middle(net, region):
    """A row and its opposite, of which neither is positive everywhere and one is anywhere."""
    rows = Rows(torch.cat([net.C[:1], -net.C[:1]]), torch.cat([net.D[:1], -net.D[:1]]),
                torch.cat([net.c[:1], -net.c[:1]]))  # fmt: skip
    low, high = exact_minimum(net, region, rows).tolist()
    return (low - high) / 2, -high - low


@pytest.mark.parametrize("seed", range(2))
def test_clauses_of_several_rows_are_proved_and_accepted(tmp_path, seed):
    net, region = network(seed, 4, skew=3.0), box(seed=seed, radius=0.6)
    centre, width = middle(net, region)
    assert width > 0.1
    row = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    offset = torch.tensor([0.01 - centre, 0.01 + centre]).double()
    either = Statement(row, offset, torch.tensor([0, 0]))
    (verdict,) = verify_statement(net, region, either, budget=BUDGET)
    assert verdict.status == "verified"
    evidence, proof = prove(net, region, either)
    found, margin = established(tmp_path, evidence, proof)
    assert found == "verified"
    assert 0 < margin <= 0.01 + 1e-9
    assert load_certificate(tmp_path / "c.npz", net).statement.label is None
    # without the gap there are inputs where both fail
    neither = Statement(row, offset - 0.02, torch.tensor([0, 0]))
    assert prove(net, region, neither)[1] is None
    (verdict,) = verify_statement(net, region, neither, budget=BUDGET)
    assert verdict.status == "falsified"
    point = torch.tensor(verdict.witness, dtype=torch.float64)
    proof = evidence.refute(region, neither, point)
    assert established(tmp_path, evidence, proof)[0] == "falsified"
    with pytest.raises(wellposed_check.RejectedError):
        established(tmp_path, evidence, evidence.refute(region, either, point))


def test_a_property_with_a_disjunction_is_filed(tmp_path):
    net, region = network(1, 5, skew=3.0), box(seed=1, radius=0.5)
    centre, _ = middle(net, region)
    lines = [f"(declare-const X_{i} Real)" for i in range(net.d)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(net.q)]
    for i in range(net.d):
        low, high = float(region.lower[0, i]), float(region.upper[0, i])
        lines.append(f"(assert (and (>= X_{i} {low:.17g}) (<= X_{i} {high:.17g})))")
    text = "\n".join(lines)
    for name, gap, status in (("unsat", 0.01, "verified"), ("sat", -0.01, "falsified")):
        both = f"(and (<= Y_0 {centre - gap:.17f}) (>= Y_0 {centre + gap:.17f}))"
        path = tmp_path / f"{name}.vnnlib"
        path.write_text(text + f"\n(assert {both})")
        folder = tmp_path / name
        verdict = check_property(net, path, budget=BUDGET, certificates=folder)
        assert verdict.status == status
        files = str(folder / "000000.npz"), str(folder / "network.npz")
        assert wellposed_check.check(*files)[0] == status


def deep(seed):
    """A strided convolution, a dense equilibrium layer and a readout."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        wp.Equilibrium(wp.NemonCell(4 * 5 * 5, 12)),
        nn.Linear(12, 3),
    )
    return model.eval()


@pytest.mark.parametrize("eps", [2e-3, 0.02, 0.05])
def test_a_network_too_large_to_branch_is_filed(tmp_path, monkeypatch, eps):
    monkeypatch.setattr(classifier, "DENSE_LIMIT", 50)
    model = deep(0)
    x = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    task = Classifier.of(model, (1, 10, 10))
    assert task.network is None
    evidence = Evidence(task)
    logits = model(x)[0].detach().double()
    label, other = int(logits.argmax()), int(logits.argmin())
    region = task.enter(Box.around(x.double(), eps).clip(0, 1))
    proof = evidence.prove(region, Statement.of_label(label, 3), task.scope(region))
    cheap = len(proof.bounds.neuron) == 0
    assert cheap == (eps < 0.05)  # intervals and one multiplier a row; then tightened
    verdict, margin = established(tmp_path, evidence, proof)
    assert verdict == "verified"
    assert margin <= float(logits[label] - logits.sort().values[1]) + 1e-4
    assert load_certificate(tmp_path / "c.npz", evidence.network).statement.label == label
    point = region.box.centre[0]
    refuted = evidence.refute(region, Statement.of_label(other, 3), point)
    assert established(tmp_path, evidence, refuted)[0] == "falsified"
    wrong = evidence.prove(region, Statement.of_label(other, 3), task.scope(region))
    assert wrong is None


def test_what_has_no_kink_has_no_file():
    net = network(0, 4)
    smooth = wp.Network.of(0.1 * net.W, net.U, net.b, net.C, net.c, activation=wp.Tanh())
    with pytest.raises(NotCertifiableError, match="kink"):
        Evidence(Classifier.of(smooth, (net.d,)))
