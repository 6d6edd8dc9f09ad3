"""Ways to certify one trained network on the same images: certified accuracy and CPU time."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import process_time

import torch
from torch import Tensor, nn

import wellposed as wp
from benchmarks.common import ROOT, Report, note, trained_nemon
from wellposed.certify import enclose, lipschitz
from wellposed.certify.centre import approximate_equilibrium
from wellposed.certify.contained import contained_zonotope
from wellposed.certify.crown import crown
from wellposed.certify.margins import box_margins
from wellposed.certify.zonotope import zonotope_enclosure, zonotope_margins
from wellposed.core.network import Network
from wellposed.core.sets import Box
from wellposed.errors import NotCertifiableError
from wellposed.experiments.certificates import certify_model
from wellposed.experiments.certified import certified_radii
from wellposed.experiments.workspace import Workspace
from wellposed.verify.branch import Budget
from wellposed.verify.cascade import verify
from wellposed.verify.classifier import Classifier
from wellposed.verify.exact import Programme
from wellposed.verify.reduced import Reduced
from wellposed.verify.verdicts import Tier

SAMPLES = 100
FEW = 20  # images for the mixed-integer solver
RADII = (0.01, 0.02, 0.05)
SECONDS = 10.0
Method = Callable[[Tensor, Tensor, Box, float], Tensor]


class Peers:
    """Every method as a function from images, labels and boxes to what it certifies."""

    def __init__(self, model: nn.Sequential, shape: tuple[int, ...]) -> None:
        self.model = model
        self.task = Classifier.of(model, shape)
        self.published = _published(model, shape)

    def pgd(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """What an attack leaves standing: no method can certify more."""
        return wp.PGD("max", eps, 40, restarts=2).attack(
            self.model, x, y, torch.Generator().manual_seed(0)
        ).correct  # fmt: skip

    def l0(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The published Lipschitz bound: the margin exceeds ``2 L eps``."""
        return self._gap(x, y) > 2 * self.published * eps

    def l3(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The componentwise bound of every pair of logits."""
        return certified_radii(self.model, x, y).radii > eps

    def l4(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The componentwise bound with the slopes that occur on the box of each image."""
        gap = self._gap(x, y)
        bound = [lipschitz(self.model, region=Box(*pair)).value for pair in _each(box)]
        return gap > 2 * torch.tensor(bound, dtype=torch.float64) * eps

    def absolute(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """Boxes through the last layer: the class's smallest logit exceeds all others' largest."""
        logits = enclose(self.model, box)
        own = logits.lower.gather(1, y[:, None])[:, 0]
        return own > logits.upper.scatter(1, y[:, None], -torch.inf).amax(1)

    def relative(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """Boxes of states, and the difference of two rows of the last layer on them."""
        return (box_margins(self.model, box, y) > 0).all(1)

    def unsound(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The embedded network iterated from zero, averaged, to a relative change of 1e-3.

        As published, and no enclosure: iterates from zero approach the box from inside, and nothing
        is rounded outward.
        """
        net, inside = self._network, self.task.enter(box).box
        own = net.W.diagonal()
        off = net.W - torch.diag(own)
        middle = inside.centre @ net.U.mT + net.b
        spread = inside.radius @ net.U.abs().mT
        step = 1 / (1 - own.clamp(max=0).min())
        low = high = torch.zeros(len(x), net.n, dtype=torch.float64)
        for _ in range(500):
            s = (low + high) / 2 @ off.mT + middle
            t = (high - low) / 2 @ off.abs().mT + spread
            new_low = low + step * (net.phi(s - t + own * low) - low)
            new_high = high + step * (net.phi(s + t + own * high) - high)
            moved = float((new_high - high).abs().amax() + (new_low - low).abs().amax())
            low, high = new_low, new_high
            if moved < 1e-3 * float(high.abs().amax()):
                break
        return self._positive(low, high, y)

    def plain(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """``z <- relu(W z + U x + b)`` in intervals, from the equilibrium of the centre.

        Counts where the widened intervals contain their image, which then holds all equilibria;
        works only where ``|W|`` itself contracts. Not rounded outward.
        """
        net, inside = self._network, self.task.enter(box).box
        middle = inside.centre @ net.U.mT + net.b
        spread = inside.radius @ net.U.abs().mT

        def image(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
            s = (low + high) / 2 @ net.W.mT + middle
            t = (high - low) / 2 @ net.W.abs().mT + spread
            return net.phi(s - t), net.phi(s + t)

        low = high = net.phi(approximate_equilibrium(net, inside.centre))
        for _ in range(100):
            low, high = (t.clamp(-1e9, 1e9) for t in image(low, high))
        reach = 1e-3 * (high - low) + 1e-9
        low, high = (low - reach).clamp(min=0), high + reach
        inner = image(low, high)
        sure = ((inner[0] >= low) & (inner[1] <= high)).all(1)
        return sure & self._positive(low, high, y)

    def zonotope(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The same relaxation in closed form, on a box grown until it contains its image."""
        net, region = self._network, self.task.enter(box)
        found = zonotope_enclosure(net, region, self.task.wellposed)
        rows = self.task.rows(y)
        lower = zonotope_margins(
            net, region, found.preactivation, rows.state.reshape(len(x), -1, net.n),
            offset=rows.offset.reshape(len(x), -1),
        )  # fmt: skip
        return (lower > 0).all(1)

    def contained(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """Abstract splitting steps on contained zonotopes, as published; not rounded outward."""
        net, region = self._network, self.task.enter(box)
        rows, count = self.task.rows(y), self.task.classes - 1
        sure: list[bool] = []
        for i in range(len(x)):
            found = contained_zonotope(net, region.select(torch.tensor([i])).box)
            some = rows.select(i * count + torch.arange(count))
            sure.append(
                found.contained and bool((found.minimum(some.state) + some.offset > 0).all())
            )
        return torch.tensor(sure)

    def crown(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """Fixed-point CROWN on the boxes."""
        scope = self.task.scope(self.task.enter(box))
        each = torch.arange(len(x)).repeat_interleave(self.task.classes - 1)
        lower, _ = crown(self.task.system, scope.select(each), self.task.rows(y))
        return (lower.reshape(len(x), -1) > 0).all(1)

    def tightened(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """Everything before branching."""
        return self._cascade(x, y, box, Tier.TIGHTENED)

    def branching(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The whole cascade."""
        return self._cascade(x, y, box, Tier.BRANCHING)

    def milp(self, x: Tensor, y: Tensor, box: Box, eps: float) -> Tensor:
        """The mixed-integer programme of every other class, on the boxes; the solver's word."""
        net, region = self._network, self.task.enter(box)
        scope = self.task.scope(region)
        rows, count = self.task.rows(y), self.task.classes - 1
        sure: list[bool] = []
        for i in range(len(x)):
            one = torch.tensor([i])
            bounds = scope.select(one).bounds
            reduced = Reduced.of(net, Box(bounds.lower[0], bounds.upper[0]))
            inside = region.select(one).box
            programme = Programme(reduced, Box(inside.lower[0], inside.upper[0]))
            sure.append(
                all(
                    programme.feasible(
                        rows.select(torch.tensor([i * count + j])), seconds=SECONDS
                    ).status == "infeasible"
                    for j in range(count)
                )
            )  # fmt: skip
        return torch.tensor(sure)

    @property
    def _network(self) -> Network:
        if self.task.network is None:
            raise RuntimeError("the benchmark needs a dense network")
        return self.task.network

    def _cascade(self, x: Tensor, y: Tensor, box: Box, until: Tier) -> Tensor:
        found = verify(self.task, x, y, box, budget=Budget(seconds=SECONDS), until=until)
        return torch.tensor([v.status == "verified" for v in found.verdicts])

    def _positive(self, low: Tensor, high: Tensor, y: Tensor) -> Tensor:
        """Whether all margins are positive on boxes of states, up to rounding."""
        rows = self.task.rows(y)
        state = rows.state.reshape(len(y), -1, self._network.n)
        value = (state @ ((low + high) / 2)[..., None])[..., 0]
        value = value - (state.abs() @ ((high - low) / 2)[..., None])[..., 0]
        return (value + rows.offset.reshape(len(y), -1) > 0).all(1)

    def _gap(self, x: Tensor, y: Tensor) -> Tensor:
        return certified_radii(self.model, x, y).margin


def _published(model: nn.Sequential, shape: tuple[int, ...]) -> float:
    """The published Lipschitz bound, infinite where its hypothesis fails."""
    records = certify_model(model, shape).records
    found = [r for r in records if getattr(r, "rule", "").startswith("L0")]
    return min((float(r.value) for r in found), default=inf)  # type: ignore[attr-defined]


def _each(box: Box) -> list[tuple[Tensor, Tensor]]:
    return list(zip(box.lower, box.upper, strict=True))


def run() -> None:
    """Print and record the tables: a max-norm contraction, and a monotone network that is none."""
    trained_nemon()
    _table("verification", "nemon-mnist", "nemon", "NEMON n = 100", (SAMPLES, FEW))
    if (ROOT / "runs" / "mon-mnist-40").is_dir():
        _table("verification_monotone", "mon-mnist-40", "monotone", "monotone n = 40", (FEW, 5))
    else:
        note("runs/mon-mnist-40 is not there: `wellposed run configs/mon-mnist-40.toml` first")


def _table(name: str, run: str, variant: str, title: str, counts: tuple[int, int]) -> None:
    work = Workspace.open(ROOT / "runs" / run)
    model, _ = work.trained(next(job for job in work.jobs() if job.name == variant))
    many, few = counts
    part = work.parts.test.take(torch.arange(many))
    x, y = part.floats(), part.labels
    peers = Peers(model, tuple(x.shape[1:]))
    methods: dict[str, tuple[str, Method, int]] = {
        "pgd": ("PGD, 40 steps, 2 starts (upper bound)", peers.pgd, many),
        "l0": ("Lipschitz L0, published", peers.l0, many),
        "l3": ("Lipschitz L3, pairs of logits", peers.l3, many),
        "l4": ("Lipschitz L4, slopes on the box", peers.l4, few),
        "interval_plain": ("plain intervals (not rounded)", peers.plain, many),
        "interval_from_zero": ("embedded intervals from zero (UNSOUND)", peers.unsound, many),
        "boxes_absolute": ("boxes, every logit by itself", peers.absolute, many),
        "boxes_relative": ("boxes, differences of logits", peers.relative, many),
        "contained": ("contained zonotope (not rounded)", peers.contained, many),
        "zonotope": ("closed-form zonotope, same relaxation", peers.zonotope, many),
        "crown": ("fixed-point CROWN", peers.crown, many),
        "tightened": ("cascade before branching", peers.tightened, many),
        "branching": ("cascade with branching, 10 s", peers.branching, many),
        "milp": ("MILP, 10 s a class (solver's word)", peers.milp, few),
    }
    report = Report(
        name,
        f"Certified accuracy on the first {many} test images, {title} on MNIST",
        ("method", *[f"eps {eps:g}, %" for eps in RADII], *[f"CPU s at {e:g}" for e in RADII]),
        "python -m benchmarks verification",
    )
    for key, (label, method, count) in methods.items():
        shares: list[float] = []
        times: list[float] = []
        try:
            for eps in RADII:
                images, labels = x[:count], y[:count]
                box = Box.around(images, eps).clip(0.0, 1.0)
                begin = process_time()
                good = method(images, labels, box, eps)
                times.append((process_time() - begin) / count)
                shares.append(float(good.double().mean()))
        except NotCertifiableError as error:
            note(f"{label}: does not apply: {error.message}")
            report.row(label, *["-"] * (2 * len(RADII)))
            continue
        for eps, share, seconds in zip(RADII, shares, times, strict=True):
            report.metrics[f"{key}_accuracy@{eps:g}"] = share
            report.metrics[f"{key}_cpu_seconds@{eps:g}"] = seconds
            note(f"{label} at {eps:g}: {100 * share:.1f} % in {seconds:.4f} CPU s an image")
        mark = "" if count == many else f", first {count}"
        report.metrics[f"{key}_images"] = count
        report.row(label + mark, *[f"{100 * s:.1f}" for s in shares], *times)
    report.finish()
