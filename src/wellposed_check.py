"""Check certificate files, with numpy alone: ``python -m wellposed_check CERTIFICATE WEIGHTS``.

``z = phi(v), v = W z + U x + b, y = C z + D x + c``, ``phi(v) = max(v, slope v)``, slopes 0 to 1.
A certificate says of every input of a region (a box, or its part in a 2-norm ball) that in every
clause some output row is positive; or it shows an input where that fails.
1. *Well-posed.* Weights ``eta`` of a max norm, or a metric and a modulus, prove that ``z*(x)``
   exists, is unique and continuous, and how far ``z*(point)`` is from a stored anchor.
2. *Bounds*, in stages: if ``v*(point)`` is inside of a box, and the box with what is known implies
   bounds strictly inside, these hold on the whole region, because it is connected.
3. *Cases.* Binary trees split neurons by the sign of ``v_i``. A leaf proves that a nonnegative
   combination of its clause's rows is positive, or that it is empty.
2 and 3 use intervals, and multipliers; for any ``p`` (weak duality), with ``lam = r + W^T p``,
    min of r.z + s.x + t  >=  t + p.b + min_x (s + U^T p).x + sum_i min_v (lam_i phi_i(v) - p_i v).
All is float64; a sum of N terms is trusted up to 2 N 2^-53 times the sum of their magnitudes. The
fields are described, and the rules proved, in docs/certificate-files.md.
"""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Fields = dict[str, Any]
FLIP, TINY, CHUNK = np.array([[1], [-1]]), 1e-150, 1024  # v and -v; underflow; leaves at a time
# name:dimensions; n, d, q are the network's, the other letters are learnt from the arrays
WEIGHTS = "W:nn U:nd b:n C:qn D:qd c:q slope:n"
ALWAYS = "format: digest: lower:d upper:d point:d anchor:n rows:Rq offset:R clause:R "
ETA, METRIC, BALL = "eta:n ", "metric:n modulus: ", "radius: centre:d scale:d "
PROOF = """box_lower:Sn box_upper:Sn bound_neuron:T bound_side:T bound_stage:T bound_tree:M
    bound_multiplier:Kn tree:N leaf_multiplier:Ln leaf_mix:LR"""  # absent from a counter-example
INTEGERS = "format clause bound_neuron bound_side bound_stage bound_tree tree"


class RejectedError(Exception):
    """The certificate does not establish what it says."""


def require(condition: Any, message: str) -> None:
    """Reject unless the condition holds everywhere; NaN compares false and is rejected as well."""
    if not np.all(condition):
        raise RejectedError(message)


def typed(found: dict[str, Array], fields: str, sizes: dict[str, int]) -> Fields:
    """Exactly these fields, finite, of the right kinds and shapes, as float64 or int64."""
    shapes = dict(field.split(":") for field in fields.split())
    require(found.keys() == shapes.keys(), f"missing or unknown: {found.keys() ^ shapes.keys()}")
    result: Fields = {name: str(found[name]) for name in shapes if name == "digest"}
    for name in shapes.keys() - result.keys():
        value, letters, kind = found[name], shapes[name], "i" if name in INTEGERS.split() else "f"
        good = value.dtype.kind == kind and value.dtype.itemsize <= 8 and np.isfinite(value).all()
        same = (*map(sizes.setdefault, letters, value.shape),) == value.shape
        require([good, same, len(letters) == value.ndim], f"{name}: {value.dtype} {value.shape}")
        result[name] = value.astype(np.float64 if kind == "f" else np.int64)
    return result


def read_network(path: str) -> Fields:
    """The weights, and the maps from phi(v), x and 1 to v, y and 1, with their magnitudes."""
    found = dict(np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False))
    net = typed(found, WEIGHTS, {})
    require((net["slope"] >= 0) & (net["slope"] <= 1), "slope is outside of [0, 1]")
    digest = hashlib.sha256()
    for name in ("W", "U", "b", "C", "D", "c", "slope"):
        shape, value = list(net[name].shape), net[name].astype("<f8")
        digest.update(f"{name}{shape};".encode() + value.tobytes())
    ends = zip(("WC", "UD", "bc"), (0 * net["W"][:1], 0 * net["U"][:1], np.ones(1)), strict=True)
    maps = [np.concatenate([net[one], net[two], end]) for (one, two), end in ends]
    return net | {"digest": digest.hexdigest(), "maps": maps, "sizes": [abs(m) for m in maps]}


