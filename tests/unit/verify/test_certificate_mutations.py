"""Every field of a certificate matters: what is altered is rejected, or is still a proof."""

from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np
import pytest
from tiny_proofs import (
    base,
    exact_margin,
    made,
    random_net,
    solve,
    write,
)

from wellposed_check import RejectedError, cases, check


@pytest.fixture(scope="module", params=["max-norm", "monotone"])
def proved(request):
    return made(request.param, 7, 1e-4)


@pytest.fixture(scope="module")
def refuted():
    rng = np.random.default_rng(3)
    net, x = random_net(rng, "monotone"), rng.standard_normal(2)
    y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
    cert = base(net, "monotone", x - 0.2, x + 0.2, x, {"label": np.array(int(y.argmin()))})
    return net, cert


def rejected(folder, net, cert):
    with pytest.raises(RejectedError):
        check(*write(folder, net, cert))


def each(cert, name, change):
    """The certificate with every single entry of a field changed, one after the other."""
    for index in np.ndindex(cert[name].shape):
        value = cert[name].copy()
        new = change(value[index])
        if new == value[index]:
            continue
        value[index] = new
        yield cert | {name: value}


def test_the_originals_are_accepted(tmp_path, proved, refuted):
    assert check(*write(tmp_path, *proved))[0] == "verified"
    assert check(*write(tmp_path, *refuted))[0] == "falsified"


def test_every_bit_of_the_weights_matters(tmp_path, proved):
    net, cert = proved
    for name in ("W", "U", "b", "C", "D", "c", "slope"):
        for index in np.ndindex(net[name].shape):
            value = net[name].copy()
            value[index] = np.nextafter(value[index], np.inf)
            rejected(tmp_path, net | {name: value}, cert)
    rejected(tmp_path, net | {"W": net["W"][:, :-1]}, cert)
    rejected(tmp_path, net | {"slope": net["slope"] - 1}, cert)
    rejected(tmp_path, {k: v for k, v in net.items() if k != "C"}, cert)


def test_names_kinds_shapes_and_numbers(tmp_path, proved, refuted):
    for net, cert in (proved, refuted):
        for name, value in cert.items():
            rejected(tmp_path, net, {k: v for k, v in cert.items() if k != name})
            rejected(tmp_path, net, cert | {name: np.stack([value, value])})
            if value.dtype.kind == "f":
                rejected(tmp_path, net, cert | {name: np.full_like(value, np.nan)})
                rejected(tmp_path, net, cert | {name: np.full_like(value, np.inf)})
                rejected(tmp_path, net, cert | {name: np.zeros(value.shape, int)})
                rejected(tmp_path, net, cert | {name: value.astype(np.longdouble)})
            elif value.dtype.kind == "i":
                rejected(tmp_path, net, cert | {name: value.astype(float)})
            if value.ndim:
                rejected(tmp_path, net, cert | {name: value[:-1]})
                rejected(tmp_path, net, cert | {name: np.concatenate([value, value[:1]])})
        rejected(tmp_path, net, cert | {"more": np.zeros(1)})
        rejected(tmp_path, net, cert | {"format": np.array(1)})
        text = str(cert["digest"])
        for k in range(0, 64, 9):
            other = text[:k] + ("0" if text[k] != "0" else "1") + text[k + 1 :]
            rejected(tmp_path, net, cert | {"digest": np.array(other)})


def test_the_statement(tmp_path, proved):
    net, cert = proved
    margin = exact_margin(net, cert)
    for name in ("rows", "offset"):
        for changed in each(cert, name, lambda v: v - 0.1):
            if exact_margin(net, changed) < -1e-6:
                rejected(tmp_path, net, changed)
    assert 0 < margin < 2e-4
    lowered = cert | {"offset": cert["offset"] - 2 * margin}
    rejected(tmp_path, net, lowered)
    for clause in ([0, 0, 1], [0, 1, 2], [1, 1, 0], [0, 2, 2], [0, 1, 0], [-1, 0, 0], [1, 2, 2]):
        changed = cert | {"clause": np.array(clause)}
        try:
            check(*write(tmp_path, net, changed))
        except RejectedError:
            continue
        # leaves that mix few rows may prove more clauses than they were made for
        assert sorted(clause) != [1, 1, 2]
        assert exact_margin(net, changed) > 0


