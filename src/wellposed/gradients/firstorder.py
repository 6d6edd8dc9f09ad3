"""First derivatives of a fixed point without a graph of the backward pass.

``u = J^T u + g`` and ``dL/dtheta = (df/dtheta)^T u``: by the analytic transpose for affine maps,
by one graph of the map and repeated vector-Jacobian products for any other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellposed.core.activations import ReLU
from wellposed.core.linear_maps import LinearMap, Transpose
from wellposed.core.maps import AffineMap, Map, check_feedback
from wellposed.core.operators import Dense
from wellposed.solvers.base import Solution, Stopping
from wellposed.solvers.krylov import LinearSolver
from wellposed.solvers.transposed import Transposed


def pull_back(
    map_: Map,
    z: Tensor,
    g: Tensor,
    needed: tuple[bool, ...],
    *,
    solver: LinearSolver,
    stopping: Stopping,
    image: Tensor | None = None,
) -> tuple[Solution, list[Tensor | None]]:
    """Solve the adjoint equation at `z` for the cotangent `g`.

    Args:
        map_: The map; no history of its tensors is followed.
        z: Fixed points; neither is theirs.
        g: Cotangent of `z`.
        needed: Which of the map's tensors want a gradient.
        solver: Of the linear equation.
        stopping: Its tolerances.
        image: What the canonical form makes of `z`, if that is known.

    Returns:
        The adjoint state and one gradient for each of the map's tensors.
    """
    if isinstance(map_, AffineMap):
        slopes, own = map_.slopes(z, image), None
        if map_.raw and not isinstance(solver, Transposed):
            # every other solver gets the equation of the resolved map; the gradient of a diagonal
            # is the diagonal of the gradient, so that the two parts need not be told apart
            own = map_.operator.diagonal()
            check_feedback(own, map_.activation)
            slopes = slopes / (1 - slopes * own)
        return _affine(map_, z, g, needed, slopes=slopes, own=own, solver=solver, stopping=stopping)
    return _general(map_, z, g, needed, solver=solver, stopping=stopping)


def _affine(
    map_: AffineMap,
    z: Tensor,
    g: Tensor,
    needed: tuple[bool, ...],
    *,
    slopes: Tensor,
    own: Tensor | None,
    solver: LinearSolver,
    stopping: Stopping,
) -> tuple[Solution, list[Tensor | None]]:
    operator = map_.operator
    split = map_.raw and own is None

    # solved is the equation of ``w = [d] u``, the flow through the activation, which is all that
    # the gradients need: ``w = [d] (A^T w + g)``
    # (`own` is the diagonal of ``A`` that is in the slopes already)
    def product(weight: Tensor) -> Callable[[Tensor], Tensor]:
        turned, less = operator.with_weight(weight), own
        return turned.adjoint if less is None else lambda w: turned.adjoint(w, -less * w)

    def transposed(weight: Tensor, d: Tensor) -> Callable[[Tensor], Tensor]:
        pull = product(weight)
        return lambda w: pull(w) * d

    def fused(weight: Tensor, d: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        pull = product(weight)
        return lambda w, rhs: torch.addcmul(rhs, pull(w), d)

    linear = LinearMap(
        transposed,
        slopes * g,
        (operator.weight.detach(), slopes),
        (False, True),
        fuse=fused,
        form=Transpose(operator, map_.memo, type(map_.activation) is ReLU) if split else None,
    )
    found = solver.solve(linear, stopping)
    flow = found.value
    weight = operator.weight_gradient(flow, z) if needed[0] else None
    out: list[Tensor | None] = [weight, flow if needed[1] else None]
    if map_.feedback is not None:
        shape = map_.feedback.shape
        # s -> psi(a, s) has d psi / d a = z d psi / d s
        if weight is not None and isinstance(operator, Dense) and shape == flow.shape[1:]:
            # (a view of another gradient would change with it when that one is added to)
            out.append(torch.diagonal(weight).clone() if needed[2] else None)
        else:
            out.append((flow * z).sum_to_size(1, *shape)[0] if needed[2] else None)
    return found, out


def _general(
    map_: Map,
    z: Tensor,
    g: Tensor,
    needed: tuple[bool, ...],
    *,
    solver: LinearSolver,
    stopping: Stopping,
) -> tuple[Solution, list[Tensor | None]]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        tensors = tuple(
            t.detach().requires_grad_(need) for t, need in zip(map_.tensors, needed, strict=True)
        )
        fz = map_.with_tensors(tensors)(z)
    found = solver.solve(LinearMap(lambda: transposed_of(fz, z), g), stopping)
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    if not wanted or not fz.requires_grad:
        return found, [None] * len(needed)
    grads = iter(torch.autograd.grad(fz, wanted, found.value.to(fz.dtype), allow_unused=True))
    return found, [next(grads) if need else None for need in needed]


def transposed_of(fz: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
    """``u -> J^T u`` from a graph of ``fz = f(z)``."""

    def pull(u: Tensor) -> Tensor:
        if not fz.requires_grad:
            return torch.zeros_like(u)
        (row,) = torch.autograd.grad(fz, z, u.to(fz.dtype), retain_graph=True, allow_unused=True)
        # torch declares no `None` here, but returns it for unused inputs
        return torch.zeros_like(u) if row is None else row.to(u.dtype)  # pyright: ignore[reportUnnecessaryComparison]

    return pull