def read_certificate(path: str, net: Fields) -> Fields:
    """All fields and weights, the point in the region; `gamma`: relative error of sums."""
    (n, d), q = net["U"].shape, len(net["c"])
    found = dict(np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False))
    fields = ALWAYS + (ETA if "eta" in found else METRIC) + BALL * ("radius" in found)
    cert = typed(found, fields + PROOF * ("tree" in found), {"n": n, "d": d, "q": q})
    require(cert["format"] == 2, f"format {cert['format']} is unknown")
    require(cert["digest"] == net["digest"], "the digest is that of another network")
    cert["rows"] = np.column_stack([cert["rows"], cert["offset"]])
    require(set(cert["clause"]) == {*range(max(cert["clause"]) + 1)}, "clauses must be 0, 1, ...")
    cert["gamma"] = 2 * (2 * n + d + q + len(cert["rows"]) + 40) * 2.0**-53
    x, cert["most"] = cert["point"], np.maximum(abs(cert["lower"]), abs(cert["upper"]))
    require((cert["lower"] <= x) & (x <= cert["upper"]), "the point is outside of the box")
    away = np.linalg.norm((x - cert.get("centre", x)) / cert.get("scale", 1)) + TINY
    require(away * (1 + cert["gamma"]) <= cert.get("radius", 1), "the point is outside of the ball")
    return net | cert


def anchor_error(cert: Fields, reach: Any) -> tuple[Array, Array]:
    """Proves well-posedness; v and f with ``|v*(x) - v| <= f`` if ``|U (x - point)| <= reach``."""
    W, U, b, z, x, gamma = (cert[k] for k in ("W", "U", "b", "anchor", "point", "gamma"))
    v, size, own = W @ z + U @ x + b, cert["sizes"][0][: len(b)], np.diag(W)
    f = abs(np.maximum(v, cert["slope"] * v) - z) + gamma * (abs(z) + abs(v))
    f = (reach + size @ f + gamma * (abs(U) @ abs(x) + abs(b))) * (1 + gamma) + TINY  # the residual
    if "eta" in cert:
        eta, flow = cert["eta"], size @ cert["eta"]
        room = (1 - own + abs(own)) * eta - flow - gamma * (2 * eta + 2 * flow) - TINY
        require((eta > 0) & (room > 0), "the max norm does not prove well-posedness")
        spread = flow * np.max(f / room)
    else:
        metric, m, one = cert["metric"][:, None], cert["modulus"], np.eye(len(b))
        require((metric > 0) & (m > 0), "the metric and the modulus must be positive")
        form, sizes = metric * ((1 - m) * one - W), metric * ((1 + m) * one + size)
        # more than the errors of forming the matrix and of its factorisation, which may raise
        shift = 2 * gamma * (2 * np.trace(sizes) + (sizes.sum(0) + sizes.sum(1)).max()) + TINY
        require(np.isfinite(np.linalg.cholesky(form + form.T - shift * one)), "no Cholesky factor")
        root = np.sqrt(cert["metric"])
        spread = (np.linalg.norm(W / root, axis=1) + TINY) * (np.linalg.norm(root * f) + TINY) / m
    return v, (spread + f) * (1 + 4 * gamma) + TINY


def minimum(cert: Fields, d: Array) -> Array:
    """A lower bound of ``min_x d.x`` over the region for each of the rows (B, d)."""
    f, value, size = 0 * d, 0.0, 0.0
    if "radius" in cert:  # for any f: at least min (d - f).x over the box + min f.x over the ball
        c, scale, radius = cert["centre"], cert["scale"], cert["radius"]
        step = radius / np.maximum(np.linalg.norm(scale * d, axis=1), TINY)[:, None]
        few, many = 0 * step, 0 * step + 60
        for _ in range(40):  # bisect Lagrange's multiplier: clip d as much as the box asks for
            power = (few + many) / 2
            reach = np.maximum(step * 2**power * scale**2, TINY)
            f = np.clip(d, (c - cert["upper"]) / reach, (c - cert["lower"]) / reach)
            inside = np.linalg.norm(f * reach / scale, axis=1)[:, None] <= radius
            few, many = np.where(inside, power, few), np.where(inside, many, power)
        length = radius * (np.linalg.norm(scale * f, axis=1) + TINY)
        value, size = f @ c - length, abs(f) @ abs(c) + length
    value = value + np.minimum((d - f) * cert["lower"], (d - f) * cert["upper"]).sum(1)
    return value - cert["gamma"] * (size + (abs(d) + 2 * abs(f)) @ cert["most"]) - TINY


