"""Lower bounds of a Lipschitz constant: sampled Jacobians and attacked pairs of inputs."""

from __future__ import annotations

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from wellposed.cells.base import AffineCell
from wellposed.core.affine import Affine
from wellposed.core.norms import MaxNorm, Norm, OneNorm, TwoNorm
from wellposed.core.records import Estimate
from wellposed.core.sets import Box
from wellposed.errors import ConfigError, ShapeError
from wellposed.gradients.implicit import Implicit
from wellposed.nn.binary import takes_signs
from wellposed.nn.equilibrium import Equilibrium
from wellposed.solvers.base import Stopping


def lipschitz_lower(
    module: nn.Module,
    x: Tensor,
    *,
    norm_in: Norm | None = None,
    norm_out: Norm | None = None,
    region: Box | None = None,
    rounds: int = 5,
    radii: tuple[float, ...] = (1e-3, 1e-1, 1.0),
    seed: int = 0,
) -> Estimate:
    """The largest ``||f(x) - f(x')|| / ||x - x'||`` found, a lower bound of the constant.

    Each round takes the Jacobian at every point by automatic differentiation (its norm is the limit
    of such quotients), steps along the direction that it stretches most at several distances,
    measures the quotient of that pair and goes on from there. What runs is a float64 copy of the
    module with exact gradients and solves to 1e-11.

    Args:
        module: Any differentiable module; it is not changed.
        x: Where to start, one point a row.
        norm_in: Norm of inputs, flattened; the max norm by default.
        norm_out: Norm of outputs; of the type of `norm_in` by default.
        region: Points and pairs stay inside this box of one input.
        rounds: How often every point moves.
        radii: Distances of pairs, in the norm of inputs.
        seed: Of the random moves between rounds.

    Raises:
        ShapeError: `x` has no batch dimension or is empty.
        ConfigError: The two norms are of different types, or the module takes signs, whose
            derivatives are stand-ins and bound nothing.
    """
    if takes_signs(module):
        raise ConfigError(
            "The module takes signs: its derivative is that of a stand-in, which is no bound of "
            "the constant, and the constant is infinite.",
            hint="measure `wellposed.nn.binary.real_stem(module)`.",
        )
    source = norm_in or MaxNorm()
    target = norm_out or type(source)()
    if source.name != target.name:
        raise ConfigError(f"Norms of one type are expected, got {source} and {target}.")
    if x.ndim < 2 or not len(x):
        raise ShapeError(f"`x` must be a batch of points, got shape {tuple(x.shape)}.")
    net = _exact_copy(module)
    generator = torch.Generator().manual_seed(seed)
    points = _inside(x.detach().to("cpu", torch.float64), region)
    best, count = 0.0, 0
    for _ in range(max(rounds, 1)):
        y, jacobian = _jacobian(net, points)
        values, direction = _stretch(jacobian, source, target)
        direction = direction.reshape(points.shape)
        best = max(best, float(values.nan_to_num(0.0).max()))
        moved, top = points, torch.full_like(values, -1.0)
        for radius in radii:
            sign = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
            other = _inside(points + sign * radius * direction, region)
            ratio = _quotient(net, points, y, other, (source, target))
            best = max(best, float(ratio.max()))
            moved = torch.where(_column(ratio > top, moved), other, moved)
            top = torch.maximum(top, ratio)
            count += len(points)
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        points = _inside(moved + 0.05 * radii[-1] * noise, region)
    method = f"Jacobian norms and pairs at {len(radii)} distances, {max(rounds, 1)} rounds"
    return Estimate("lipschitz", best, source.label, target.label, method, count)


def _exact_copy(module: nn.Module) -> nn.Module:
    net = deepcopy(module).cpu().eval()
    layers = [part for part in net.modules() if isinstance(part, Equilibrium)]
    # weights made anew in float64 would be those of a slightly different network
    given = [e.cell.explicit().double() if isinstance(e.cell, AffineCell) else None for e in layers]
    # a cell may own weights outside of its layer: they are converted with it
    net = net.double()
    for layer, affine in zip(layers, given, strict=True):
        layer.eval_stopping = Stopping(rtol=1e-11, max_evaluations=5000)
        layer.gradient = Implicit(rtol=1e-12, max_evaluations=20_000)
        layer.on_failure = "ignore"
        if affine is not None:
            layer.cell = _Explicit(affine)
    return net


@final
class _Explicit(AffineCell):
    """A cell with given explicit weights."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self._affine = affine

    @override
    def explicit(self) -> Affine:
        return self._affine


def _jacobian(net: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values and the Jacobian of every sample, (batch, outputs, inputs)."""
    with torch.enable_grad():
        x = points.detach().requires_grad_()
        y = net(x).flatten(1)
        rows = [
            torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0].flatten(1)
            for k in range(y.shape[1])
        ]
    return y.detach(), torch.stack(rows, 1)


def _stretch(jacobian: Tensor, source: Norm, target: Norm) -> tuple[Tensor, Tensor]:
    """Operator norm of each Jacobian, and a direction of unit length that attains it."""
    _, rows, columns = jacobian.shape
    inner = source.multipliers(columns, jacobian)
    scaled = target.multipliers(rows, jacobian)[:, None] * jacobian / inner
    match source:
        case MaxNorm():
            values, row = scaled.abs().sum(2).max(1)
            unit = scaled[torch.arange(len(scaled)), row].sign()
        case OneNorm():
            values, column = scaled.abs().sum(1).max(1)
            unit = nn.functional.one_hot(column, columns).to(scaled)
        case TwoNorm():
            _, singular, right = torch.linalg.svd(scaled, full_matrices=False)
            values, unit = singular[:, 0], right[:, 0]
        case _:
            raise ConfigError(f"No attack is known for {source}.")
    return values, unit / inner


def _quotient(
    net: nn.Module, x: Tensor, y: Tensor, other: Tensor, norms: tuple[Norm, Norm]
) -> Tensor:
    """``||f(x) - f(x')|| / ||x - x'||`` of each pair; zero where the two points coincide."""
    with torch.no_grad():
        change = norms[1](net(other).flatten(1) - y)
    change = torch.where(_solved(net, len(x)), change, 0.0)
    distance = norms[0]((other - x).flatten(1))
    # differences of nearly equal numbers are mostly rounding: such a pair proves nothing
    usable = distance > 1e-7 * (1 + x.flatten(1).abs().amax(1))
    return torch.where(usable, change / distance.clamp(min=1e-300), 0.0).nan_to_num(0.0)


def _solved(net: nn.Module, rows: int) -> Tensor:
    """Which samples of the last call were solved in every equilibrium layer."""
    good = torch.ones(rows, dtype=torch.bool)
    for part in net.modules():
        if isinstance(part, Equilibrium) and part.last is not None:
            converged = part.last.converged
            good &= converged if len(converged) == rows else bool(converged.all())
    return good


def _inside(points: Tensor, region: Box | None) -> Tensor:
    if region is None:
        return points
    return torch.minimum(torch.maximum(points, region.lower.double()), region.upper.double())


def _column(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (like.ndim - 1))
