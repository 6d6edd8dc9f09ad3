"""The network as one layer of a mixed-integer linear programme, and its linear relaxation.

An equilibrium network is an equation, not a loop, so that one binary an open neuron encodes it
exactly. The solver works with tolerances: its answers are hints. A point is to be evaluated on
the network; "infeasible" is to be proved by `branch`, or by multipliers on the leaves of a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csc_array, hstack, vstack
from torch import Tensor

from wellposed.certify.dual import Rows
from wellposed.core.sets import Box
from wellposed.errors import ConfigError
from wellposed.verify.reduced import Reduced

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Hint:
    """What the mixed-integer solver says; nothing is proved by it.

    Args:
        status: Whether it found an input with ``r z + s x + t <= cut``.
        point: That input, clipped to the region, shape (d,).
        nodes: Nodes of its tree.
        seconds: Time spent.
    """

    status: Literal["feasible", "infeasible", "unknown"]
    point: Tensor | None
    nodes: int
    seconds: float


@final
@dataclass(frozen=True, eq=False)
class Relaxed:
    """The optimum of the linear relaxation as the solver sees it.

    Args:
        value: The minimum; infinite where the node is empty.
        p: Multipliers of the open neurons, shape (k,); weak duality makes a bound of them. For an
            empty node those of the row 0, for which they prove `excess`; multiples prove more.
        point: The minimising input, shape (d,); the centre where the node is empty.
        excess: How far an empty node is from having a point; 0 if it has one.
        mix: Weights of the rows, not negative, of sum 1; zero for an empty node.
        gap: ``|z_i - phi(v_i)|`` at the optimum, shape (k,).
    """

    value: float
    p: Tensor
    point: Tensor
    excess: float
    mix: Tensor
    gap: Tensor


@final
class Programme:
    """Variables ``(v, z, e)`` with ``x = centre + radius e``, and the triangles of the neurons.

    Args:
        reduced: The open neurons.
        region: One box of inputs, of shape (d,).

    Raises:
        ConfigError: The region is not a single box over the network's inputs.
    """

    def __init__(self, reduced: Reduced, region: Box) -> None:
        if region.shape != (reduced.whole.d,):
            raise ConfigError(
                f"The region has shape {region.shape}, expected ({reduced.whole.d},): one box."
            )
        self.reduced, self.region = reduced, region
        self._centre = region.centre.numpy()
        self._radius = ((region.upper - region.lower) / 2).numpy()
        eye, U = np.eye(reduced.k), reduced.U.numpy()
        self._equation = csc_array(np.hstack([eye, -reduced.W.numpy(), -U * self._radius]))
        self._right = reduced.b.numpy() + U @ self._centre

    def feasible(self, rows: Rows, *, cut: float = 0.0, seconds: float = 60.0) -> Hint:
        """Search an input of the region with ``r z + s x + t <= cut``.

        Feasibility with a cut-off, not minimisation: the solver may stop at its first point.
        ``z - v <= (1 - s)(-l)(1 - delta)``, ``z - s v <= (1 - s) h delta``, ``delta`` in {0, 1}.

        Args:
            rows: One row, on the whole network.
            cut: Largest value that counts.
            seconds: Time limit; 0 asks nothing and answers "unknown".
        """
        start = perf_counter()
        if seconds <= 0:
            return Hint("unknown", None, 0, 0.0)
        k, d = self.reduced.k, len(self._centre)
        costs, offsets = self._costs(rows)
        cost, offset = costs[0], float(offsets[0])
        s, low, high = (t.numpy() for t in self._neurons())
        eye, none = np.eye(k), np.zeros((k, d))
        scale = float(np.abs(cost).max()) or 1.0
        small, large = -(1 - s) * low, (1 - s) * high
        blocks = [
            self._wide(self._equation, k),
            np.hstack([-eye, eye, none, np.diag(small)]),
            np.hstack([-np.diag(s), eye, none, np.diag(-large)]),
            np.hstack([-eye, eye, none, 0 * eye]),
            np.hstack([-np.diag(s), eye, none, 0 * eye]),
            np.concatenate([cost, np.zeros(k)])[None] / scale,
        ]
        none, free = np.zeros(k), np.full(k, np.inf)
        least = np.concatenate([self._right, -free, -free, none, none, [-np.inf]])
        most = np.concatenate([self._right, small, none, free, free, [(cut - offset) / scale]])
        lower = np.concatenate([low, s * low, -np.ones(d), np.zeros(k)])
        upper = np.concatenate([high, high, np.ones(d), np.ones(k)])
        # the annotations of `Bounds` know single numbers only
        ends: Any = (lower, upper)
        system: Any = (csc_array(vstack([csc_array(block) for block in blocks])), least, most)
        found = milp(
            np.zeros(2 * k + d + k),
            constraints=LinearConstraint(*system),
            bounds=Bounds(*ends),
            integrality=np.concatenate([np.zeros(2 * k + d), np.ones(k)]),
            options={"time_limit": float(seconds)},
        )
        point = None if found.x is None else self._input(found.x[2 * k : 2 * k + d])
        status = "infeasible" if found.status == 2 else "unknown" if point is None else "feasible"
        nodes = int(found.mip_node_count or 0)
        return Hint(status, point, nodes, perf_counter() - start)

    def relax(self, rows: Rows, phases: Tensor) -> Relaxed:
        """The smallest value of the largest row on the linear relaxation of a node.

        By duality it is the bound of the rows in some mixture, with the multipliers of the
        equations.

        Args:
            rows: One or more, on the whole network.
            phases: 1 on, -1 off, 0 open; shape (k,).
        """
        k, d = self.reduced.k, len(self._centre)
        triangles, limits, lower, upper = self._triangles(phases.numpy())
        costs, offsets = self._costs(rows)
        # one more variable, at least as large as every row
        above = csc_array(np.hstack([costs, -np.ones((len(costs), 1))]))
        wide = vstack([hstack([triangles, csc_array((len(limits), 1))]), above])
        free: Array = np.array([np.inf])
        box: Array = np.stack(
            [
                np.concatenate([lower, -np.ones(d), -free]),
                np.concatenate([upper, np.ones(d), free]),
            ]
        )
        goal = np.zeros(box.shape[1])
        goal[-1] = 1.0
        right = np.concatenate([limits, -offsets])
        found = linprog(
            goal, wide, right, self._wide(self._equation, 1), self._right, box.T, method="highs"
        )
        if found.status == 0:
            point: Array = np.array(found.x, dtype=np.float64)
            p = torch.from_numpy(np.array(found.eqlin.marginals, dtype=np.float64))
            mix = np.array(found.ineqlin.marginals, dtype=np.float64)[len(limits) :]
            weights = torch.from_numpy(np.maximum(-mix, 0.0))
            gap = torch.from_numpy(np.abs(point[k : 2 * k] - self._phi(point[:k])))
            x = self._input(point[2 * k : -1])
            return Relaxed(float(found.fun), p, x, 0.0, weights, gap)
        p, excess = self._ray(triangles, limits, box[:, :-1])
        centre, none = torch.from_numpy(self._centre.copy()), torch.zeros(len(costs)).double()
        return Relaxed(np.inf, p, centre, excess, none, torch.zeros(k).double())

    def interior(self, phases: Tensor) -> Tensor | None:
        """An input of a node's relaxation, as far from the kinks of decided neurons as it goes."""
        k, d = self.reduced.k, len(self._centre)
        triangles, limits, lower, upper = self._triangles(phases.numpy())
        e = phases.double().numpy()
        # v_i of a phase is to be this share of its range away from zero
        room = np.where(e > 0, upper[:k], np.where(e < 0, -lower[:k], 0.0))
        away = np.hstack([-np.diag(e), np.zeros((k, k + d)), room[:, None]])
        wide = vstack([hstack([triangles, csc_array((len(limits), 1))]), csc_array(away)])
        cost = np.zeros(2 * k + d + 1)
        cost[-1] = -1.0
        box: Array = np.stack(
            [
                np.concatenate([lower, -np.ones(d), [0.0]]),
                np.concatenate([upper, np.ones(d), [1.0]]),
            ]
        )
        right = np.concatenate([limits, np.zeros(k)])
        found = linprog(
            cost, wide, right, self._wide(self._equation, 1), self._right, box.T, method="highs"
        )
        point = None if found.x is None else np.array(found.x, dtype=np.float64)
        return None if point is None else self._input(point[2 * k : 2 * k + d])

    def _ray(self, triangles: csc_array, limits: Array, box: Array) -> tuple[Tensor, float]:
        """Multipliers that prove a node empty: those of the smallest violation of the equations."""
        k = self.reduced.k
        eye = csc_array(np.eye(k))
        equation = hstack([self._equation, eye, -eye])
        wide = hstack([triangles, csc_array((len(limits), 2 * k))])
        room = np.stack([np.zeros(2 * k), np.full(2 * k, np.inf)])
        cost = np.concatenate([np.zeros(box.shape[1]), np.ones(2 * k)])
        found = linprog(
            cost, wide, limits, equation, self._right, np.hstack([box, room]).T, method="highs"
        )
        if found.status != 0:
            return torch.zeros(k, dtype=torch.float64), 0.0
        p = torch.from_numpy(np.array(found.eqlin.marginals, dtype=np.float64))
        return p, float(found.fun)

    def _triangles(self, phases: Array) -> tuple[csc_array, Array, Array, Array]:
        """``A (v, z, e) <= limits`` and bounds of ``(v, z)`` with the phases of a node."""
        s, low, high = (t.numpy() for t in self._neurons())
        d = len(self._centre)
        low, high = np.where(phases > 0, 0.0, low), np.where(phases < 0, 0.0, high)
        rise = np.where(phases == 0, (high - s * low) / (high - low), np.where(phases > 0, 1, s))
        start = np.where(phases == 0, (s - rise) * low, 0.0)
        eye, none = np.eye(len(s)), np.zeros((len(s), d))
        above = np.hstack([-np.diag(rise), eye, none])
        one = np.hstack([eye, -eye, none])
        other = np.hstack([np.diag(s), -eye, none])
        limits = np.concatenate([start, np.zeros(2 * len(s))])
        return (
            csc_array(np.vstack([above, one, other])),
            limits,
            np.concatenate([low, s * low]),
            np.concatenate([high, np.maximum(high, s * high)]),
        )

    def _neurons(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.reduced.slope, self.reduced.lower, self.reduced.upper

    def _phi(self, v: Array) -> Array:
        return np.maximum(v, self.reduced.slope.numpy() * v)

    def _costs(self, rows: Rows) -> tuple[Array, Array]:
        """Coefficients of ``(v, z, e)`` and the constants, one row each."""
        small = self.reduced.rows(rows)
        count = len(small.offset)
        s = torch.zeros(count, len(self._centre)) if small.input is None else small.input
        s = s.double().numpy()
        none = np.zeros((count, self.reduced.k))
        costs = np.hstack([none, small.state.numpy(), s * self._radius])
        return costs, small.offset.numpy() + s @ self._centre

    def _wide(self, matrix: csc_array, extra: int) -> csc_array:
        return csc_array(hstack([matrix, csc_array((len(self._right), extra))]))

    def _input(self, e: Array) -> Tensor:
        x = torch.from_numpy(self._centre + self._radius * np.array(e, dtype=np.float64))
        return torch.minimum(torch.maximum(x, self.region.lower), self.region.upper)