def test_the_region(tmp_path, proved):
    net, cert = proved
    for name, sign in (("lower", -1), ("upper", 1)):
        for changed in each(cert, name, lambda v, s=sign: v + 5 * s):
            rejected(tmp_path, net, changed)
        for changed in each(cert, name, lambda v, s=sign: v - 5 * s):
            rejected(tmp_path, net, changed)
    rejected(tmp_path, net, cert | {"lower": cert["upper"], "upper": cert["lower"]})
    wider = cert | {"lower": cert["lower"] - 0.1, "upper": cert["upper"] + 0.1}
    if exact_margin(net, wider) < 0:
        rejected(tmp_path, net, wider)
    for step in (-1, 1):
        for changed in each(cert, "point", lambda v, s=step: v + 0.5 * s):
            rejected(tmp_path, net, changed)


def test_the_ball(tmp_path):
    rng = np.random.default_rng(1)
    net, cert = made("monotone", 11, 1e-4)
    ball = {"centre": cert["point"], "scale": np.ones(2), "radius": np.array(0.45)}
    cert = cert | ball
    check(*write(tmp_path, net, cert))
    for name in ball:
        rejected(tmp_path, net, {k: v for k, v in cert.items() if k != name})
    for changed in (
        *each(cert, "centre", lambda v: v + 0.46),
        cert | {"radius": np.array(0.0)},
        cert | {"radius": np.array(-0.45)},
        *each(cert, "scale", lambda _: 0.0),
    ):
        rejected(tmp_path, net, changed)
    # a statement that holds on the ball by little, and then on a larger one
    small = cert | {"radius": np.array(0.1)}
    gain = check(*write(tmp_path, net, small))[1]
    tight = small | {"offset": small["offset"] - 0.99 * gain}
    check(*write(tmp_path, net, tight))
    for changed in (
        tight | {"radius": np.array(0.3)},
        tight | {"scale": np.full(2, 3.0)},
        tight | {"centre": cert["point"] + 0.07 * rng.standard_normal(2)},
    ):
        try:
            check(*write(tmp_path, net, changed))
        except RejectedError:
            continue
        # accepted: then it must be true, at the least on the points of the larger set
        for x in sample(rng, changed):
            y = net["C"] @ solve(net, x) + net["D"] @ x + net["c"]
            value = changed["rows"] @ y + changed["offset"]
            assert value[0] > 0
            assert value[1:].max() > 0


def sample(rng, cert, count=300):
    u = rng.standard_normal((count, 2))
    u *= cert["radius"] / np.linalg.norm(u, axis=1, keepdims=True)
    return np.clip(cert["centre"] + u * cert["scale"], cert["lower"], cert["upper"])


def test_the_witness_of_well_posedness(tmp_path, proved, refuted):
    for net, cert in (proved, refuted):
        name = "eta" if "eta" in cert else "metric"
        for changed in each(cert, name, lambda v: -v):
            rejected(tmp_path, net, changed)
        for changed in each(cert, name, lambda v: 1e9 * v):
            rejected(tmp_path, net, changed)
        if name == "metric":
            for m in (0.0, -1.0, 10.0, 1.03 * float(cert["modulus"]) / 0.98):
                rejected(tmp_path, net, cert | {"modulus": np.array(m)})
            rejected(tmp_path, net, cert | {"eta": cert["metric"]})
            swapped = {k: v for k, v in cert.items() if k not in ("metric", "modulus")}
            off = abs(net["W"] - np.diag(np.diag(net["W"]))).sum(1)
            if (off + np.diag(net["W"]) >= 1).any():
                rejected(tmp_path, net, swapped | {"eta": np.ones(4)})


def test_the_anchor(tmp_path, proved, refuted):
    for net, cert in (proved, refuted):
        for size in (-1e3, 1e3):
            for changed in each(cert, "anchor", lambda v, s=size: v + s):
                rejected(tmp_path, net, changed)


def test_the_containment(tmp_path, proved):
    net, cert = proved
    n = len(net["b"])
    v = net["W"] @ cert["anchor"] + net["U"] @ cert["point"] + net["b"]
    for k in range(n):
        one = np.eye(n)[k]
        # a box without the anchor, a box that its image touches
        for name, sign in (("box_lower", 1), ("box_upper", -1)):
            at = cert | {name: np.where(one > 0, v + sign * 1e-12, cert[name])}
            rejected(tmp_path, net, at)
            beyond = {"box_lower": "box_upper", "box_upper": "box_lower"}[name]
            rejected(tmp_path, net, cert | {name: np.where(one > 0, cert[beyond], cert[name])})
    needed = 0
    for row in np.flatnonzero(cert["bound_stage"] == 0):
        kept = np.arange(len(cert["bound_stage"])) != row
        fewer = cert | {f"bound_{k}": cert[f"bound_{k}"][kept]
                        for k in ("multiplier", "neuron", "side", "stage", "tree")}  # fmt: skip
        if accepted(tmp_path, net, fewer):
            continue  # intervals or the witness prove this side as well
        needed += 1
        p = cert["bound_multiplier"].copy()
        p[row] = -1e3 * (1 + abs(p[row]))
        rejected(tmp_path, net, cert | {"bound_multiplier": p})
        for name, value in (("side", -cert["bound_side"][row]), ("side", 0), ("side", 2),
                            ("neuron", (cert["bound_neuron"][row] + 1) % n), ("neuron", -1),
                            ("neuron", n), ("stage", 1), ("stage", -1), ("stage", 2**40),
                            ):  # fmt: skip
            held = cert[f"bound_{name}"].copy()
            held[row] = value
            rejected(tmp_path, net, cert | {f"bound_{name}": held})
    assert needed >= 2


