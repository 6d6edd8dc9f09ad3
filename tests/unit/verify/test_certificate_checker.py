"""The independent checker accepts what is proved and nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tiny_proofs import (
    KINDS,
    base,
    digest,
    draw,
    exact_margin,
    exact_minimum,
    plain_bounds,
    solve,
    statement_of,
    verify,
    write,
)

import wellposed_check
from wellposed_check import RejectedError, check


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_agrees_with_enumeration_and_accepts_every_certificate(tmp_path, kind, slope):
    verdicts = []
    for seed in range(8):
        _, net, x, lower, upper = draw(seed, kind, slope, radius=0.5)
        y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
        statement = {"label": np.array(int(y.argmax()))}
        margin = exact_margin(net, {"lower": lower, "upper": upper} | statement)
        cert = verify(net, kind, lower, upper, statement)
        if margin < -1e-6:
            assert cert is None
        if cert is not None:
            verdict, least = check(*write(tmp_path, net, cert))
            assert verdict == "verified"
            assert 0 < least <= margin + 1e-7
        verdicts.append((cert is not None, margin > 0))
    # the search is complete once a box is contained, and both verdicts occurred
    assert sum(found for found, _ in verdicts) >= 0.6 * sum(holds for _, holds in verdicts) > 0
    assert not all(holds for _, holds in verdicts)


def test_clauses_of_several_rows_need_not_hold_row_by_row(tmp_path):
    used = 0
    for seed in range(12):
        rng, net, _, lower, upper = draw(seed, "monotone", radius=0.5)
        # neither row is positive everywhere, one of them is anywhere
        row = rng.standard_normal(3)
        lowest = [exact_minimum(net, lower, upper, s * row[None], np.zeros(1)) for s in (1, -1)]
        middle = (lowest[0] - lowest[1]) / 2
        rows, offset = np.stack([row, -row]), np.array([0.01 - middle, 0.01 + middle])
        clause = np.array([0, 0])
        statement = {"rows": rows, "offset": offset, "clause": clause}
        cert = verify(net, "monotone", lower, upper, statement)
        if cert is None:
            continue
        used += 1
        assert check(*write(tmp_path, net, cert))[0] == "verified"
        one = cert | {"clause": np.array([0, 1])}
        with pytest.raises(RejectedError):
            check(*write(tmp_path, net, one))
    assert used >= 4


def test_a_ball_admits_what_its_box_does_not(tmp_path):
    gained = 0
    for seed in range(10):
        _, net, x, lower, upper = draw(seed, "monotone", radius=0.4)
        rows = np.array([[1.0, -0.5, 0.2]])
        least = exact_minimum(net, lower, upper, rows, np.zeros(1))
        # positive on the box by 0.01: then on the ball in it by more
        statement = {"rows": rows, "offset": np.array([0.01 - least]), "clause": np.array([0])}
        cert = verify(net, "monotone", lower, upper, statement)
        if cert is None:
            continue
        ball = {"centre": x, "scale": np.array([1.0, 2.0]), "radius": np.array(0.4)}
        on_box = check(*write(tmp_path, net, cert))[1]
        on_ball = check(*write(tmp_path, net, cert | ball))[1]
        assert on_ball >= on_box - 1e-9
        shifted = cert | {"offset": cert["offset"] - 0.02}
        with pytest.raises(RejectedError):
            check(*write(tmp_path, net, shifted))
        try:
            check(*write(tmp_path, net, shifted | ball))
            gained += 1
        except RejectedError:
            pass
    assert gained >= 2


def test_the_minimum_over_a_ball_in_a_box_is_sound_and_tight():
    rng = np.random.default_rng(0)
    for _ in range(10):
        d = 4
        c, scale, radius = rng.standard_normal(d), np.exp(rng.standard_normal(d)), 1.0
        lower = c - scale * rng.random(d)
        upper = c + scale * rng.random(d)
        cert = {"centre": c, "scale": scale, "radius": np.array(radius), "lower": lower,
                "upper": upper, "most": np.maximum(abs(lower), abs(upper)),
                "gamma": 1e-14}  # fmt: skip
        rows = rng.standard_normal((6, d))
        value = wellposed_check.minimum(cert, rows)
        # points of the set: clipped minimisers of the Lagrangian, for many multipliers
        best = np.full(6, np.inf)
        for step in np.geomspace(1e-2, 1e2, 3001):
            x = np.clip(c - step * scale**2 * rows, lower, upper)
            inside = np.linalg.norm((x - c) / scale, axis=1) <= radius
            best = np.where(inside, np.minimum(best, (rows * x).sum(1)), best)
        assert (value <= best).all()
        assert (value >= best - 1e-2 * (1 + abs(best))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_counter_examples_are_accepted_only_if_they_are_sure(tmp_path, kind):
    unsure = 0
    for seed in range(10):
        _, net, x, lower, upper = draw(seed, kind)
        y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
        wrong, right = int(y.argmin()), int(y.argmax())
        cert = base(net, kind, lower, upper, x, {"label": np.array(wrong)})
        assert check(*write(tmp_path, net, cert))[0] == "falsified"
        with pytest.raises(RejectedError, match="no counter-example"):
            check(*write(tmp_path, net, cert | {"label": np.array(right)}))
        # an anchor far from the equilibrium proves nothing about it
        try:
            check(*write(tmp_path, net, cert | {"anchor": cert["anchor"] + 50.0}))
        except RejectedError as error:
            unsure += "no counter-example" in str(error)
        with pytest.raises(RejectedError, match="outside"):
            check(*write(tmp_path, net, cert | {"point": upper + 1e-9}))
    # a row may be negative whatever the states are
    assert unsure >= 7


def test_an_output_bias_that_flips_the_verdict_is_seen(tmp_path):
    """The published fault: certifying a network without its output bias."""
    _, net, x, lower, upper = draw(3, "monotone", radius=0.05)
    y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
    label = int(y.argmax())
    cert = verify(net, "monotone", lower, upper, {"label": np.array(label)})
    assert check(*write(tmp_path, net, cert))[0] == "verified"
    biased = net | {"c": net["c"] - 100.0 * np.eye(3)[label]}
    forged = cert | {"digest": np.array(digest(biased))}
    with pytest.raises(RejectedError, match="not proved"):
        check(*write(tmp_path, biased, forged))
    refuted = base(biased, "monotone", lower, upper, x, {"label": np.array(label)})
    assert check(*write(tmp_path, biased, refuted))[0] == "falsified"


def test_an_interval_iterate_from_inside_is_no_bound(tmp_path):
    """The published fault: intervals iterated from a point, stopped at a tolerance."""
    _, net, x, lower, upper = draw(5, "max-norm")
    net["W"] = abs(net["W"] - np.diag(np.diag(net["W"])))  # monotone map: iterates rise from inside
    cert = None
    off, n = net["W"], len(net["b"])
    low = high = off @ solve(net, x) + net["U"] @ x + net["b"]
    forced = abs(net["U"]) @ (upper - lower) / 2
    for step in range(400):
        low, high = (off @ np.maximum(v, 0) + net["U"] @ x + net["b"] + s * forced
                     for v, s in ((low, -1), (high, 1)))  # fmt: skip
        if step in (3, 30, 399):
            none = np.zeros(0, int)
            cert = base(net, "max-norm", lower, upper, x, {"rows": np.zeros((1, 3)),
                        "offset": np.ones(1), "clause": np.zeros(1, int)}) | {
                **plain_bounds([(low, high)], none, none, none, np.zeros((0, n))),
                "tree": np.array([-1]), "leaf_multiplier": np.zeros((1, n)),
                "leaf_mix": np.ones((1, 1))}  # fmt: skip
            with pytest.raises(RejectedError, match="not contained"):
                check(*write(tmp_path, net, cert))
    # interval arithmetic contains what is a little wider, without any multiplier
    eta = 1e-6 * cert["eta"]
    wider = {"box_lower": (low - eta)[None], "box_upper": (high + eta)[None]}
    assert check(*write(tmp_path, net, cert | wider))[0] == "verified"


def test_the_modulus_is_no_free_number(tmp_path):
    _, net, x, lower, upper = draw(2, "monotone")
    y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
    cert = base(net, "monotone", lower, upper, x, {"label": np.array(int(y.argmin()))})
    least = 2 * np.linalg.eigvalsh(np.eye(4) - (net["W"] + net["W"].T) / 2)[0] / 2
    check(*write(tmp_path, net, cert | {"modulus": np.array(least * (1 - 1e-9))}))
    with pytest.raises(RejectedError):
        check(*write(tmp_path, net, cert | {"modulus": np.array(least * (1 + 1e-9))}))


def test_ten_thousand_leaves_are_judged_together(tmp_path):
    rng = np.random.default_rng(1)
    n, d = 40, 30
    W = 0.5 * rng.standard_normal((n, n)) / n
    net = {"W": W, "U": rng.standard_normal((n, d)), "b": np.zeros(n), "D": np.zeros((2, d)),
           "C": np.stack([np.ones(n), -np.ones(n)]), "c": np.ones(2) * [1e3, 0],
           "slope": np.zeros(n)}  # fmt: skip
    lower, upper = -0.1 * np.ones(d), 0.1 * np.ones(d)
    depth = 11

    def tree(level):
        return [-1] if level == depth else [level, *(2 * tree(level + 1))]

    leaves = 2**depth
    wide = 100 * np.ones(n)
    cert = {
        "format": np.array(2), "digest": np.array(digest(net)), "lower": lower, "upper": upper,
        "point": 0 * lower, "anchor": np.zeros(n), "label": np.array(0), "eta": np.ones(n),
        **plain_bounds([(-wide, wide)], np.tile(np.arange(n), 2), np.repeat([1, -1], n),
                       np.zeros(2 * n, int), np.zeros((2 * n, n), "f4")),
        "tree": np.array(tree(0)),
        "leaf_multiplier": np.zeros((leaves, n), "f4"), "leaf_mix": np.ones((leaves, 1)),
    }  # fmt: skip
    assert check(*write(tmp_path, net, cert))[0] == "verified"
    # one bad leaf among them, in every chunk
    for bad in (0, 1023, 1024, leaves - 1):
        p = cert["leaf_multiplier"].copy()
        p[bad] = 1e6
        with pytest.raises(RejectedError, match="not proved"):
            check(*write(tmp_path, net, cert | {"leaf_multiplier": p}))


def test_the_command_answers_and_needs_neither_torch_nor_the_library(tmp_path):
    _, net, x, lower, upper = draw(4, "monotone")
    y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
    cert = base(net, "monotone", lower, upper, x, {"label": np.array(int(y.argmin()))})
    files = write(tmp_path, net, cert)
    run = [sys.executable, "-m", "wellposed_check", *files]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:21]) == (0, "accepted: falsified, ")
    done = subprocess.run(run[:-1], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("rejected")
    code = ("import sys, wellposed_check; "
            "assert not {'torch', 'wellposed'} & set(sys.modules), 'imported'")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
    source = wellposed_check.__file__
    with open(source, encoding="utf-8") as file:  # noqa: PTH123
        assert len(file.readlines()) <= 250


def test_the_statement_of_a_label_is_recomputed():
    net = {"c": np.zeros(3)}
    rows, offset, clause = statement_of(net, {"label": 1})
    assert rows.tolist() == [[-1, 1, 0], [0, 1, -1]]
    assert clause.tolist() == [0, 1]
    assert not offset.any()
