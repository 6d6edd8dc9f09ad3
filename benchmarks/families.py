"""Training cost of each family against the published algorithm and torchdeq, same cell, one run.

A family is one entry of `FAMILIES`: a function that returns its contenders by name, ours first.
Each contender maps a batch of images and labels to a loss. A new family adds a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellposed as wp
from benchmarks.common import Report, interleaved, mnist, note
from benchmarks.published_free import PublishedFpn, PublishedFree
from benchmarks.published_monotone import (
    LbenWeights,
    MonWeights,
    PublishedSplitting,
    TorchdeqAffine,
)
from wellposed.cells.contractive import ContractiveCell
from wellposed.nn.blocks import ConvBlock
from wellposed.nn.jacobian import jacobian_penalty, visited

BATCH, STEPS, WARM, ROUNDS = 100, 10, 60, 5
STATES, BOUND, TOL = 87, 0.9, 1e-3
MARGIN, GAMMA = 1.0, 5.0
CHANNELS, FREE_TOL, FREE_LIMIT, WEIGHT = 16, 1e-2, 40, 1.0

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Contender:
    """A network and its loss of a batch.

    Args:
        model: What is trained.
        loss: Of flattened images and labels.
    """

    model: nn.Module
    loss: Loss


def classified(model: nn.Module) -> Contender:
    """A network from images to logits, trained with cross entropy alone."""
    return Contender(model, lambda x, y: F.cross_entropy(model(x), y))


def fpn() -> dict[str, Contender]:
    """Fixed point network, dense, Jacobian-free backpropagation."""
    # in training the forward tolerance is TOL by default
    layer = wp.Equilibrium(ContractiveCell(784, STATES, bound=BOUND), gradient=wp.OneStep())
    out = {
        "wellposed": classified(nn.Sequential(layer, nn.Linear(STATES, 10))),
        "published": classified(
            nn.Sequential(PublishedFpn(784, STATES, BOUND, TOL), nn.Linear(STATES, 10))
        ),
    }
    try:
        out["torchdeq"] = classified(_TorchdeqFpn())
    except ImportError:
        note("torchdeq is not installed: its rows are left out (make bench installs it)")
    return out


class _TorchdeqFpn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torchdeq import get_deq
        from torchdeq.norm import apply_norm, reset_norm

        self.W, self.U = nn.Linear(STATES, STATES, bias=False), nn.Linear(784, STATES)
        self.head = nn.Linear(STATES, 10)
        apply_norm(self.W, "spectral_norm")
        self.reset = reset_norm
        self.deq = get_deq(
            f_solver="fixed_point_iter", f_max_iter=50, f_tol=TOL, f_stop_mode="rel", grad=1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.reset(self.W)
        u = self.U(x)
        z, _ = self.deq(lambda z: torch.relu(BOUND * self.W(z) + u), torch.zeros_like(u))
        return self.head(z[-1])


class _Stem(nn.Module):
    """The image through a strided convolution, an equilibrium layer, and the readout."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.front = nn.Conv2d(1, CHANNELS, 5, 2, 2)
        self.layer = layer
        self.head = nn.Linear(CHANNELS * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layer(self.front(x.reshape(-1, 1, 28, 28)).relu()).flatten(1))


def monotone() -> dict[str, Contender]:
    """Monotone network (MON), dense, implicit differentiation."""
    cell = wp.MonotoneCell(784, STATES, margin=MARGIN)
    # in training the forward tolerance is TOL by default; the published adjoint has the same one
    layer = wp.Equilibrium(cell, gradient=wp.Implicit(rtol=TOL))
    return _splitting(
        nn.Sequential(layer, nn.Linear(STATES, 10)), lambda: MonWeights(784, STATES, MARGIN)
    )


def lben() -> dict[str, Contender]:
    """Lipschitz-bounded equilibrium network, dense, implicit differentiation."""
    ours = wp.LBEN(784, STATES, 10, gamma=GAMMA, margin=MARGIN, gradient=wp.Implicit(rtol=TOL))
    return _splitting(ours, lambda: LbenWeights(784, STATES, MARGIN, GAMMA))


def _splitting(
    ours: nn.Module, weights: Callable[[], MonWeights | LbenWeights]
) -> dict[str, Contender]:
    out = {
        "wellposed": classified(ours),
        "published": classified(PublishedSplitting(weights(), TOL)),
    }
    try:
        out["torchdeq"] = classified(TorchdeqAffine(weights(), TOL))
    except ImportError:
        note("torchdeq is not installed: its rows are left out (make bench installs it)")
    return out


