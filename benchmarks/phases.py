"""The exact minimum of a small network by brute force over the phases of its neurons."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.optimize import linprog

from wellposed.certify.dual import Rows
from wellposed.core.network import Network
from wellposed.core.sets import Box


def brute_force(network: Network, region: Box, rows: Rows) -> float:
    """The smallest value of one row over one box: a linear programme for each choice of phases."""
    W, U, b = network.W.numpy(), network.U.numpy(), network.b.numpy()
    s, n = network.slope.numpy(), network.n
    limits = np.stack([region.lower[0].numpy(), region.upper[0].numpy()], 1)
    best = np.inf
    for phases in product((False, True), repeat=n):
        on = np.array(phases)
        d = np.where(on, 1.0, s)
        gain = np.linalg.solve(np.eye(n) - W * d, np.column_stack([U, b]))
        sign = np.where(on, -1.0, 1.0)[:, None]
        cost = (rows.state[0].numpy() * d) @ gain
        found = linprog(
            cost[:-1], sign * gain[:, :-1], -sign[:, 0] * gain[:, -1], bounds=limits,
            method="highs",
        )  # fmt: skip
        if found.status == 0:
            best = min(best, float(found.fun) + float(cost[-1]) + float(rows.offset[0]))
    return best
