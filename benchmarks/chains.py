"""Lipschitz bounds of random dense ReLU networks: tightness and CPU time of every method."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from time import process_time

import torch
from torch import nn

import wellposed as wp
from benchmarks.common import Report, cpu_seconds, note
from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify.eclipse import Scaled, propose, prove, uniform
from wellposed.certify.lipschitz import Site, majorise
from wellposed.certify.multipliers import chain_proof
from wellposed.core.norms import TwoNorm
from wellposed.nn.groupsort import MaxMin

WIDTHS = (
    (5, 16, 16, 2), (5, 32, 32, 2), (10, 32, 32, 32, 1), (10, 64, 64, 64, 64, 1),
    (20, 100, 100, 100, 100, 100, 10), (784, 64, 64, 10), (784, 256, 256, 256, 10),
)  # fmt: skip
PROGRAMME = 110  # hidden neurons up to which the semidefinite programme is solved


def network(widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """The default initialisation of `nn.Linear`, seed 0, in float64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).double()


def fast(model: nn.Sequential, size: int, room: float) -> float:
    """ECLipsE-Fast as published, one multiplier a layer; `room` for slopes that are symmetric."""
    chain = Scaled.of(size, majorise(model, Site((size,))).steps or ())
    return prove(chain, propose(chain, uniform, room)[1]).two_norm()


def lower(model: nn.Sequential, size: int) -> float:
    """The steepest pair of points that an attack finds, or the steepest of 1,500 Jacobians."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1500, size, generator=generator).double()
    found = lipschitz_lower(
        model, start[:16], norm_in=TwoNorm(), norm_out=TwoNorm(), rounds=1
    ).value
    for x in (3 * start).split(100):
        slopes = torch.autograd.functional.jacobian(lambda z: model(z).sum(0), x)
        found = max(found, float(torch.linalg.matrix_norm(slopes.movedim(1, 0), 2).amax()))
    return found


def run() -> None:
    """The table of random networks, with times, and a GroupSort network beside it."""
    report = Report(
        "chains",
        "2-norm bounds of random dense networks, seed 0 (CPU seconds in brackets)",
        ("network", "attack", "LipSDP", "descent", "default", "ECLipsE-Fast", "product"),
    )
    # the first derivative that a process takes imports modules for seconds
    wp.lipschitz(network((2, 2, 2)), norm_in="2")
    cases = [("relu", widths, nn.ReLU) for widths in WIDTHS]
    cases += [("maxmin", (5, 32, 32, 2), MaxMin)]
    for name, widths, activation in cases:
        model, size = network(widths, activation), widths[0]
        key = f"{name}-{'-'.join(map(str, widths))}"
        note(key)
        steps = majorise(model, Site((size,))).steps or ()
        methods = {
            "descent": lambda size=size, steps=steps: chain_proof(
                size, steps, thorough=True
            ).two_norm(),
            "default": lambda size=size, steps=steps: chain_proof(size, steps).two_norm(),
            "fast": partial(fast, model, size, 0.0 if activation is nn.ReLU else 0.3),
            "product": lambda model=model: wp.lipschitz(model, norm_in="2", method="product").value,
        }
        cells: list[str] = []
        values = {"attack": lower(model, size)}
        if sum(widths[1:-1]) <= PROGRAMME:
            begin = process_time()
            values["lipsdp"] = wp.lipschitz(model, norm_in="2", method="lipsdp").value
            report.metrics[f"{key}:seconds_lipsdp"] = process_time() - begin
        for method, action in methods.items():
            begin = process_time()
            values[method] = action()
            seconds = process_time() - begin
            if method != "descent":
                seconds = cpu_seconds(action, repeats=3)
            report.metrics[f"{key}:seconds_{method}"] = seconds
        for method in ("attack", "lipsdp", *methods):
            if method not in values:
                cells.append("-")
                continue
            report.metrics[f"{key}:{method}"] = values[method]
            spent = report.metrics.get(f"{key}:seconds_{method}")
            cells.append(f"{values[method]:.3f}" + (f" ({spent:.2g})" if spent else ""))
        if min(v for m, v in values.items() if m != "attack") < values["attack"]:
            raise RuntimeError(f"a certificate of {key} lies below an attack: {values}")
        report.row(key, *cells)
    report.finish()
