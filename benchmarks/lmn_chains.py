"""Chains of norms at weights times 20: smallest rise along random ordered pairs, steepest slope."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.common import Report, note
from wellposed.errors import ConfigError
from wellposed.nn.groupsort import GroupSort
from wellposed.nn.monotone import MonotoneResidual
from wellposed.nn.vector_norm import constrain

CHAINS = {
    "one-inf, inf, inf": ("1->max", "max->max", "max->max"),
    "two-inf, inf, inf": ("2->max", "max->max", "max->max"),
    "inf, inf, inf": ("max->max", "max->max", "max->max"),
    "one, one, one": ("1->1", "1->1", "1->1"),
    "inf, one, one": ("max->max", "1->1", "1->1"),
    "one-inf, one, one": ("1->max", "1->1", "1->1"),
    "one-inf, one-inf, one-inf": ("1->max", "1->max", "1->max"),
}
WIDTHS, NETWORKS, PAIRS = (5, 16, 16, 1), 10, 100_000


def ours(kinds: tuple[str, ...]) -> nn.Module:
    """A network whose last activation is in front of its last layer."""
    layers = list[nn.Module]()
    for k, kind in enumerate(kinds):
        layers += [constrain(nn.Linear(WIDTHS[k], WIDTHS[k + 1]), kind, 1.0)]
        layers += [GroupSort(group_size=2, dim=-1)] if k < 2 else []
    return MonotoneResidual(nn.Sequential(*layers), [1] * WIDTHS[0], 1.0)


def peer(name: str) -> nn.Module:
    """The same as a user of monotonicnetworks writes it."""
    import monotonicnetworks as lmn

    layers = list[nn.Module]()
    for k, kind in enumerate(name.split(", ")):
        layers += [lmn.LipschitzLinear(WIDTHS[k], WIDTHS[k + 1], kind=kind)]
        layers += [lmn.GroupSort(WIDTHS[k + 1] // 2)] if k < 2 else []
    return lmn.MonotonicWrapper(nn.Sequential(*layers), lipschitz_const=1.0)


def measured(net: nn.Module, seed: int) -> tuple[float, float]:
    """Smallest ``f(x + d) - f(x)`` for ``d >= 0``, and largest ``|dg/dx_i|``."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    net = net.double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PAIRS // NETWORKS, WIDTHS[0], generator=generator, dtype=torch.float64)
    step = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        rise = float((net(x + step) - net(x)).min())
    x = x[:2000].requires_grad_()
    (slope,) = torch.autograd.grad(body(net)(x).sum(), x)
    return rise, float(slope.abs().max())


def body(net: nn.Module) -> nn.Module:
    """What the linear term is added to."""
    return net.body if isinstance(net, MonotoneResidual) else net.nn


def worst(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Smallest rise and steepest slope of several networks."""
    rise, slope = torch.tensor(found, dtype=torch.float64).unbind(1)
    return float(rise.min()), float(slope.max())


def chains(report: Report) -> None:
    """One row a chain: what is refused, what the peer lets through, and what it then does."""
    for name, kinds in CHAINS.items():
        key = name.replace(", ", "_")
        torch.manual_seed(0)
        try:
            rise, slope = worst([measured(ours(kinds), seed) for seed in range(NETWORKS)])
            mine = f"{rise:.2g}, slope {slope:.3g}"
            report.metrics[f"chain_{key}_rise"] = rise
            report.metrics[f"chain_{key}_slope"] = slope
        except ConfigError:
            mine = "refused"
        try:
            torch.manual_seed(0)
            rise, slope = worst([measured(peer(name), seed) for seed in range(NETWORKS)])
            theirs = f"{rise:.2g}, slope {slope:.3g}"
            report.metrics[f"chain_{key}_rise_monotonicnetworks"] = rise
            report.metrics[f"chain_{key}_slope_monotonicnetworks"] = slope
        except ImportError:
            note("monotonicnetworks is not installed (make bench installs it)")
            theirs = "not installed"
        report.row(f"chain {name}", "rise, slope", mine, "", "", "", f"peer {theirs}")
