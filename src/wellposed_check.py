"""Check a certificate file against the weights it speaks about, with numpy and nothing else.

    python -m wellposed_check CERTIFICATE WEIGHTS

The network is ``z = phi(v), v = W z + U x + b, y = C z + D x + c``, ``phi(v) = max(v, slope v)``,
``0 <= slope <= 1``. A certificate says of every input ``x`` of a region (a box, or its part in a
2-norm ball) that in every clause some output row is positive; or it shows an input where it fails.
1. *Well-posed.* Weights ``eta`` of a max norm, or a metric ``Lam`` and a modulus ``m``, prove that
   ``z*(x)`` exists, is unique and continuous, and how far ``z*(point)`` is from a stored anchor.
2. *Bounds.* If ``v*(point)`` is in the open box (l, h), and ``l <= v <= h`` implies bounds strictly
   inside, then these bounds hold on the whole region, because it is connected. Later stages refine.
3. *Cases.* Binary trees split neurons by the sign of ``v_i``; their leaves cover all cases. A leaf
   proves that a nonnegative combination of its clause's rows is positive, or that it is empty.
2 and 3 rest on one inequality, true for any multiplier ``p`` (weak duality): with lam = r + W^T p,
    min of r.z + s.x + t  >=  t + p.b + min_x (s + U^T p).x + sum_i min_v (lam_i phi_i(v) - p_i v).
All is float64; a sum of N terms is trusted up to 2 N 2^-53 times the sum of their magnitudes.
docs/certificate-files.md describes the fields and proves the rules.
"""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Fields = dict[str, Any]
TINY, CHUNK = 1e-150, 1024  # more than underflow loses; leaves or bounds judged at a time
# name:dimensions; n, d, q are the network's, the other letters are learnt from the arrays
WEIGHTS = "W:nn U:nd b:n C:qn D:qd c:q slope:n"
ALWAYS, BALL = "format: digest: lower:d upper:d point:d anchor:n", " radius: centre:d scale:d"
LABEL, ROWS, ETA, METRIC = " label:", " rows:Rq offset:R clause:R", " eta:n", " metric:n modulus:"
PROOF = """ box_lower:n box_upper:n bound_multiplier:Tn bound_neuron:T bound_side:T bound_stage:T
    tree:N leaf_multiplier:Ln leaf_mix:LR"""  # absent from a counter-example
INTEGERS = "format label clause bound_neuron bound_side bound_stage tree"


class RejectedError(Exception):
    """The certificate does not establish what it says."""


def require(condition: Any, message: str) -> None:
    """Reject unless the condition holds everywhere; NaN compares false and is rejected as well."""
    if not np.all(condition):
        raise RejectedError(message)


def typed(found: dict[str, Array], fields: str, sizes: dict[str, int]) -> Fields:
    """Exactly these fields, finite, of the right kinds and shapes, as float64 or int64."""
    shapes = dict(field.split(":") for field in fields.split())
    strange = found.keys() ^ shapes.keys()
    require(not strange, f"fields missing or unknown: {sorted(strange)}")
    result: Fields = {name: str(found[name]) for name in shapes if name == "digest"}
    for name in shapes.keys() - result.keys():
        value, letters, kind = found[name], shapes[name], "i" if name in INTEGERS.split() else "f"
        require(value.dtype.kind == kind and value.dtype.itemsize <= 8, f"{name}: {value.dtype}")
        expected = tuple(map(sizes.setdefault, letters, value.shape))
        require(len(letters) == value.ndim and value.shape == expected, f"{name}: {value.shape}")
        require(np.isfinite(value), f"{name} is not finite")
        result[name] = value.astype(np.float64 if kind == "f" else np.int64)
    return result


