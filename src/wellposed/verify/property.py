"""Properties of outputs on boxes of inputs, decided by the cascade through a few more neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wellposed.certify.dual import Region
from wellposed.core.activations import ReLU
from wellposed.core.network import Network
from wellposed.core.records import Verdict
from wellposed.errors import NotCertifiableError, ShapeError
from wellposed.verify.branch import Budget
from wellposed.verify.cascade import verify
from wellposed.verify.statement import Statement
from wellposed.verify.verdicts import Tier


def verify_statement(
    network: Network,
    region: Region,
    statement: Statement,
    *,
    budget: Budget | None = None,
    until: Tier = Tier.BRANCHING,
) -> tuple[Verdict, ...]:
    """Decide whether a statement holds for every input of each region.

    Args:
        network: Explicit weights.
        region: A batch of B regions, flat.
        statement: On the outputs.
        budget: Of the search, for each region.
        until: The last tier that is tried.

    Returns:
        One verdict a region; a witness is an input at which the statement is false.

    Raises:
        NotCertifiableError: See `judged`, or the network is not shown to be well posed.
        ShapeError: Shapes do not fit.
    """
    judge = judged(network, statement)
    centre = region.box.centre
    x = torch.minimum(torch.maximum(centre, region.box.lower), region.box.upper)
    label = torch.zeros(len(x), dtype=torch.int64)
    return verify(judge, x, label, region, budget=budget, until=until, domain=None).verdicts


def judged(network: Network, statement: Statement) -> Network:
    """A classifier of inputs that says 0 exactly where the statement holds.

    Behind the network stand neurons that copy the outputs ``y``, neurons ``t_i = rows_i y +
    offset_i``, and for a clause with several rows ``r_k = relu(t_{k+1} - m_k)`` with ``m_1 = t_1``
    and ``m_{k+1} = m_k + r_k``, so that the last ``m`` is the largest row. The outputs are 0 and
    minus the largest row of each clause. No weight is rounded: the new ones are those of the
    statement, 1 and -1.

    Raises:
        NotCertifiableError: A clause has several rows and the network's activation is not ReLU.
        ShapeError: The statement speaks about another number of outputs.
    """
    if statement.rows.shape[1] != network.q:
        raise ShapeError(
            f"The statement speaks about {statement.rows.shape[1]} outputs, the network has "
            f"{network.q}."
        )
    rows = len(statement.rows)
    extra = rows - statement.clauses
    if extra and not isinstance(network.activation, ReLU):
        raise NotCertifiableError(
            f"A clause joins several inequalities by `or`, and the activation is "
            f"{network.activation.name}, not ReLU.",
            hint="split the property into files with one inequality in each alternative.",
        )
    n, d, q = network.n, network.d, network.q
    size = n + q + rows + extra
    W, U, b = _zeros(size, size), _zeros(size, d), _zeros(size)
    W[:n, :n], U[:n], b[:n] = network.W, network.U, network.b
    copy, tests = slice(n, n + q), slice(n + q, n + q + rows)
    W[copy, :n], U[copy], b[copy] = network.C, network.D, network.c
    W[tests, copy], b[tests] = statement.rows, statement.offset
    C = _zeros(statement.clauses + 1, size)
    free = n + q + rows
    for clause in range(statement.clauses):
        members = (statement.clause == clause).nonzero()[:, 0].tolist()
        largest = [n + q + members[0]]
        for member in members[1:]:
            W[free, n + q + member] = 1
            W[free, largest] = -1
            largest.append(free)
            free += 1
        C[clause + 1, largest] = -1
    linear = torch.zeros(size, dtype=torch.bool)
    linear[:n] = network.linear
    linear[n : n + q + rows] = True
    return Network.of(W, U, b, C, _zeros(len(C)), activation=network.activation, linear=linear)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a property that asks for all of several: falsified beats unknown."""
    order = ("falsified", "unknown", "verified")
    return min(verdicts, key=lambda v: (order.index(v.status), v.margin))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)
