"""Soundness: every method against random and attacked inputs, verdicts against brute force.

An input counts as a violation only beyond the proved error of its own equilibrium. "Stopped" means
that an iteration was cut off after so many steps: no bound may depend on convergence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import final

import torch
from torch import Tensor

from benchmarks.common import Report, note
from benchmarks.phases import brute_force
from wellposed.certify import adjoint
from wellposed.certify.assume import crown_enclosure
from wellposed.certify.assumed import assumed_bound
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.fallback import lipschitz_box
from wellposed.certify.growth import Search
from wellposed.certify.interval import interval_enclosure
from wellposed.certify.krawczyk import krawczyk
from wellposed.certify.tighten import tighten
from wellposed.certify.wellposed import Wellposed, wellposedness
from wellposed.certify.zonotope import zonotope_enclosure
from wellposed.core.activations import Activation, LeakyReLU, ReLU, Tanh
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.verify.branch import Budget, Problem, branch
from wellposed.verify.exact import Programme
from wellposed.verify.reduced import Reduced

BOXES, POINTS = 25, 100  # of a network, of a box
STOPS = (0, 1, 2, 60)
INPUTS, CLASSES = 4, 3
CLOSE = 1e-6  # minima nearer to zero are beyond the tolerance of linear programmes


@final
@dataclass(frozen=True, eq=False)
class Case:
    """A network, boxes of inputs, and inputs in them with proved equilibria.

    Args:
        network: Explicit weights.
        witness: Why it is well posed.
        region: Shape (BOXES, INPUTS).
        rows: Differences of the first logit and one other a box.
        v: Preactivations, shape (POINTS, BOXES, n).
        off: Bound of their error.
        value: The rows at the inputs, shape (POINTS, BOXES).
        error: Bound of its error.
    """

    network: Network
    witness: Wellposed
    region: Box
    rows: Rows
    v: Tensor
    off: Tensor
    value: Tensor
    error: Tensor

    @property
    def system(self) -> DenseSystem:
        """The network from its adjoint side."""
        witness = self.witness
        return DenseSystem(self.network, witness.weights if witness.kind == "monotone" else None)


def draw(family: str, n: int, kind: Activation, dtype: torch.dtype, seed: int) -> Network:
    """A network with random weights of one precision: a max-norm contraction or a monotone one."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    if family == "max-norm":
        A = normal(n, n)
        own = torch.diag(2 * torch.rand(n, generator=g, dtype=dtype) ** 4)
        weight = 0.9 * A / A.abs().sum(1, keepdim=True) - own
    else:
        F, S = (1.3 * normal(n, n) / n**0.5 for _ in range(2))
        weight = 0.2 * torch.eye(n, dtype=dtype) - F.mT @ F + S - S.mT
    # neurons in units of their own
    scale = 10.0 ** (torch.rand(n, generator=g, dtype=dtype) * 4 - 2)
    return Network.of(
        scale[:, None] * weight / scale,
        scale[:, None] * normal(n, INPUTS),
        0.5 * scale * normal(n),
        normal(CLASSES, n) / scale,
        normal(CLASSES),
        activation=kind,
    )