def read_network(path: str) -> Fields:
    """W, U, b, C, c; D, slope: zero if absent; `output`: C, D and c with a last output of 1."""
    found = dict(np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False))
    require(found.keys() >= set("WUbCc"), "the weights lack one of W, U, b, C, c")
    found.setdefault("D", np.zeros(found["C"].shape[:1] + found["U"].shape[1:]))
    net = typed({"slope": np.zeros(found["b"].shape)} | found, WEIGHTS, {})
    require((net["slope"] >= 0) & (net["slope"] <= 1), "slope is outside of [0, 1]")
    digest = hashlib.sha256()
    for name in ("W", "U", "b", "C", "D", "c", "slope"):
        digest.update(f"{name}{list(net[name].shape)};".encode())
        digest.update(np.ascontiguousarray(net[name]).astype("<f8").tobytes())
    ends = 0 * net["W"][:1], 0 * net["U"][:1], np.ones(1)
    output = [np.concatenate([net[k], end]) for k, end in zip("CDc", ends, strict=True)]
    return net | {"digest": digest.hexdigest(), "output": output}


def read_certificate(path: str, net: Fields) -> Fields:
    """Its fields, the point in the region; rows on (y, 1); `gamma`: relative error of sums."""
    (n, d), q = net["U"].shape, len(net["c"])
    found = dict(np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False))
    fields = ALWAYS + (LABEL if "label" in found else ROWS) + PROOF * ("tree" in found)
    fields += (ETA if "eta" in found else METRIC) + BALL * ("radius" in found)
    cert = typed(found, fields, {"n": n, "d": d, "q": q})
    require(cert["format"] == 1, f"format {cert['format']} is unknown")
    require(cert["digest"] == net["digest"], "the digest is that of another network")
    if "label" in cert:
        label, cert["offset"], cert["clause"] = cert["label"], np.zeros(q - 1), np.arange(q - 1)
        require(0 <= label < q, f"label {label} is not a class")
        cert["rows"] = np.eye(q)[label] - np.delete(np.eye(q), label, axis=0)
    cert["rows"] = np.column_stack([cert["rows"], cert["offset"]])
    cert["clauses"] = len(set(cert["clause"]))
    require({0, *cert["clause"]} == set(range(cert["clauses"])), "clauses must be 0, 1, ...")
    cert["gamma"] = 2 * (2 * n + d + q + len(cert["rows"]) + 40) * 2.0**-53
    x, cert["most"] = cert["point"], np.maximum(abs(cert["lower"]), abs(cert["upper"]))
    require((cert["lower"] <= x) & (x <= cert["upper"]), "the point is outside of the box")
    if "radius" in cert:
        away = np.linalg.norm((x - cert["centre"]) / cert["scale"]) * (1 + cert["gamma"]) + TINY
        require(away <= cert["radius"], "the point is outside of the ball")
    return cert


def anchor_error(net: Fields, cert: Fields) -> tuple[Array, Array, Array]:
    """Proves well-posedness; e, v, f with ``|z* - anchor| <= e, |v* - v| <= f`` at the point."""
    W, U, b, z, x = net["W"], net["U"], net["b"], cert["anchor"], cert["point"]
    v, size, one, gamma = W @ z + U @ x + b, abs(W), np.eye(len(b)), cert["gamma"]
    rounding = gamma * (size @ abs(z) + abs(U) @ abs(x) + abs(b)) + TINY
    rho = (abs(z - np.maximum(v, net["slope"] * v)) + rounding) * (1 + gamma)  # the residual
    if "eta" in cert:
        eta = cert["eta"]
        room = (one - W * one - size * (1 - one)) @ eta - gamma * ((one + size) @ eta) - TINY
        require((eta > 0) & (room > 0), "the max norm does not prove well-posedness")
        e = eta * np.max(rho / np.minimum(eta, room))
    else:
        metric, m = cert["metric"][:, None], cert["modulus"]
        require((metric > 0) & (m > 0), "the metric and the modulus must be positive")
        form, sizes = metric * ((1 - m) * one - W), metric * ((1 + m) * one + size)
        # more than the errors of forming the matrix and of its Cholesky factorisation
        shift = 2 * gamma * (2 * np.trace(sizes) + (sizes.sum(0) + sizes.sum(1)).max()) + TINY
        factor = np.linalg.cholesky(form + form.T - shift * one)  # raises if it is indefinite
        require(np.isfinite(factor), "the metric does not prove well-posedness")
        root = np.sqrt(cert["metric"])
        one, two = np.linalg.norm([root * rho, root * (size @ rho)], axis=1) + TINY
        e = (one + two / m) / root
    e = e * (1 + 4 * gamma) + TINY
    return e, v, (size @ e + rounding) * (1 + gamma)


