"""The fixed point of a function, a module or a map, without a layer around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

from wellposed.cells.lifting import module_map, steady
from wellposed.core.maps import FunctionMap, Map
from wellposed.errors import ConfigError, ShapeError
from wellposed.gradients.base import Gradient, Problem, autocasting
from wellposed.gradients.implicit import Implicit
from wellposed.solvers.base import Solution, Solver, Stopping
from wellposed.solvers.picard import Picard


def fixed_point(
    f: Callable[..., Tensor] | nn.Module | Map,
    z0: Tensor | None,
    *args: Tensor,
    solver: Solver | None = None,
    gradient: Gradient | None = None,
    stopping: Stopping | None = None,
    batched: tuple[bool, ...] | None = None,
) -> Solution:
    """The fixed point ``z* = f(z*, *args)``, differentiable with respect to `args`.

    Args:
        f: A function of ``z`` and `args`, an `nn.Module` (its parameters then get gradients too),
            or a ready `Map`. Tensors that a function captures get first derivatives; a second
            derivative through such a function raises `HigherOrderError`.
        z0: First iterates, batch first; no gradient flows to them. `None` leaves them to a `Map`
            that knows where to start.
        args: Every tensor that a gradient shall flow to.
        solver: Proposes iterates.
        gradient: How the result is put on the tape.
        stopping: Tolerances and budget.
        batched: Which of `args` have one row a sample, so that converged samples can leave the
            batch; without it all samples are evaluated until the last has converged.

    Raises:
        ShapeError: `z0` is not a floating-point tensor with a batch dimension or is missing, or `f`
            does not return a tensor of its shape and dtype.
        ConfigError: `batched` does not fit `args`, or a module inside `f` is not deterministic.
    """
    if z0 is not None:
        check_batch(z0, "z0")
    if batched is not None and len(batched) != len(args):
        raise ConfigError(
            f"`batched` has {len(batched)} flags for {len(args)} arguments; one each is expected."
        )
    if isinstance(f, Map):
        if args:
            raise ConfigError(
                f"A map holds its tensors already, got {len(args)} further arguments.",
                hint="give them to the map when it is made.",
            )
        map_ = f
    elif isinstance(f, nn.Module):
        map_ = module_map(f, args, batched)
    else:
        map_ = FunctionMap(steady(f), args, batched)
    problem = Problem(
        map_,
        None if z0 is None else z0.detach(),
        solver or Picard(),
        stopping or default_stopping(map_, z0),
        closure=not isinstance(f, Map | nn.Module),
    )
    return (gradient or Implicit()).attach(problem)


def default_stopping(map_: Map, z: Tensor | None, rtol: float | None = None) -> Stopping:
    """Tolerances that can be reached: 1e-2 where products are rounded to half precision."""
    if z is not None and type(map_) is FunctionMap and autocasting(z):
        return Stopping(rtol=1e-2)
    return _relative(rtol)


@cache
def _relative(rtol: float | None) -> Stopping:
    return Stopping(rtol=rtol)


def check_batch(x: Tensor, name: str) -> None:
    """A floating-point tensor with a batch dimension.

    Raises:
        ShapeError: It is not.
    """
    if not x.is_floating_point():
        raise ShapeError(
            f"`{name}` has dtype {x.dtype}, expected a real floating-point dtype.",
            hint="convert with `.float()`; images of uint8 are usually divided by 255 first.",
        )
    if x.ndim < 2:
        raise ShapeError(
            f"`{name}` has shape {tuple(x.shape)}, expected a batch: (batch, ...).",
            hint="add a batch dimension with `.unsqueeze(0)`.",
        )
