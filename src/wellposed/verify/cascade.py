"""Verify classifications: cheap tiers first, an input leaves at the first answer."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import process_time
from typing import final

import torch
from torch import Tensor, nn

from wellposed.attacks.gradient import PGD
from wellposed.certify.ascent import improve
from wellposed.certify.assumed import assumed_bound
from wellposed.certify.crown import crown
from wellposed.certify.dual import Rows, Scope, dual_bound
from wellposed.certify.tighten import tighten
from wellposed.core.network import Network
from wellposed.core.records import Verdict
from wellposed.core.sets import Ball, Box, Region
from wellposed.errors import NotCertifiableError
from wellposed.verify.asked import check_question
from wellposed.verify.classifier import Classifier
from wellposed.verify.deciding import decide
from wellposed.verify.lipschitz import margin_bounds, point_margins
from wellposed.verify.problem import Budget
from wellposed.verify.problem import Problem as Case
from wellposed.verify.verdicts import Tier, Verdicts

Progress = Callable[[int, int], None]
BATCH = 250  # inputs that are looked at together
ROUNDS = 3  # of tightening
MOST_OPEN = 400  # unstable neurons of an input that is tightened
ASCENT = 20  # steps on multipliers where nothing is branched


def verify(
    model: nn.Module | Network | Classifier,
    x: Tensor,
    y: Tensor,
    region: Region,
    *,
    budget: Budget | None = None,
    attack: PGD | None = None,
    until: Tier = Tier.BRANCHING,
    domain: tuple[float, float] | None = (0.0, 1.0),
    progress: Progress | None = None,
) -> Verdicts:
    """Decide for every input whether its class holds on its whole region.

    *Verified*: ``y_label - y_j`` has a proved positive lower bound on the region for every other
    class. *Falsified*: an input of the region is at hand whose proved margin is not positive.
    *Unknown*: neither, within the budget. Bounds are those of `dual_bound`, in float64 with
    rounding, of the network with its weights taken as exact; solvers only propose multipliers.

    Args:
        model: A module in evaluation mode whose layers have rules, explicit weights, or a
            `Classifier` that was prepared before.
        x: Inputs, shape (B, *in_shape).
        y: Labels, int64 of shape (B,).
        region: A batch of B regions, one around each input.
        budget: Of branch and bound, for each input; a `Budget` of 0 seconds branches nothing.
        attack: Tried first on modules; by default 20 steps of projected gradient descent within
            the region of each input, from inputs in [0, 1]. Elsewhere only the input itself is
            tried, and what branching meets.
        until: The last tier that is tried.
        domain: Smallest and largest value of an input; `None` for no limits.
        progress: Called with how many inputs are done and how many there are.

    Returns:
        One verdict an input, in order. Interrupting (Ctrl-C) leaves what is not decided unknown.

    Raises:
        NotCertifiableError: A layer has no rule, or nothing shows that the network is well posed.
        ShapeError: Shapes do not fit, or a region leaves the domain.
        ConfigError: A label is no class.
    """
    task = model if isinstance(model, Classifier) else Classifier.of(model, tuple(x.shape[1:]))
    check_question(task, x, y, region, domain)
    module = model if isinstance(model, nn.Module) else None
    found: list[Verdict] = []
    try:
        for part in torch.arange(len(x)).split(BATCH):
            chunk = _Chunk(task, module, x[part], y[part], region.select(part))
            try:
                chunk.run(budget or Budget(), attack, until, _tell(progress, len(found), len(x)))
            finally:
                found += chunk.verdicts()
    except KeyboardInterrupt:
        pass
    rest = len(x) - len(found)
    return Verdicts((*found, *[Verdict("unknown", -inf, "interrupted")] * rest))


def _tell(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    return (lambda done: None) if progress is None else lambda done: progress(before + done, total)


@final
class _Chunk:
    """Some inputs on their way through the tiers."""

    def __init__(
        self, task: Classifier, module: nn.Module | None, x: Tensor, y: Tensor, region: Region
    ) -> None:
        self.task, self.module, self.x, self.y, self.region = task, module, x, y, region
        count = len(x)
        self.state = ["unknown"] * count
        self.method = ["none"] * count
        self.margin = [-inf] * count
        self.seconds = [0.0] * count
        self.witness: list[tuple[float, ...] | None] = [None] * count
        self.bounds: list[dict[str, float]] = [{} for _ in range(count)]
        self.unstable: list[int | None] = [None] * count
        self.nodes = [0] * count
        self.rows = task.rows(y)
        self.entered = task.enter(region)
        self.best = torch.full((count, task.classes - 1), -inf, dtype=torch.float64)
        self.scope: Scope | None = None

    def verdicts(self) -> list[Verdict]:
        """What is known of each input."""
        return [
            Verdict(
                self.state[i],  # type: ignore[arg-type]
                self.margin[i],
                self.method[i],
                self.seconds[i],
                self.witness[i] if self.state[i] == "falsified" else None,
                self.bounds[i],
                self.unstable[i],
                self.nodes[i],
            )
            for i in range(len(self.state))
        ]

    def run(
        self, budget: Budget, attack: PGD | None, until: Tier, tell: Callable[[int], None]
    ) -> None:
        """All tiers."""
        tiers: dict[Tier, Callable[[Tensor], Tensor | None]] = {
            Tier.ATTACK: lambda alive: self._attack(alive, attack),
            Tier.LIPSCHITZ: self._lipschitz,
            Tier.BOXES: self._boxes,
            Tier.LINEAR: self._linear,
            Tier.TIGHTENED: self._tightened,
        }
        for tier, step in tiers.items():
            alive = self._alive()
            if tier.rank > until.rank or not len(alive):
                break
            start = process_time()
            try:
                lower = step(alive)
            except NotCertifiableError:
                # a network without matrices that contracts in the 2-norm alone: gains are all
                if self.task.points is None or not isinstance(self.entered, Ball):
                    raise
                break
            self._share(alive, process_time() - start)
            if lower is not None:
                self._note(alive, lower, tier)
            tell(len(self.x) - len(self._alive()))
        if until is Tier.BRANCHING and self.task.branches:
            for i in self._alive().tolist():
                start = process_time()
                self._branch(i, budget)
                self.seconds[i] += process_time() - start
                tell(len(self.x) - len(self._alive()))

    def _alive(self) -> Tensor:
        return torch.tensor([i for i, s in enumerate(self.state) if s == "unknown"]).long()

    def _share(self, alive: Tensor, seconds: float) -> None:
        for i in alive.tolist():
            self.seconds[i] += seconds / len(alive)

    def _note(self, alive: Tensor, lower: Tensor, tier: Tier) -> None:
        """Keep the bounds (A, classes - 1) of a tier; positive ones verify."""
        self.best[alive] = torch.maximum(self.best[alive], lower)
        smallest = self.best[alive].amin(1).tolist()
        for i, own, best in zip(alive.tolist(), lower.amin(1).tolist(), smallest, strict=True):
            self.bounds[i][tier.value] = max(own, best)
            self.margin[i], self.method[i] = best, tier.value
            if best > 0:
                self.state[i] = "verified"

    def _refute(self, i: int, point: Tensor, tier: Tier) -> bool:
        """Falsified if the point (*in_shape) lies in the region and its margin is not positive."""
        x = point.detach().double()[None]
        one = torch.tensor([i])
        if not bool(self.region.select(one).contains(x)[0]):
            return False
        if self.task.points is not None:
            lower = -point_margins(self.task, self.y[i : i + 1], x)
        else:
            scope = self.task.scope(self.task.enter(Box(x, x)))
            count = self.task.classes - 1
            rows = -self.rows.select(i * count + torch.arange(count))
            lower, _ = crown(self.task.system, scope.select(torch.zeros(count).long()), rows)
        if not float(lower.amax()) > 0:
            return False
        self.method[i], self.margin[i] = tier.value, -float(lower.amax())
        self.witness[i] = tuple(x.flatten().tolist())
        # last, so that an interruption leaves no verdict without its witness
        self.state[i] = "falsified"
        return True

    def _attack(self, alive: Tensor, attack: PGD | None) -> None:
        x, y = self.x[alive], self.y[alive]
        pixels = float(x.amin()) >= 0 and float(x.amax()) <= 1
        if self.module is None or (attack is None and not pixels):
            # no gradients, or no images that the attack could project onto
            for k in self._wrong(x, y).nonzero()[:, 0].tolist():
                self._refute(int(alive[k]), x[k], Tier.ATTACK)
            return
        if attack is None:
            default, radius = _default_attack(self.region.select(alive), x)
            tried = default.attack(self.module, x, y, radius=radius)
        else:
            tried = attack.attack(self.module, x, y)
        for k in tried.success.nonzero()[:, 0].tolist():
            i = int(alive[k])
            box = self.region.box
            point = tried.inputs[k].cpu().double().clamp(box.lower[i], box.upper[i])
            self._refute(i, point, Tier.ATTACK)

    def _wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """Which inputs seem to be misclassified to begin with; nothing is proved here."""
        if self.module is not None:
            with torch.no_grad():
                return self.module(x).argmax(1) != y
        guess = self.task.guess(self.task.enter(Box(x.double(), x.double())).box.lower)
        return torch.zeros(len(x)) > 0 if guess is None else guess != y

    def _lipschitz(self, alive: Tensor) -> Tensor | None:
        return margin_bounds(self.task, self.y[alive], self.region.select(alive))

    def _boxes(self, alive: Tensor) -> Tensor:
        self.scope = self.task.scope(self.entered.select(alive))
        self._slots = {int(i): k for k, i in enumerate(alive)}
        self._count_unstable(alive)
        index, rows = self._pairs(alive)
        # with the multiplier 0 the dual bound is interval arithmetic on the margin's row
        zero = torch.zeros(len(index), self.task.system.n, dtype=torch.float64)
        lower = dual_bound(self.task.system, self._scopes(index), rows, zero)
        return lower.reshape(len(alive), -1)

    def _linear(self, alive: Tensor) -> Tensor:
        index, rows = self._pairs(alive)
        lower = torch.cat([
            crown(self.task.system, self._scopes(i), part)[0]
            for i, part in _batches(index, rows)
        ])  # fmt: skip
        return lower.reshape(len(alive), -1)

    def _tightened(self, alive: Tensor) -> Tensor:
        assert self.scope is not None
        scope, system = self._scopes(alive), self.task.system
        is_open = (scope.lower < 0) & (scope.upper > 0) & ~system.neurons.linear
        # two rows a neuron: where there are too many, what is known has to do
        few = is_open.sum(1) <= MOST_OPEN
        if bool(few.any()):
            tight, _ = tighten(system, scope.select(few.nonzero()[:, 0]), rounds=ROUNDS)
            scope = scope.replace_bounds(few, tight)
        self.scope = scope
        self._slots = {int(i): k for k, i in enumerate(alive)}
        self._count_unstable(alive)
        return self._last_rows(alive, self._linear(alive))

    def _last_rows(self, alive: Tensor, lower: Tensor) -> Tensor:
        """Better bounds of the few rows that are left.

        Where a search over phases follows, and proves them for the checker too, from what holds if
        they fail; elsewhere from better multipliers.
        """
        system, (index, rows) = self.task.system, self._pairs(alive)
        best = lower.flatten().clone()
        left = (torch.maximum(best, self.best[alive].flatten()) <= 0).nonzero()[:, 0]
        for at in left.split(64) if len(left) else ():
            scope, some = self._scopes(index[at]), rows.select(at)
            if self.task.branches:
                best[at] = assumed_bound(system, scope, some)
            else:
                _, p = crown(system, scope, some)
                best[at] = improve(system, scope, some, p, steps=ASCENT)[1]
        return best.reshape(lower.shape)

    def _branch(self, i: int, budget: Budget) -> None:
        if self.task.network is None or self.scope is None:
            return
        count = self.task.classes - 1
        rows = self.rows.select(i * count + torch.arange(count))
        left = (self.best[i] <= 0).nonzero()[:, 0]
        # the most doubtful row first: a counter-example is most likely there
        left = left[self.best[i][left].argsort()]
        case = Case(self.task.network, self.task.system, self._scopes(torch.tensor([i])),
                    self.task.wellposed)  # fmt: skip
        answers, _ = decide(case, rows.select(left), budget, every=False)
        self.nodes[i] += sum(a.nodes for a in answers)
        for answer in answers:
            if answer.status == "falsified" and answer.witness is not None:
                box = self.region.box
                point = self.task.leave(answer.witness)[0].clamp(box.lower[i], box.upper[i])
                if self._refute(i, point, Tier.BRANCHING):
                    return
        lower = self.best[i].clone()
        proved = torch.tensor([a.lower for a in answers], dtype=torch.float64)
        lower[left] = torch.maximum(lower[left], proved)
        self._note(torch.tensor([i]), lower[None], Tier.BRANCHING)
        if any(a.interrupted for a in answers):
            raise KeyboardInterrupt  # the search kept what it had; so does this one

    def _pairs(self, alive: Tensor) -> tuple[Tensor, Rows]:
        """Input and row of every margin of some inputs."""
        count = self.task.classes - 1
        at = (alive[:, None] * count + torch.arange(count)).flatten()
        return alive.repeat_interleave(count), self.rows.select(at)

    def _scopes(self, index: Tensor) -> Scope:
        assert self.scope is not None
        # a list of no numbers would make a tensor of floats
        slots = torch.tensor([self._slots[int(i)] for i in index], dtype=torch.long)
        return self.scope.select(slots)

    def _count_unstable(self, alive: Tensor) -> None:
        assert self.scope is not None
        is_open = (self.scope.lower < 0) & (self.scope.upper > 0) & ~self.task.system.neurons.linear
        for i, count in zip(alive.tolist(), is_open.sum(1).tolist(), strict=True):
            self.unstable[i] = count


def _batches(index: Tensor, rows: Rows, size: int = 2048) -> list[tuple[Tensor, Rows]]:
    return [(index[at], rows.select(at)) for at in torch.arange(len(index)).split(size)]


def _default_attack(region: Region, x: Tensor) -> tuple[PGD, Tensor]:
    """Within the smallest ball around each input that covers its own region."""
    # from the inputs themselves: verdicts depend on no generator and on no batch mates
    if isinstance(region, Ball):
        # a projected point lies on the rim up to rounding, and one beyond it proves nothing
        norm, radius = "2", region.radius * (1 - 8 * torch.finfo(x.dtype).eps)
    else:
        away = torch.maximum(region.upper - x.double(), x.double() - region.lower)
        norm, radius = "max", away.flatten(1).amax(1).clamp(min=0)
    return PGD(norm, float(radius.amax()), random_start=False), radius