def prepare(network: Network, seed: int) -> Case:
    """Boxes of sizes from 1e-4 to 1, random and attacked inputs, and what is true there."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(BOXES, INPUTS, generator=g).double()
    radius = 10.0 ** (-4 * torch.rand(BOXES, 1, generator=g).double())
    region = Box.around(centre, radius)
    other = 1 + torch.arange(BOXES) % (CLASSES - 1)
    C, c = network.C, network.c
    rows = Rows(C[:1] - C[other], None, c[:1] - c[other])
    x = torch.cat([spread(region, POINTS // 2, g), attacked(network, region, rows, g)])
    flat = x.reshape(-1, INPUTS)
    witness = wellposedness(network)
    if network.activation.homogeneous:
        z, far = equilibrium(network, flat, witness)
    else:
        # no proved error of smooth equilibria: their residuals are of this order
        z = network.phi(approximate_equilibrium(network, flat))
        far = 1e-10 * (1 + z.abs().amax(1, keepdim=True)).expand_as(z)
    size = network.b.abs() + flat.abs() @ network.U.abs().mT + z.abs() @ network.W.abs().mT
    off = far @ network.W.abs().mT + 1e-13 * size
    v = network.preactivation(z, flat)
    shape = (len(x), BOXES)
    z, far = z.reshape(*shape, -1), far.reshape(*shape, -1)
    value = (rows.state * z).sum(-1) + rows.offset
    error = (rows.state.abs() * (far + 1e-13 * z.abs())).sum(-1) + 1e-13 * rows.offset.abs()
    return Case(network, witness, region, rows, v.reshape(*shape, -1), off.reshape(*shape, -1),
                value, error)  # fmt: skip


def spread(region: Box, count: int, g: torch.Generator) -> Tensor:
    """Random inputs and random corners."""
    share = torch.rand(count, *region.shape, generator=g).double()
    share[::2] = share[::2].round()
    x = region.lower + share * (region.upper - region.lower)
    return torch.minimum(torch.maximum(x, region.lower), region.upper)


def attacked(network: Network, region: Box, rows: Rows, g: torch.Generator) -> Tensor:
    """Corners along exact gradients of the rows, and of single preactivations up and down."""
    eye, found = torch.eye(network.n).double(), []
    x = spread(region, 1, g)[0]
    for turn in range(POINTS - POINTS // 2):
        v = approximate_equilibrium(network, x, 12)
        slope = network.activation.slope(v)
        which = torch.randint(network.n, (BOXES,), generator=g)
        sign = 1 - 2 * torch.randint(2, (BOXES, 1), generator=g)
        goal = rows.state if turn % 2 else sign * network.W[which]
        inner = torch.linalg.solve(eye - (slope[:, :, None] * network.W).mT, goal[..., None])
        gradient = (inner[..., 0] * slope) @ network.U
        if not turn % 2:
            gradient = gradient + sign * network.U[which]
        x = torch.where(gradient > 0, region.lower, region.upper)
        found.append(x)
        if turn % 10 == 9:
            x = spread(region, 1, g)[0]
    return torch.stack(found)


@contextmanager
def stopped(steps: int) -> Generator[None]:
    """Adjoint iterations end after so many steps."""
    before, adjoint.STEPS = adjoint.STEPS, steps
    try:
        yield
    finally:
        adjoint.STEPS = before


@final
class Tally:
    """Comparisons and violations of every method."""

    def __init__(self) -> None:
        self.checks: dict[str, int] = {}
        self.bad: dict[str, int] = {}
        self.boxes: dict[str, int] = {}

    def enclosed(self, name: str, case: Case, box: Box, proved: Tensor | None = None) -> None:
        """Count preactivations outside a proved box."""
        outside = (case.v + case.off < box.lower) | (case.v - case.off > box.upper)
        self._note(name, outside.any(-1), proved)

    def below(self, name: str, case: Case, bound: Tensor) -> None:
        """Count inputs whose row lies below a proved bound."""
        self._note(name, case.value + case.error < bound, None)

    def _note(self, name: str, wrong: Tensor, proved: Tensor | None) -> None:
        if proved is not None:
            wrong = wrong[:, proved]
        self.checks[name] = self.checks.get(name, 0) + wrong.numel()
        self.boxes[name] = self.boxes.get(name, 0) + wrong.shape[1]
        self.bad[name] = self.bad.get(name, 0) + int(wrong.sum())


def boxes(case: Case, tally: Tally) -> Scope:
    """All enclosures; returns the scope of the best one."""
    net, region, witness = case.network, case.region, case.witness
    best = lipschitz_box(net, region, witness)
    tally.enclosed("Lipschitz box", case, best)
    if witness.kind == "max-norm":
        for k in STOPS:
            best = interval_enclosure(net, region, steps=k)
            tally.enclosed("embedded box", case, best)
    for k in STOPS:
        found = zonotope_enclosure(net, region, witness, search=Search(rounds=k))
        tally.enclosed("zonotope", case, found.preactivation)
        if witness.kind != "max-norm":
            best = found.preactivation
        bare = krawczyk(net, region, search=Search(steps=20 * k, rounds=k))
        tally.enclosed("Krawczyk", case, bare.box, bare.exists)
    if net.activation.homogeneous:
        for k in STOPS[1:]:
            with stopped(k):
                box, proved = crown_enclosure(case.system, region, witness, Search(steps=15))
            tally.enclosed("assumed CROWN box", case, box, proved)
    return Scope.of(case.system, region, best)


def bounds(case: Case, scope: Scope, tally: Tally) -> None:
    """Linear bounds and tightening, cut short."""
    system, rows = case.system, case.rows
    p = torch.zeros(BOXES, case.network.n).double()
    g = torch.Generator().manual_seed(1)
    for size in (0.0, 1e-3, 1.0, 1e6):
        noise = size * torch.randn(p.shape, generator=g).double()
        tally.below("random multipliers", case, dual_bound(system, scope, rows, p + noise))
    for k in STOPS:
        with stopped(k):
            tally.below("fixed-point CROWN", case, crown(system, scope, rows)[0])
            for rounds in (1, 2, 3):
                tight, _ = tighten(system, scope, rounds=rounds)
                tally.enclosed("tightening", case, tight.bounds)
            found = crown(system, tight, rows)[0]
            tally.below("CROWN after tightening", case, found)
            # what is assumed only matters for rows that are not quite proved
            miss = found + 0.1 * (-crown(system, tight, -rows)[0] - found)
            missed = replace(rows, offset=rows.offset - miss)
            tally.below("rows assumed to fail", case, assumed_bound(system, tight, missed) + miss)


def search(case: Case, scope: Scope, tally: Tally) -> None:
    """Branch and bound that ends after some nodes."""
    for k in range(0, BOXES, 5):
        one = torch.tensor([k])
        problem = Problem(case.network, case.system, scope.select(one), case.witness)
        part = Case(case.network, case.witness, case.region.select(one), case.rows.select(one),
                    case.v[:, one], case.off[:, one], case.value[:, one],
                    case.error[:, one])  # fmt: skip
        for nodes in (1, 4, 64):
            budget = Budget(seconds=20.0, nodes=nodes, batch=8, root=10, steps=5)
            (answer,) = branch(problem, part.rows, budget)
            tally.below("branch and bound", part, torch.tensor([answer.lower], dtype=torch.float64))
            if answer.status == "verified":
                tally.below("branch and bound", part, torch.zeros(1))
            (answer,) = branch(problem, part.rows, budget, gap=1e-3)
            tally.below("branch and bound", part, torch.tensor([answer.lower], dtype=torch.float64))


@dataclass
class Exact:
    """How three complete methods agree."""

    cases: int = 0
    verified: int = 0
    undecided: int = 0
    brute: int = 0
    milp: int = 0
    minima: int = 0

    def compare(self, case: Case, k: int) -> None:
        """Decide the row of one box by branching, by the MILP and by brute force."""
        one = torch.tensor([k])
        scope = Scope.of(case.system, case.region, lipschitz_box(case.network, case.region))
        scope, _ = tighten(case.system, scope.select(one))
        rows = case.rows.select(one)
        least = brute_force(case.network, scope.region.box, rows)
        problem = Problem(case.network, case.system, scope, case.witness)
        (answer,) = branch(problem, rows, Budget(seconds=20.0))
        (value,) = branch(problem, rows, Budget(seconds=20.0), gap=1e-4)
        reduced = Reduced.of(case.network, Box(scope.lower[0], scope.upper[0]))
        box = Box(scope.region.box.lower[0], scope.region.box.upper[0])
        hint = Programme(reduced, box).feasible(rows)
        self.cases += 1
        self.verified += answer.status == "verified"
        self.undecided += answer.status == "unknown"
        truth = "verified" if least > 0 else "falsified"
        if abs(least) > CLOSE and answer.status != "unknown":
            self.brute += answer.status != truth
        if abs(least) > CLOSE:
            said = {"infeasible": "verified", "feasible": "falsified"}.get(hint.status, truth)
            self.milp += said != truth or answer.status not in (said, "unknown")
        self.minima += not value.lower - CLOSE <= least <= value.upper + CLOSE


def kinds() -> list[tuple[str, int, Activation, torch.dtype]]:
    """Families, sizes, activations and precisions: 40 networks."""
    names, sizes = ("max-norm", "monotone"), (6, 12)
    activations: tuple[Activation, ...] = (ReLU(), LeakyReLU(0.1), Tanh())
    types = (torch.float32, torch.float64)
    every = list(product(names, sizes, activations, types))
    again = list(product(names, sizes, activations[:2], types))
    return [*every, *again]


def run(make: Callable[[], list[tuple[str, int, Activation, torch.dtype]]] = kinds) -> None:
    """Count violations of all methods, and disagreements of complete ones."""
    tally, exact, points, count = Tally(), Exact(), 0, 0
    for seed, (family, n, kind, dtype) in enumerate(make()):
        network = draw(family, n, kind, dtype, seed)
        case = prepare(network, seed)
        count, points = count + BOXES, points + case.value.numel()
        scope = boxes(case, tally)
        bounds(case, scope, tally)
        if kind.homogeneous:
            search(case, scope, tally)
            if n <= 6:
                for k in range(0, BOXES, 5):
                    exact.compare(case, k)
        note(
            f"{family}, n = {n}, {kind.name}, {dtype}: {sum(tally.bad.values())} violations so far"
        )
    report = Report(
        "soundness",
        f"{points} inputs in {count} boxes",
        ("method", "boxes", "comparisons", "violations"),
    )
    for name, checks in tally.checks.items():
        report.row(name, str(tally.boxes[name]), str(checks), str(tally.bad[name]))
        report.metrics[f"violations@{name}"] = tally.bad[name]
        report.metrics[f"comparisons@{name}"] = checks
    report.metrics |= {
        "boxes": count,
        "points": points,
        "violations": sum(tally.bad.values()),
        "exact_cases": exact.cases,
        "exact_verified": exact.verified,
        "exact_undecided": exact.undecided,
        "disagreements_with_brute_force": exact.brute,
        "disagreements_with_milp": exact.milp,
        "minima_outside_their_interval": exact.minima,
    }
    report.row("brute force over phases", str(exact.cases), str(exact.cases), str(exact.brute))
    report.row("MILP", str(exact.cases), str(exact.cases), str(exact.milp))
    report.row("minimum within its interval", str(exact.cases), str(exact.cases), str(exact.minima))
    report.finish()
