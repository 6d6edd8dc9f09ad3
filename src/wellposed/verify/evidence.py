"""Evidence for the independent checker: bounds that prove themselves, and a leaf for every case."""

from __future__ import annotations

import torch
from torch import Tensor

from wellposed.certify.crown import crown
from wellposed.certify.dense import DenseSystem
from wellposed.certify.dual import Scope, dual_bound
from wellposed.certify.equilibria import equilibrium
from wellposed.certify.tighten import tighten
from wellposed.core.network import Network
from wellposed.core.sets import Region
from wellposed.errors import NotCertifiableError
from wellposed.verify.branch import Answer, Budget, branch
from wellposed.verify.branch import Problem as Case
from wellposed.verify.certificate import Forest, Proof
from wellposed.verify.classifier import Classifier
from wellposed.verify.containment import contain
from wellposed.verify.statement import Statement

STAGES = 3  # rounds of tightening after containment


@torch.no_grad()
def prove(
    task: Classifier, region: Region, label: int, scope: Scope, budget: Budget | None = None
) -> Proof | None:
    """A certificate that a class holds on a region; `None` if it is not found within the budget.

    The bounds of the neurons are proved anew (`contain`) and tightened; the margins are bounded on
    them, by cases where it takes some.

    Args:
        task: A network small enough to be used as a matrix.
        region: One region in the system's coordinates, a batch of one.
        label: The class.
        scope: Proved bounds there, a batch of one: where the search for the box starts.
        budget: Of branch and bound.

    Raises:
        NotCertifiableError: The network is not dense.
    """
    network = _dense(task)
    assert isinstance(task.system, DenseSystem)
    try:
        held = contain(task.system, scope, task.wellposed)
    except NotCertifiableError:
        return None
    tight, stages = tighten(task.system, held.scope, rounds=STAGES)
    held = held.then(stages[0], tight)
    forest = _forest(task, held.scope, label, budget or Budget())
    if forest is None:
        return None
    statement = Statement.of_label(label, task.classes)
    return Proof(network.digest(), region, statement, task.wellposed, held.point, held.anchor,
                 held.bounds, forest)  # fmt: skip


@torch.no_grad()
def refute(task: Classifier, region: Region, label: int, point: Tensor) -> Proof:
    """A certificate that an input of the region, shape (d,), is not classified as `label`.

    Raises:
        NotCertifiableError: The network is not dense.
    """
    network = _dense(task)
    anchor, _ = equilibrium(network, point[None], task.wellposed)
    statement = Statement.of_label(label, task.classes)
    return Proof(network.digest(), region, statement, task.wellposed, point, anchor[0])


def _dense(task: Classifier) -> Network:
    if task.network is None:
        raise NotCertifiableError(
            f"The network has {task.system.n} neurons; certificate files are for dense networks.",
            hint="verdicts of large networks stand without a file.",
        )
    return task.network


def _forest(task: Classifier, scope: Scope, label: int, budget: Budget) -> Forest | None:
    """Every margin on the box, at once or by cases."""
    rows = task.rows(torch.tensor([label]))
    count = task.classes - 1
    each = scope.select(torch.zeros(count, dtype=torch.long))
    root = crown(task.system, each, rows)[1].float()
    good = dual_bound(task.system, each, rows, root) > 0
    left = (~good).nonzero()[:, 0]
    answers: dict[int, Answer] = {}
    if len(left):
        assert task.network is not None
        case = Case(task.network, task.system, scope, task.wellposed)
        found = branch(case, rows.select(left), budget)
        if any(a.status != "verified" for a in found):
            return None
        answers = dict(zip(left.tolist(), found, strict=True))
    found = [answers.get(k) for k in range(count)]
    return Forest.of_rows(
        [torch.tensor([-1]) if a is None else a.split for a in found],
        [root[k : k + 1] if a is None else a.multipliers for k, a in enumerate(found)],
    )
