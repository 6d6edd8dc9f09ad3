"""Small networks whose exact answers come from enumeration."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.optimize import linprog

from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope
from wellposed.certify.wellposed import wellposedness
from wellposed.certify.zonotope import zonotope_enclosure
from wellposed.core.activations import LeakyReLU, ReLU
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.verify.branch import Problem


def network(seed, n=5, d=3, q=2, *, leak=0.0, linear=0, skew=2.0):
    """A monotone network with random weights, tilted so that phases are open on unit boxes."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    F, S = normal(n, n) / n**0.5, skew * normal(n, n) / n**0.5
    W = 0.5 * torch.eye(n).double() - F.T @ F + S - S.T
    activation = LeakyReLU(leak) if leak else ReLU()
    mask = torch.arange(n) < linear
    return Network.of(
        W, normal(n, d), 0.3 * normal(n), normal(q, n), normal(q), D=0.1 * normal(q, d),
        activation=activation, linear=mask,
    )  # fmt: skip


def problem(net, region):
    wellposed = wellposedness(net)
    bounds = zonotope_enclosure(net, region, wellposed).preactivation
    system = DenseSystem(net)
    return Problem(net, system, Scope.of(system, region, bounds), wellposed)


def box(d=3, radius=0.5, seed=0):
    g = torch.Generator().manual_seed(1000 + seed)
    return Box.around(torch.randn(1, d, generator=g, dtype=torch.float64), radius)


def output_rows(net, shift=0.0):
    return Rows(net.C, net.D, net.c + shift)


@dataclass
class Cell:
    """One feasible phase pattern: the least value of each row there."""

    on: tuple
    least: list


def cells(net, region, rows):
    """Every phase pattern that some input of the box has, with the exact minima of the rows."""
    n, low, high = net.n, region.lower[0].numpy(), region.upper[0].numpy()
    W, U, b, slope = (t.numpy() for t in (net.W, net.U, net.b, net.slope))
    found = []
    for on in product((0, 1), repeat=n):
        if any(o == 0 and s == 1 for o, s in zip(on, slope, strict=True)):
            continue  # the identity has one phase
        D = np.where(np.array(on) == 1, 1.0, slope)
        inverse = np.linalg.inv(np.eye(n) - W * D)
        G, g = inverse @ U, inverse @ b
        sign = np.where(slope == 1, 0.0, np.where(np.array(on) == 1, -1.0, 1.0))
        least = []
        for r, s, t in zip(rows.state.numpy(), rows.input.numpy(), rows.offset, strict=True):
            answer = linprog(
                r * D @ G + s,
                A_ub=sign[:, None] * G,
                b_ub=-sign * g,
                bounds=list(zip(low, high, strict=True)),
                method="highs",
            )
            if answer.status != 0:
                break
            least.append(answer.fun + float(r * D @ g) + float(t))
        else:
            found.append(Cell(on, least))
    return found


def exact_minimum(net, region, rows):
    return torch.tensor([c.least for c in cells(net, region, rows)]).amin(0)


def states(net, x):
    """Equilibria by Newton steps from every side; asserts that they are right."""
    v = x @ net.U.T + net.b
    for _ in range(60):
        D = torch.where(v > 0, 1.0, net.slope)
        v = torch.linalg.solve(torch.eye(net.n).double() - net.W * D[:, None], x @ net.U.T + net.b)
    good = (v - net.preactivation(net.phi(v), x)).abs().amax(1) < 1e-9
    return net.phi(v[good]), x[good], v[good]


def samples(region, count=400, seed=0):
    g = torch.Generator().manual_seed(seed)
    part = torch.rand(count, region.shape[1], generator=g, dtype=torch.float64)
    part[::2] = part[::2].round()
    return region.lower + part * (region.upper - region.lower)