def dual_bound(cert: Fields, goal: Any, p: Array, box: Any, sign: Array) -> Array:
    """Lower bounds of rows of (v, y, 1) for v in the part of a box with these signs, from any p."""
    if len(p) > CHUNK:
        halves = zip(*(np.array_split(k, 2) for k in (*goal, p, sign)), strict=True)
        return np.concatenate([dual_bound(cert, k[:2], k[2], box, k[3]) for k in halves])
    low = np.where(sign > 0, box[0].clip(min=0), box[0])  # an empty interval proves anything
    high = np.where(sign < 0, box[1].clip(max=0), box[1])
    rows, sizes = (np.pad(k, ((0, 0), (0, len(cert["c"]) + 1))) for k in (p, abs(p)))
    lam, d, value = ((goal[0] + rows) @ m for m in cert["maps"])
    lam_size, d_size, size = ((goal[1] + sizes) @ m for m in cert["sizes"])
    kinks = (low, np.clip(0, low, high), high)  # phi is linear in between
    v_values = [lam * np.maximum(v, cert["slope"] * v) - p * v for v in kinks]
    most = np.maximum(abs(low), abs(high))
    size = size + d_size @ cert["most"] + ((lam_size + abs(p)) * most).sum(1)
    slack = cert["gamma"] * size + TINY * (1 + cert["most"].sum() + most.sum(1))
    return value + minimum(cert, d) + np.min(v_values, axis=0).sum(1) - slack


def intervals(cert: Fields, box: Array, x: Array) -> Array:
    """Lower bounds of v and of -v by intervals, from a box and lower bounds x of Ux and of -Ux."""
    W, b, slope, gamma = (cert[k] for k in ("W", "b", "slope", "gamma"))
    size, own, (bottom, top) = cert["sizes"][0][: len(b)], np.diag(W), np.maximum(box, slope * box)
    middle, reach, most = (top + bottom) / 2, (top - bottom) / 2, abs(top) + abs(bottom)
    spread = size @ (reach + gamma * most) - abs(own) * reach + gamma * (abs(x).max(0) + abs(b))
    s = x + FLIP * (W @ middle - own * middle + b) - spread - TINY
    # s = v_i - W_ii phi(v_i); well-posedness implies W_ii < 1: it increases with v_i, has its sign
    one, off = np.ones_like(own), gamma * (1 + abs(own))
    room = 1 - own * np.where(s > 0, [one, slope], [slope, one])
    v = np.minimum(s / (room + off), s / np.maximum(room - off, TINY))
    return np.where(room > 2 * off, v - gamma * abs(v), -np.inf)


def cases(tree: Array, roots: int, n: int) -> tuple[Array, Array]:
    """Of every leaf of all trees: signs of its split neurons (n,), its tree; none is missing."""
    leaves, todo = [], [(np.zeros(n, np.int8), k) for k in reversed(range(roots))]
    for neuron in tree:
        sign, root = todo.pop()  # raises if the tree goes on after its last leaf
        if neuron == -1:
            leaves.append((sign, root))
        else:
            require(0 <= neuron < n and sign[neuron] == 0, f"bad split of neuron {neuron}")
            unit = (np.arange(n) == neuron).astype(np.int8)
            todo += [(sign + unit, root), (sign - unit, root)]
    require(not todo, "a tree lacks cases")
    return np.reshape([k for k, _ in leaves], (-1, n)), np.array([k for _, k in leaves], int)