def minimum(cert: Fields, d: Array) -> tuple[Array, Array]:
    """``min_x d.x`` over the region for rows (B, d), and the sum of the magnitudes of its terms."""
    f, value, size = np.zeros_like(d), np.zeros(len(d)), np.zeros(len(d))
    if "radius" in cert:  # for any f: at least min (d - f).x over the box + min f.x over the ball
        c, scale, radius = cert["centre"], cert["scale"], cert["radius"]
        step = radius / np.maximum(np.linalg.norm(scale * d, axis=1), TINY)[:, None]
        few, many = np.zeros_like(step), np.full_like(step, 60.0)
        for k in range(40):  # bisect Lagrange's multiplier: clip d as much as the box asks for
            power = few if k == 39 else (few + many) / 2
            reach = np.maximum(step * 2**power * scale**2, TINY)
            f = np.clip(d, (c - cert["upper"]) / reach, (c - cert["lower"]) / reach)
            inside = np.linalg.norm(f * reach / scale, axis=1)[:, None] <= radius
            few, many = np.where(inside, power, few), np.where(inside, many, power)
        length = radius * (np.linalg.norm(scale * f, axis=1) + TINY)
        value, size = f @ c - length, abs(f) @ abs(c) + length
    value = value + np.minimum((d - f) * cert["lower"], (d - f) * cert["upper"]).sum(1)
    return value, size + (abs(d) + 2 * abs(f)) @ cert["most"]


def dual_bound(net: Fields, cert: Fields, goal: Any, p: Array, box: Any) -> Array:
    """Lower bounds of rows (R z + S x + t), maps = (R, S, t), for v in the box, from any p."""
    (maps, rows, sizes), (low, high) = goal, box  # sizes: magnitudes of what rows are sums of
    pairs = list(zip(maps, (net["W"], net["U"], net["b"]), strict=True))
    lam, d, value = (rows @ a + p @ k for a, k in pairs)
    lam_size, d_size, size = (sizes @ abs(a) + abs(p) @ abs(k) for a, k in pairs)
    x_value, x_size = minimum(cert, d)
    kinks = (low, np.clip(0, low, high), high)  # phi is linear in between
    v_values = [lam * np.maximum(v, net["slope"] * v) - p * v for v in kinks]
    most = np.maximum(abs(low), abs(high))
    size = size + x_size + d_size @ cert["most"] + ((lam_size + abs(p)) * most).sum(1)
    slack = cert["gamma"] * size + TINY * (1 + cert["most"].sum() + most.sum(1))
    return value + x_value + np.min(v_values, axis=0).sum(1) - slack