def accepted(folder, net, cert):
    try:
        check(*write(folder, net, cert))
    except RejectedError:
        return False
    assert exact_margin(net, cert) > -1e-9
    return True


def test_the_trees(tmp_path, proved):
    net, cert = proved
    tree, n = cert["tree"], len(net["b"])
    assert (tree >= 0).sum() >= 2
    for at in range(len(tree)):
        rejected(tmp_path, net, cert | {"tree": np.delete(tree, at)})
        for new in (-2, n, *range(-1, n)):
            if new == tree[at]:
                continue
            held = tree.copy()
            held[at] = new
            changed = cert | {"tree": held}
            if (new < 0) != (tree[at] < 0) or not 0 <= new < n:
                rejected(tmp_path, net, changed)
                continue
            # cases of another neuron may do as well
            with suppress(RejectedError):
                check(*write(tmp_path, net, changed))
    # the same neuron twice on a path leaves a case out that is not empty
    k = int(np.flatnonzero(tree >= 0)[0])
    twice = np.insert(tree, k, tree[k])
    rejected(tmp_path, net, cert | {"tree": np.insert(twice, len(twice), -1)})
    for extra in ([-1], [0, -1, -1]):
        rejected(tmp_path, net, cert | {"tree": np.concatenate([tree, extra])})
    # the first cases alone, with the leaves that prove them
    for at in np.flatnonzero(tree == -1)[:-1]:
        count = (tree[: at + 1] == -1).sum()
        rejected(tmp_path, net, cert | {"tree": tree[: at + 1],
                 "leaf_multiplier": cert["leaf_multiplier"][:count],
                 "leaf_mix": cert["leaf_mix"][:count]})  # fmt: skip
    # splitting off a branch and leaving out the other half
    pruned = cert | {"tree": np.array([-1, -1]), "leaf_multiplier": cert["leaf_multiplier"][:2],
                     "leaf_mix": np.array([[1.0, 0, 0], [0, 0.5, 0.5]])}  # fmt: skip
    rejected(tmp_path, net, pruned)


def met_leaves(net, cert):
    """Which leaves speak about some input of the region; the others are proved by anything."""
    signs = cases(cert["tree"], 2, len(net["b"]))[0]
    found = np.zeros(len(signs), bool)
    grid = np.linspace(cert["lower"], cert["upper"], 12)
    for x in itertools.product(*grid.T):
        v = net["W"] @ solve(net, np.array(x)) + net["U"] @ np.array(x) + net["b"]
        found |= (signs * v >= 0).all(1)
    return found


def test_the_leaves(tmp_path, proved):
    net, cert = proved
    leaves = len(cert["leaf_multiplier"])
    met = met_leaves(net, cert)
    assert met.sum() >= 3
    for k in range(leaves):
        for factor in (-1e6, 1e6) if met[k] else ():
            p = cert["leaf_multiplier"].copy()
            p[k] = factor * (1 + abs(p[k]))
            rejected(tmp_path, net, cert | {"leaf_multiplier": p})
        mix = cert["leaf_mix"].copy()
        mix[k] *= -1
        rejected(tmp_path, net, cert | {"leaf_mix": mix})
        mix[k] = cert["leaf_mix"][k][[1, 0, 0]]
        rejected(tmp_path, net, cert | {"leaf_mix": mix})
        kept = np.arange(leaves) != k
        rejected(tmp_path, net, cert | {"leaf_multiplier": cert["leaf_multiplier"][kept],
                                        "leaf_mix": cert["leaf_mix"][kept]})  # fmt: skip
    # the opposite statement with the opposite weights has the very same bounds
    rejected(tmp_path, net, cert | {k: -cert[k] for k in ("rows", "offset", "leaf_mix")})
    one = {"leaf_multiplier": cert["leaf_multiplier"][:1], "leaf_mix": cert["leaf_mix"][:1]}
    rejected(tmp_path, net, cert | one)