def check_bounds(cert: Fields) -> Array:
    """Preactivation bounds (low, high) that hold on the whole region."""
    neuron, side, stage, p = (cert[f"bound_{k}"] for k in ("neuron", "side", "stage", "multiplier"))
    U, point, n = cert["U"], cert["point"], len(cert["b"])
    sign, bound = cases(cert["bound_tree"], len(neuron), n)
    good = (neuron % n == neuron) & (stage % len(cert["box_lower"]) == stage)
    require([len(sign) == len(p), *good, *(abs(side) == 1)], "no such neuron, stage, side or leaf")
    x = np.reshape(minimum(cert, np.concatenate([U, -U])), (2, n))
    reach = (FLIP * (U @ point) - x).max(0) + cert["gamma"] * (abs(U) @ cert["most"])
    v, error = anchor_error(cert, 0.0)
    sure = FLIP * v - anchor_error(cert, reach)[1]  # proved lower bounds of v and of -v
    for k, assumed in enumerate(np.stack([cert["box_lower"], -cert["box_upper"]], axis=1)):
        held = np.maximum(sure, assumed)
        known = held == sure  # anything else is assumed, and has to be proved strictly
        require(known | (held < FLIP * v - error), "the anchor is not inside of the box")
        found, worst = intervals(cert, FLIP * held, x), np.where(stage == k, np.inf, -np.inf)
        at, box = np.flatnonzero(stage[bound] == k), FLIP * held
        row = np.zeros((len(at), len(cert["maps"][2])))
        row[np.arange(len(at)), neuron[bound[at]]] = side[bound[at]]
        # where v_i has the other sign, zero bounds it; that leaves the case of this sign
        other = np.where(row[:, :n], -row[:, :n], sign[at])
        pair = [dual_bound(cert, (row, abs(row)), p[at], box, k) for k in (sign[at], other)]
        np.minimum.at(worst, bound[at], np.maximum(pair[0], np.minimum(pair[1], 0)))
        np.maximum.at(found, ((1 - side) // 2, neuron), worst)
        require(known | (found > held), "a neuron is not contained")
        sure = np.maximum(held, found)
    return FLIP * sure


def check_forest(cert: Fields, bounds: Array) -> float:
    """Every leaf of every clause is proved; the smallest bound."""
    rows, mix, n = cert["rows"], cert["leaf_mix"], len(cert["b"])
    sign, clause = cases(cert["tree"], cert["clause"].max() + 1, n)
    require(len(mix) == len(sign), "the trees have another number of leaves")
    require((mix >= 0) & ((mix == 0) | (cert["clause"] == clause[:, None])), "wrong rows are mixed")
    goal = [np.pad(mix @ k, ((0, 0), (n, 0))) for k in (rows, abs(rows))]
    bound = dual_bound(cert, goal, cert["leaf_multiplier"], bounds, sign)
    require(bound > 0, f"a leaf is not proved: its bound is {bound.min()}")
    return float(bound.min())


def check_counterexample(cert: Fields) -> float:
    """At the point all rows of some clause are negative for sure; the largest of them."""
    (v, error), at = anchor_error(cert, 0.0), dict.fromkeys(["lower", "upper"], cert["point"])
    rows, none = np.pad(-cert["rows"], ((0, 0), (len(v), 0))), np.zeros((len(cert["rows"]), len(v)))
    least = dual_bound(cert | at, (rows, abs(rows)), none, [v - error, v + error], none)
    worst = max(least[cert["clause"] == k].min() for k in set(cert["clause"]))
    require(worst > 0, f"the point is no counter-example for sure: {-worst}")
    return -float(worst)


def check(certificate: str, weights: str | Fields) -> tuple[str, float]:
    """The verdict that a certificate establishes, with a sure margin; raises `RejectedError`."""
    try:
        net = read_network(weights) if isinstance(weights, str) else weights
        cert = read_certificate(certificate, net)
        if "tree" not in cert:
            return "falsified", check_counterexample(cert)
        return "verified", check_forest(cert, check_bounds(cert))
    except Exception as error:  # also a damaged file, or a matrix without a Cholesky factor
        raise RejectedError(str(error) or repr(error)) from error


if __name__ == "__main__":
    try:
        print("accepted: {}, margin {:.6g}".format(*check(*sys.argv[1:])))  # noqa: T201
    except (RejectedError, TypeError) as problem:
        sys.exit(f"rejected: {problem}")