def check_bounds(net: Fields, cert: Fields) -> Array:
    """Preactivation bounds (low, high) that hold on the whole region."""
    low, high, (_, v, error) = cert["box_lower"], cert["box_upper"], anchor_error(net, cert)
    require((low < v - error) & (v + error < high), "the anchor is not inside of the box")
    neuron, side, stage = cert["bound_neuron"], cert["bound_side"], cert["bound_stage"]
    known = (neuron >= 0) & (neuron < len(low)) & (abs(side) == 1)
    require(known & (stage >= 0) & (stage < len(stage)), "no such neuron, side or stage")
    for k in range(stage.max(initial=0) + 1):
        proved, zero = np.full((2, len(low)), -np.inf), np.clip(0, low, high)
        for part in np.array_split(np.flatnonzero(stage == k), len(stage) // CHUNK + 1):
            i, sign, p = neuron[part], side[part], cert["bound_multiplier"][part]
            row = sign[:, None] * np.eye(len(low))[i]
            goal = (net["W"], net["U"], net["b"]), row, abs(row)
            bound = dual_bound(net, cert, goal, p, (low + 0 * row, high + 0 * row))
            # where v_i has the other sign, zero bounds it; that leaves the case of this sign
            case = np.where(row < 0, zero, low), np.where(row > 0, zero, high)
            bound = np.maximum(bound, np.minimum(dual_bound(net, cert, goal, p, case), 0))
            np.maximum.at(proved, ((1 - sign) // 2, i), bound)
        require((k > 0) | (proved[0] > low) & (-proved[1] < high), "a neuron is not contained")
        low, high = np.maximum(low, proved[0]), np.minimum(high, -proved[1])
        require(low <= high, "the bounds are empty")
    return np.stack([low, high])


def cases(cert: Fields, n: int) -> list[tuple[Array, list[int]]]:
    """Signs of the split neurons (n,) and the clause of every leaf; no case is missing."""
    leaves: list[tuple[Array, list[int]]] = []
    todo, unit = [(np.zeros(n), [k]) for k in reversed(range(cert["clauses"]))], np.eye(n)
    for neuron in cert["tree"]:
        require(len(todo) > 0, "the tree goes on after its last leaf")
        sign, clause = todo.pop()
        if neuron == -1:
            leaves.append((sign, clause))
        else:
            require(0 <= neuron < n and sign[neuron] == 0, f"bad split of neuron {neuron}")
            todo += [(sign + unit[neuron], clause), (sign - unit[neuron], clause)]
    require(not todo, "the tree lacks cases")
    return leaves


def check_forest(net: Fields, cert: Fields, bounds: Array) -> float:
    """Every leaf of every clause is proved (an empty interval proves anything); smallest bound."""
    signs, clause = map(np.array, zip(*cases(cert, len(net["b"])), strict=True))
    (low, high), mix, least = bounds, cert["leaf_mix"], np.inf
    require(mix.shape == (len(signs), len(cert["rows"])), "mix: wrong numbers of leaves or rows")
    require((mix >= 0) & ((mix == 0) | (cert["clause"] == clause)), "a leaf mixes wrong rows")
    for part in np.array_split(np.arange(len(mix)), len(mix) // CHUNK + 1):
        sign, m, p = signs[part], mix[part], cert["leaf_multiplier"][part]
        box = np.where(sign > 0, low.clip(min=0), low), np.where(sign < 0, high.clip(max=0), high)
        goal = net["output"], m @ cert["rows"], m @ abs(cert["rows"])
        bound = dual_bound(net, cert, goal, p, box)
        require(bound > 0, f"a leaf is not proved: its bound is {bound.min()}")
        least = min(least, bound.min())
    return float(least)


def check_counterexample(net: Fields, cert: Fields) -> float:
    """At the point all rows of some clause are negative for sure; the largest of them."""
    (C, D, c), z, x, rows = net["output"], cert["anchor"], cert["point"], cert["rows"]
    e = anchor_error(net, cert)[0]
    size = abs(rows) @ (abs(C) @ (abs(z) + e) + abs(D) @ abs(x) + abs(c))
    most = rows @ (C @ z + D @ x + c) + abs(rows) @ (abs(C) @ e) + cert["gamma"] * size + TINY
    worst = min(most[cert["clause"] == k].max() for k in range(cert["clauses"]))
    require(worst < 0, f"the point is no counter-example for sure: {worst}")
    return float(worst)


def check(certificate: str, weights: str) -> tuple[str, float]:
    """The verdict that a certificate establishes, with a sure margin; raises `RejectedError`."""
    try:
        net = read_network(weights)
        cert = read_certificate(certificate, net)
        if "tree" not in cert:
            return "falsified", check_counterexample(net, cert)
        return "verified", check_forest(net, cert, check_bounds(net, cert))
    except Exception as error:  # also a damaged file, or a matrix without a Cholesky factor
        raise RejectedError(str(error) or repr(error)) from error


if __name__ == "__main__":
    try:
        print("accepted: {}, margin {:.6g}".format(*check(*sys.argv[1:])))  # noqa: T201
    except (RejectedError, TypeError) as problem:
        sys.exit(f"rejected: {problem}")
