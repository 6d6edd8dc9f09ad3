"""A search for certificates of tiny networks in numpy and scipy, apart from the library's own."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
from scipy.optimize import linprog

KINDS = ("max-norm", "monotone")
NAMES = ("W", "U", "b", "C", "D", "c", "slope")


def random_net(rng, kind, n=4, d=2, q=3, slope=0.0):
    A, B = rng.standard_normal((2, n, n))
    if kind == "monotone":
        W = 0.5 * np.eye(n) - A.T @ A / n + 1.5 * (B - B.T) / np.sqrt(n)
    else:
        W = 0.9 * A / abs(A).sum(1, keepdims=True) - np.diag(rng.random(n))
    draw = rng.standard_normal
    slopes = np.where(rng.random(n) < 0.2, 1.0, slope) if slope else np.zeros(n)
    return {"W": W, "U": draw((n, d)), "b": draw(n), "C": draw((q, n)), "D": 0.3 * draw((q, d)),
            "c": draw(q), "slope": slopes}  # fmt: skip


def draw(seed, kind, slope=0.0, radius=0.3):
    rng = np.random.default_rng(seed)
    net = random_net(rng, kind, slope=slope)
    x = rng.standard_normal(2)
    return rng, net, x, x - radius, x + radius


def digest(net):
    state = hashlib.sha256()
    for name in NAMES:
        state.update(f"{name}{list(net[name].shape)};".encode() + net[name].astype("<f8").tobytes())
    return state.hexdigest()


def witness(net, kind):
    n = len(net["b"])
    if kind == "monotone":
        I_W = np.eye(n) - net["W"]
        return {"metric": np.ones(n), "modulus": 0.49 * np.linalg.eigvalsh(I_W + I_W.T)[0]}
    off = abs(net["W"] - np.diag(np.diag(net["W"])))
    return {"eta": np.linalg.solve(np.diag(1 - np.diag(net["W"])) - off, np.ones(n))}


def phases(net, inputs):
    """All pieces: slopes D, and the affine map v = (I - W D)^-1 (U x + b) on each."""
    n = len(net["b"])
    for signs in product((0, 1), repeat=n):
        on = np.array(signs, bool)
        if (net["slope"] == 1)[~on].any():
            continue  # the identity has one piece
        D = np.where(on, 1.0, net["slope"])
        yield on, D, np.linalg.solve(np.eye(n) - net["W"] * D, inputs)


def solve(net, x):
    """The equilibrium, by trying all pieces."""
    best = (np.inf, None)
    for _, D, v in phases(net, net["U"] @ x + net["b"]):
        gap = abs(D * v - np.maximum(v, net["slope"] * v)).max()
        best = min(best, (gap, D * v), key=lambda pair: pair[0])
    return best[1]


def exact_minimum(net, lower, upper, rows, offset):
    """min over the box of the largest of the rows (rows y + offset), by enumerating the pieces."""
    d, best = len(lower), np.inf
    inputs = np.column_stack([net["U"], net["b"]])
    for on, D, v in phases(net, inputs):
        free = net["slope"] != 1
        sign = np.where(on, -1.0, 1.0)[free, None]
        y = net["C"] @ (D[:, None] * v) + np.column_stack([net["D"], net["c"]])
        value = rows @ y
        value[:, -1] += offset
        # minimise t >= every row, with v of the right signs
        A = np.block([[sign * v[free, :d], np.zeros((free.sum(), 1))],
                      [value[:, :d], -np.ones((len(value), 1))]])  # fmt: skip
        right = np.concatenate([-(sign[:, 0] * v[free, -1]), -value[:, -1]])
        box = [*zip(lower, upper, strict=True), (None, None)]
        found = linprog(np.eye(d + 1)[-1], A_ub=A, b_ub=right, bounds=box)
        if found.status == 0:
            best = min(best, found.fun)
    return best


def statement_of(net, cert):
    if "label" not in cert:
        return cert["rows"], cert["offset"], cert["clause"]
    eye, q = np.eye(len(net["c"])), len(net["c"])
    return eye[cert["label"]] - np.delete(eye, cert["label"], 0), np.zeros(q - 1), np.arange(q - 1)


def exact_margin(net, cert):
    """The smallest over clauses and inputs of the box of the largest row."""
    rows, offset, clause = statement_of(net, cert)
    box = cert["lower"], cert["upper"]
    return min(
        exact_minimum(net, *box, rows[clause == k], offset[clause == k]) for k in np.unique(clause)
    )


def best_multiplier(net, box, v_box, goal):
    """The p and mix that maximise the dual bound of the mixed rows on a box: a linear programme.

    `goal` is (r, s, t), with one row for each row that may be mixed.
    """
    (r, s, t), n, d = goal, len(net["b"]), len(box[0])
    k = len(t)
    # variables: p, mix, then one lower bound w of each term
    lam = np.hstack([net["W"].T, r.T])
    dx = np.hstack([net["U"].T, s.T])
    own = np.hstack([np.eye(n), np.zeros((n, k))])
    A = [-(np.maximum(v, net["slope"] * v)[:, None] * lam - v[:, None] * own)
         for v in (v_box[0], np.clip(0, *v_box), v_box[1])]  # fmt: skip
    A = [np.hstack([a, np.eye(n), np.zeros((n, d))]) for a in A]
    A += [np.hstack([-x[:, None] * dx, np.zeros((d, n)), np.eye(d)]) for x in box]
    cost = -np.concatenate([net["b"], t, np.ones(n + d)])
    limits = [(-1e3, 1e3)] * n + [(0, 1)] * k + [(None, None)] * (n + d)
    total = np.concatenate([np.zeros(n), np.ones(k), np.zeros(n + d)])[None]
    found = linprog(cost, A_ub=np.vstack(A), b_ub=np.zeros(3 * n + 2 * d), A_eq=total, b_eq=[1.0],
                    bounds=limits)  # fmt: skip
    assert found.status == 0, found.message
    return -found.fun, found.x[:n], found.x[n : n + k]


def crown(net, box, low, high, goal):
    """Fixed-point CROWN, p = sigma(lam), lam = r + W^T p, one row each, and what it proves."""
    (r, s, t), slope = goal, net["slope"]
    share = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / np.maximum(high - low, 1e-300)))
    above = slope + (1 - slope) * share
    below = np.where(share == 1, 1.0, np.where((share == 0) | (high <= -low), slope, 1.0))
    lam, eye = r, np.eye(len(slope))
    for _ in range(20):  # the pieces are guessed, solved for, and guessed again
        D = np.where(lam >= 0, below, above)
        new = np.linalg.solve(eye - net["W"].T * D[:, None], r[..., None])[..., 0]
        if ((new >= 0) == (lam >= 0)).all():
            break
        lam = new
    p = np.where(lam >= 0, below, above) * lam
    lam, d = r + p @ net["W"], s + p @ net["U"]
    ends = [lam * np.maximum(v, slope * v) - p * v for v in (low, np.clip(0, low, high), high)]
    value = t + p @ net["b"] + np.minimum(d * box[0], d * box[1]).sum(1) + np.min(ends, 0).sum(1)
    return value, p


def image(net, box, v_box):
    """Bounds that follow from v_box, with multipliers, for every neuron: lower ones, upper ones."""
    n = len(net["b"])
    side, eye = np.repeat([1.0, -1.0], n), np.tile(np.eye(n, dtype=bool), (2, 1))
    crossing = eye & (v_box[0] < 0) & (v_box[1] > 0)
    low = np.where(crossing & (side < 0)[:, None], 0.0, v_box[0])
    high = np.where(crossing & (side > 0)[:, None], 0.0, v_box[1])
    i = np.tile(np.arange(n), 2)
    goal = side[:, None] * net["W"][i], side[:, None] * net["U"][i], side * net["b"][i]
    value, p = crown(net, box, low, high, goal)
    value = side * np.where(crossing.any(1), np.minimum(value, 0), value)
    return (value[:n], value[n:]), p


def contain(net, box, centre, rounds=40):
    """A box around v* at the centre whose image lies strictly inside, and its multipliers."""
    v = net["W"] @ solve(net, centre) + net["U"] @ centre + net["b"]
    low, high = v - 0.1, v + 0.1
    for _ in range(rounds):
        (lo, hi), p = image(net, box, (low, high))
        inside = (lo > low + 1e-9) & (hi < high - 1e-9)
        if inside.all():
            return (low, high), (lo, hi), p
        spread = 0.05 * (hi - lo) + 1e-6
        low, high = (
            np.where(lo > low + 1e-9, low, lo - spread),
            np.where(hi < high - 1e-9, high, hi + spread),
        )
        if max(abs(low).max(), abs(high).max()) > 1e6:
            break
    return None


def split_tree(net, box, v_box, goal, done=()):
    """A tree in preorder with (p, mix) of its leaves; None if a case is not proved."""
    value, p, mix = best_multiplier(net, box, v_box, goal)
    if value > 1e-7:
        return [-1], [(p, mix)]
    free = [i for i in range(len(p)) if i not in done and v_box[0][i] < 0 < v_box[1][i]
            and net["slope"][i] != 1]  # fmt: skip
    if not free:
        return None
    i = max(free, key=lambda j: min(-v_box[0][j], v_box[1][j]))
    tree, leaves = [i], []
    for k in (1, 0):  # off first: it keeps the lower end
        part = [v_box[0].copy(), v_box[1].copy()]
        part[k][i] = 0.0
        found = split_tree(net, box, part, goal, (*done, i))
        if found is None:
            return None
        tree, leaves = tree + found[0], leaves + found[1]
    return tree, leaves


FAR = 1e30


def rows_of(net, cert):
    """The certificate with a label, if it has one, written as rows."""
    rows, offset, clause = statement_of(net, cert)
    rest = {k: v for k, v in cert.items() if k != "label"}
    return rest | {"rows": rows, "offset": offset, "clause": clause}


def base(net, kind, lower, upper, point, statement):
    cert = {"format": np.array(2), "digest": np.array(digest(net)), "lower": lower, "upper": upper,
            "point": point, "anchor": solve(net, point), **witness(net, kind),
            **statement}  # fmt: skip
    return rows_of(net, cert)


def plain_bounds(boxes, neuron, side, stage, multiplier):
    """Fields of bounds of one leaf each."""
    lower, upper = zip(*boxes, strict=True)
    return {"box_lower": np.array(lower), "box_upper": np.array(upper), "bound_neuron": neuron,
            "bound_side": side, "bound_stage": stage, "bound_multiplier": multiplier,
            "bound_tree": np.full(len(neuron), -1)}  # fmt: skip


def verify(net, kind, lower, upper, statement, stages=2):
    """A certificate of the statement as a dictionary of arrays; None if it is not found."""
    box, centre, n = (lower, upper), (lower + upper) / 2, len(net["b"])
    held = contain(net, box, centre)
    if held is None:
        return None
    start, v_box, p = held
    multipliers = [p]
    for _ in range(stages - 1):
        more, p = image(net, box, v_box)
        v_box = np.maximum(v_box[0], more[0]), np.minimum(v_box[1], more[1])
        multipliers.append(p)
    cert = base(net, kind, lower, upper, centre, statement)
    rows, offset, clause = statement_of(net, cert)
    tree, leaves = [], []
    for k in range(clause.max() + 1):
        own = clause == k
        goal = rows[own] @ net["C"], rows[own] @ net["D"], rows[own] @ net["c"] + offset[own]
        found = split_tree(net, box, v_box, goal)
        if found is None:
            return None
        tree += found[0]
        for q, weights in found[1]:
            mix = np.zeros(len(rows))
            mix[own] = weights
            leaves.append((q, mix))
    neuron, side = np.tile(np.arange(n), 2), np.repeat([1, -1], n)
    far = np.full(n, FAR)
    boxes = [start, *[(-far, far)] * (stages - 1)]
    return (
        cert
        | plain_bounds(
            boxes,
            np.tile(neuron, stages),
            np.tile(side, stages),
            np.repeat(np.arange(stages), 2 * n),
            np.concatenate(multipliers),
        )
        | {
            "tree": np.array(tree),
            "leaf_multiplier": np.array([q for q, _ in leaves]),
            "leaf_mix": np.array([m for _, m in leaves]),
        }
    )


def write(folder, net, cert):
    """Both files, as the two arguments of the checker."""
    np.savez(folder / "weights.npz", **net)
    np.savez(folder / "certificate.npz", **(rows_of(net, cert) if "label" in cert else cert))
    return str(folder / "certificate.npz"), str(folder / "weights.npz")


def made(kind, seed, slack):
    """A network with a certificate that branches, of a statement that holds by `slack` only."""
    rng = np.random.default_rng(seed)
    while True:
        net = random_net(rng, kind)
        x = rng.standard_normal(2)
        lower, upper = x - 0.4, x + 0.4
        rows = rng.standard_normal((3, 3))
        clause = np.array([0, 1, 1])
        least = [exact_minimum(net, lower, upper, rows[:1], np.zeros(1)),
                 exact_minimum(net, lower, upper, rows[1:], np.zeros(2))]  # fmt: skip
        offset = slack - np.array([least[0], least[1], least[1]])
        statement = {"rows": rows, "offset": offset, "clause": clause}
        cert = verify(net, kind, lower, upper, statement)
        if cert is not None and 6 <= len(cert["tree"]) <= 60:
            return net, cert
