"""The checker's arithmetic and hypotheses, at ugly numbers and on their borders."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from tiny_proofs import (
    KINDS,
    base,
    best_multiplier,
    digest,
    draw,
    exact_minimum,
    random_net,
    verify,
    write,
)

import wellposed_check
from wellposed_check import RejectedError, check


def exactly(net, cert, p, row, box):
    """The dual bound of one output row in rational arithmetic."""

    def whole(values):
        return np.vectorize(Fraction, otypes=[object])(values)

    W, U, b, C, D, c = (whole(net[k]) for k in ("W", "U", "b", "C", "D", "c"))
    p, row, (low, high) = whole(p), whole(row), (whole(v) for v in box)
    lam, d = row @ C + p @ W, row @ D + p @ U
    total = row @ c + p @ b
    total += np.minimum(d * whole(cert["lower"]), d * whole(cert["upper"])).sum()
    for i, s in enumerate(whole(net["slope"])):
        kinks = [low[i], high[i]] + [Fraction(0)] * (low[i] < 0 < high[i])
        total += min(lam[i] * max(v, s * v) - p[i] * v for v in kinks)
    return total


def test_rounding_is_paid_for(tmp_path):
    """Sums that cancel almost entirely: what is computed is at times above what is exact."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(60):
        net = random_net(rng, "max-norm", slope=0.3)
        net |= {k: net[k] * 10.0 ** rng.integers(-6, 7, net[k].shape) for k in "UbCDc"}
        lower = rng.standard_normal(2)
        cert = base(net, "max-norm", lower, lower + rng.random(2), lower, {"label": np.array(0)})
        held = wellposed_check.read_network(write(tmp_path, net, cert)[1])
        read = wellposed_check.read_certificate(str(tmp_path / "certificate.npz"), held)
        p = rng.standard_normal((5, 4)) * 10.0 ** rng.integers(-6, 7, (5, 4))
        low = rng.standard_normal((5, 4)) * 100
        box = low, low + 100 * rng.random((5, 4))
        rows = np.column_stack([np.zeros((5, 4)), rng.standard_normal((5, 3)), np.zeros(5)])
        for k in range(5):
            one, own = rows[k : k + 1], np.array([box[0][k], box[1][k]])
            given = (one, abs(one)), p[k : k + 1], own, np.zeros((1, 4))
            bound = wellposed_check.dual_bound(read, *given)[0]
            loose = wellposed_check.dual_bound(dict(read, gamma=0.0), *given)[0]
            value = exactly(net, cert, p[k], rows[k, 4:7], own)
            assert Fraction(bound) <= value
            above += Fraction(loose) > value
    assert above > 30


def test_well_posedness_is_checked_with_rounding(tmp_path):
    """Nets on the border of the hypothesis are refused, nets just inside are accepted."""
    one = np.ones((1, 1))
    for w, kind, good in [(1.0, 0, False), (1 - 1e-12, 0, True), (1 - 1e-17, 0, False),
                          (1.0, 1, False), (1 - 1e-10, 1, True), (0.999, 1, True)]:  # fmt: skip
        net = {"W": w * one, "U": one, "b": -10 * np.ones(1), "C": np.array([[1.0], [0.0]]),
               "D": np.zeros((2, 1)), "c": np.array([0.0, 1.0]), "slope": np.zeros(1)}  # fmt: skip
        cert = {"format": np.array(2), "digest": np.array(digest(net)), "lower": -np.ones(1),
                "upper": np.ones(1), "point": np.zeros(1), "anchor": np.zeros(1),
                "label": np.array(0)}  # fmt: skip
        cert |= {"eta": np.ones(1)} if kind == 0 else {
            "metric": np.ones(1), "modulus": np.array(0.5 * (1 - w) + 1e-300)}  # fmt: skip
        files = write(tmp_path, net, cert)
        if good:
            assert check(*files)[0] == "falsified"
        else:
            with pytest.raises(RejectedError):
                check(*files)


def one_neuron(w, bias, slope=0.0):
    """z = phi(w z + x + bias), y = (z - 0.75, 0)."""
    one = np.ones((1, 1))
    return {"W": w * one, "U": one, "b": bias * one[0], "C": np.array([[1.0], [0.0]]),
            "D": np.zeros((2, 1)), "c": np.array([-0.75, 0.0]), "slope": slope * one[0],
    }  # fmt: skip