def regularised() -> dict[str, Contender]:
    """Free convolutional block with the Jacobian penalty at every step."""
    state = (CHANNELS, 7, 7)

    def block() -> ConvBlock:
        return ConvBlock(CHANNELS, CHANNELS, stride=2)

    ours = _Stem(
        wp.Equilibrium(
            wp.FreeCell(block(), start=state),
            solver=wp.Anderson(),
            gradient=wp.Implicit(rtol=FREE_TOL, max_evaluations=FREE_LIMIT),
            stopping=wp.Stopping(FREE_TOL, max_evaluations=FREE_LIMIT),
            on_failure="ignore",
        )
    )
    theirs = _Stem(PublishedFree(block(), state, FREE_TOL, FREE_LIMIT))
    out = {
        "wellposed": Contender(ours, lambda x, y: _penalised(ours, x, y)),
        "published": Contender(
            theirs,
            lambda x, y: F.cross_entropy(theirs(x), y) + WEIGHT * theirs.layer.penalty,  # type: ignore[operator]
        ),
    }
    try:
        deq = _Stem(_TorchdeqFree(block(), state))
    except ImportError:
        return out
    out["torchdeq"] = Contender(
        deq,
        lambda x, y: F.cross_entropy(deq(x), y) + WEIGHT * deq.layer.penalty,  # type: ignore[operator]
    )
    return out


def _penalised(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with visited(model) as visits:
        loss = F.cross_entropy(model(x), y)
    return loss + WEIGHT * jacobian_penalty(visits)


class _TorchdeqFree(nn.Module):
    def __init__(self, block: nn.Module, state: tuple[int, ...]) -> None:
        super().__init__()
        from torchdeq import get_deq
        from torchdeq.loss import jac_reg

        self.block, self.state, self.jac_reg = block, state, jac_reg
        self.penalty = torch.zeros(())
        self.deq = get_deq(
            f_solver="anderson", b_solver="anderson", f_max_iter=FREE_LIMIT, b_max_iter=FREE_LIMIT,
            f_tol=FREE_TOL, b_tol=FREE_TOL, f_stop_mode="rel", b_stop_mode="rel", ift=True,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The states; `penalty` is that of this pass."""
        z, _ = self.deq(lambda z: self.block(z, x), torch.zeros(len(x), *self.state))
        leaf = z[-1].detach().requires_grad_()
        self.penalty = self.jac_reg(self.block(leaf, x), leaf).mean()
        return z[-1]


FAMILIES: Mapping[str, Callable[[], dict[str, Contender]]] = {
    "fpn": fpn,
    "mon": monotone,
    "lben": lben,
    "free, Jacobian penalty": regularised,
}


def advance(contender: Contender, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Steps of Adam over the given images."""
    for rows in torch.arange(len(x)).split(BATCH):
        optimiser.zero_grad(set_to_none=True)
        contender.loss(x[rows], y[rows]).backward()
        optimiser.step()


def run() -> None:
    """Warm every contender up alike, then time the same steps of each in turn."""
    x, y, *_ = mnist()
    report = Report(
        "families",
        f"Training cost, batch {BATCH}, one thread, after {WARM} steps",
        ("family", "implementation", "CPU ms a step", "CPU s an epoch", "ratio to wellposed"),
    )
    for family, make in FAMILIES.items():
        torch.manual_seed(0)
        contenders, steps = make(), dict[str, Callable[[], object]]()
        for name, contender in contenders.items():
            note(f"warming up {family}: {name}")
            optimiser = torch.optim.Adam(contender.model.parameters(), lr=1e-3)
            advance(contender, optimiser, x[: WARM * BATCH], y[: WARM * BATCH])
            part = slice(WARM * BATCH, (WARM + STEPS) * BATCH)
            steps[name] = lambda c=contender, o=optimiser, p=part: advance(c, o, x[p], y[p])
        times = interleaved(steps, rounds=ROUNDS)
        base = times["wellposed"]
        for name, seconds in times.items():
            a_step = seconds / STEPS
            report.row(family, name, 1e3 * a_step, a_step * len(x) / BATCH, seconds / base)
            key = f"{family.split(',')[0]}_{name}"
            report.metrics[f"{key}_epoch_cpu_seconds"] = a_step * len(x) / BATCH
            if name != "wellposed":
                report.metrics[f"{key}_ratio"] = seconds / base
    report.finish()
