"""Bounds that take cases themselves: the trees of neurons' sides, and their mutations."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_proofs import (
    base,
    draw,
    exact_margin,
    exact_minimum,
    solve,
    split_tree,
    write,
)

from wellposed_check import RejectedError, check


def hull(net, lower, upper):
    """The exact range of every preactivation over the box."""
    n = len(net["b"])
    own = net | {"C": net["W"], "D": net["U"], "c": net["b"]}
    ends = [
        [s * exact_minimum(own, lower, upper, s * np.eye(n)[i : i + 1], np.zeros(1))
         for i in range(n)]
        for s in (1, -1)
    ]  # fmt: skip
    return np.array(ends)


def by_cases(net, kind, box, statement, room):
    """A certificate whose first box is the exact hull and a little: every side takes a tree."""
    lower, upper = box
    centre, n = (lower + upper) / 2, len(net["b"])
    low, high = hull(net, lower, upper)
    low, high = low - room * (high - low), high + room * (high - low)
    cert = base(net, kind, lower, upper, centre, statement)
    fields = {"neuron": [], "side": [], "tree": [], "multiplier": []}
    for side, ends in ((1, low), (-1, high)):
        for i in range(n):
            goal = (side * net["W"][i : i + 1], side * net["U"][i : i + 1],
                    side * (net["b"][i : i + 1] - ends[i]))  # fmt: skip
            found = split_tree(net, box, (low, high), goal)
            if found is None:
                return None
            fields["neuron"].append(i)
            fields["side"].append(side)
            fields["tree"] += found[0]
            fields["multiplier"] += [p for p, _ in found[1]]
    goal = (cert["rows"] @ net["C"], cert["rows"] @ net["D"],
            cert["rows"] @ net["c"] + cert["offset"])  # fmt: skip
    tree, leaves = split_tree(net, box, (low, high), goal)
    return cert | {f"bound_{k}": np.array(v) for k, v in fields.items()} | {
        "box_lower": low[None], "box_upper": high[None],
        "bound_stage": np.zeros(2 * n, int), "tree": np.array(tree),
        "leaf_multiplier": np.array([p for p, _ in leaves]),
        "leaf_mix": np.array([mix for _, mix in leaves]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def proved():
    """One row, positive by little; the box takes more than ten cases."""
    for seed in range(40):
        rng, net, _, lower, upper = draw(seed, "monotone", radius=0.6)
        row = rng.standard_normal((1, 3))
        least = exact_minimum(net, lower, upper, row, np.zeros(1))
        statement = {"rows": row, "offset": np.array([1e-4 - least]), "clause": np.array([0])}
        cert = by_cases(net, "monotone", (lower, upper), statement, 0.01)
        if cert is not None and (cert["bound_tree"] >= 0).sum() >= 6:
            return net, cert
    raise AssertionError("no certificate takes cases")


def accepted(folder, net, cert):
    try:
        check(*write(folder, net, cert))
    except RejectedError:
        return False
    assert exact_margin(net, cert) > -1e-9
    return True


def test_boxes_that_take_cases_are_accepted(tmp_path, proved):
    net, cert = proved
    verdict, margin = check(*write(tmp_path, net, cert))
    assert verdict == "verified"
    assert 0 < margin <= exact_margin(net, cert) + 1e-9
    # without the trees, by one multiplier each, the same box is not proved
    first = np.cumsum(cert["bound_tree"] == -1) - 1
    roots, at = [], 0
    for _ in cert["bound_neuron"]:
        roots.append(first[at] + (cert["bound_tree"][at] >= 0))
        open_ = 1
        while open_:
            open_ += 1 if cert["bound_tree"][at] >= 0 else -1
            at += 1
    flat = cert | {"bound_tree": np.full(len(roots), -1),
                   "bound_multiplier": cert["bound_multiplier"][roots]}  # fmt: skip
    assert not accepted(tmp_path, net, flat)


def test_every_node_and_leaf_of_the_bounds_matters(tmp_path, proved):
    net, cert = proved
    tree, n = cert["bound_tree"], len(net["b"])
    for at in range(len(tree)):
        assert not accepted(tmp_path, net, cert | {"bound_tree": np.delete(tree, at)})
        for new in (-2, n, *range(-1, n)):
            held = tree.copy()
            held[at] = new
            if new != tree[at] and ((new < 0) != (tree[at] < 0) or not 0 <= new < n):
                assert not accepted(tmp_path, net, cert | {"bound_tree": held})
    for extra in ([-1], [0, -1, -1]):
        longer = np.concatenate([tree, extra])
        assert not accepted(tmp_path, net, cert | {"bound_tree": longer})
    p = cert["bound_multiplier"]
    lost = 0
    for k in range(len(p)):
        kept = np.arange(len(p)) != k
        assert not accepted(tmp_path, net, cert | {"bound_multiplier": p[kept]})
        wild = p.copy()
        wild[k] = -1e4 * (1 + abs(p[k]))
        lost += not accepted(tmp_path, net, cert | {"bound_multiplier": wild})
    # leaves that speak about no input of the region are proved by anything
    assert lost >= n
    swapped = cert | {"bound_multiplier": p[::-1]}
    assert not accepted(tmp_path, net, swapped)


def test_a_box_that_is_left_is_rejected_whatever_is_said(tmp_path, proved):
    """The theorem of containment needs every side strictly, and the anchor inside."""
    net, cert = proved
    low, high = hull(net, cert["lower"], cert["upper"])
    for i in range(len(low)):
        for name, end, inward in (("box_lower", low, 1), ("box_upper", high, -1)):
            box = cert[name].copy()
            box[0, i] = end[i] + inward * 0.05 * (high[i] - low[i])
            assert not accepted(tmp_path, net, cert | {name: box})
    v = net["W"] @ solve(net, cert["point"]) + net["U"] @ cert["point"] + net["b"]
    beside = cert | {"box_lower": (v + 1e-3)[None]}
    assert not accepted(tmp_path, net, beside)


def test_a_later_box_rests_on_the_earlier_ones(tmp_path, proved):
    """A second assumption is proved like the first; ends that are known need no proof."""
    net, cert = proved
    n = len(net["b"])
    far = np.full((1, n), 1e30)
    # first nothing is assumed, then the box
    later = cert | {"box_lower": np.concatenate([-far, cert["box_lower"]]),
                    "box_upper": np.concatenate([far, cert["box_upper"]]),
                    "bound_stage": np.ones(2 * n, int)}  # fmt: skip
    assert accepted(tmp_path, net, later)
    assert not accepted(tmp_path, net, later | {"bound_stage": np.zeros(2 * n, int)})
    # the trees of a box that nobody assumed
    nothing = cert | {"box_lower": -far, "box_upper": far}
    assert not accepted(tmp_path, net, nothing)
    narrower = later | {"box_lower": np.concatenate([-far, cert["box_lower"] + 1e3])}
    assert not accepted(tmp_path, net, narrower)