def test_a_state_far_off_with_a_small_residual_is_no_counter_example(tmp_path):
    """Slow contraction: the residual is a thousandth of the error."""
    net = one_neuron(0.999, 0.001)  # z* = 1 at x = 0, hence y_0 = 0.25 > y_1
    x = np.zeros(1)
    common = {"format": np.array(2), "digest": np.array(digest(net)), "lower": x, "upper": x,
              "point": x, "label": np.array(0)}  # fmt: skip
    for witness in ({"eta": np.ones(1)}, {"metric": np.ones(1), "modulus": np.array(0.00099)}):
        for anchor in (0.5, 0.7, 1.0):
            cert = common | {"anchor": np.array([anchor])} | witness
            with pytest.raises(RejectedError, match="no counter-example"):
                check(*write(tmp_path, net, cert))
        cert = common | {"anchor": np.ones(1), "label": np.array(1)} | witness
        assert check(*write(tmp_path, net, cert))[0] == "falsified"


def test_expansive_networks_and_steep_slopes_are_refused(tmp_path):
    x = np.zeros(1)
    for net, eta in ((one_neuron(2.0, -1.0), -1.0), (one_neuron(0.5, -1.0, -0.5), 1.0),
                     (one_neuron(0.5, -1.0, 1.5), 1.0)):  # fmt: skip
        cert = {"format": np.array(2), "digest": np.array(digest(net)), "lower": x, "upper": x,
                "point": x, "anchor": x, "label": np.array(0), "eta": np.array([eta])}  # fmt: skip
        with pytest.raises(RejectedError, match=r"well-posedness|slope"):
            check(*write(tmp_path, net, cert))


def test_semidefinite_is_not_definite(tmp_path):
    """Matrices whose smallest eigenvalue is zero up to rounding: none may pass."""
    rng = np.random.default_rng(0)
    x = np.zeros(1)
    for _ in range(40):
        B = rng.standard_normal((4, 3))
        W = np.eye(4) - B @ B.T
        net = {"W": W, "U": np.zeros((4, 1)), "b": -np.ones(4), "C": np.zeros((2, 4)),
               "D": np.zeros((2, 1)), "c": np.array([0.0, 1.0]), "slope": np.zeros(4)}  # fmt: skip
        cert = {"format": np.array(2), "digest": np.array(digest(net)), "lower": x, "upper": x,
                "point": x, "anchor": np.zeros(4), "label": np.array(0), "metric": np.ones(4),
                "modulus": np.array(1e-300)}  # fmt: skip
        with pytest.raises(RejectedError, match=r"definite|well-posed"):
            check(*write(tmp_path, net, cert))


@pytest.mark.parametrize("kind", KINDS)
def test_no_multiplier_proves_more_than_is_true(tmp_path, kind):
    """One split; the case with the minimum gets extreme multipliers, the other its best one."""
    used = 0
    for seed in range(12):
        rng, net, _, lower, upper = draw(seed, kind, radius=0.5)
        row, lift = rng.standard_normal((1, 3)), 1e9
        statement = {"rows": row, "offset": np.array([lift]), "clause": np.array([0])}
        cert = verify(net, kind, lower, upper, statement, stages=1)
        if cert is None:
            continue
        least = exact_minimum(net, lower, upper, row, np.zeros(1))
        low, high = check_bounds_of(tmp_path, net, cert)
        goal = row @ net["C"], row @ net["D"], row @ net["c"]
        for i in np.flatnonzero((low < 0) & (high > 0)):
            for side in (0, 1):  # the case that gets its best multiplier: off, on
                part = [low.copy(), high.copy()]
                part[1 - side][i] = 0.0
                value, best, _ = best_multiplier(net, (lower, upper), part, goal)
                if value < least + 1e-3:
                    continue
                used += 1
                for size in (-1e4, -10.0, 0.0, 10.0, 1e4):
                    p = np.stack([best, size * np.eye(4)[i]])[:: 1 - 2 * side]
                    split = cert | {"tree": np.array([i, -1, -1]), "leaf_multiplier": p,
                                    "leaf_mix": np.ones((2, 1))}  # fmt: skip
                    margin = check(*write(tmp_path, net, split))[1]
                    assert margin - lift <= least + 1e-5
                    short = split | {"leaf_multiplier": p[:1], "leaf_mix": np.ones((1, 1))}
                    with pytest.raises(RejectedError):
                        check(*write(tmp_path, net, short))
    assert used >= 4


def check_bounds_of(folder, net, cert):
    certificate, weights = write(folder, net, cert)
    held = wellposed_check.read_network(weights)
    return wellposed_check.check_bounds(wellposed_check.read_certificate(certificate, held))
