"""Exact projections onto the points of [0, 1]^n near an image."""

from __future__ import annotations

import torch
from torch import Tensor


def project_max(point: Tensor, x: Tensor, eps: Tensor | float) -> Tensor:
    """The nearest point of [0, 1]^n within `eps` of ``x`` in the max norm.

    Args:
        point: Shape (batch, ...).
        x: Centres in [0, 1], of the same shape.
        eps: Radius, or one a sample of shape (batch, 1, ...).
    """
    eps = eps.to(x) if isinstance(eps, Tensor) else eps
    # minimum and maximum, unlike x + clamp(point - x), cannot leave the box by a rounding
    return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)


def project_two(point: Tensor, x: Tensor, eps: Tensor | float) -> Tensor:
    """The nearest point of [0, 1]^n within `eps` of ``x`` in the 2-norm, exactly.

    The multiplier ``lambda >= 0`` of the ball gives ``p = clip(x + t d)``, ``d = point - x``,
    ``t = 1 / (1 + lambda)``. With ``c_i`` the room left in direction ``sign(d_i)``,
    ``||p - x||^2 = sum_i min(t |d_i|, c_i)^2`` is a quadratic in ``t`` between the sorted break
    points ``c_i / |d_i|``; the piece that reaches ``eps^2`` gives ``t`` in closed form. (Clipping
    and scaling in turn, as is common, is not this projection.)

    Args:
        point: Shape (batch, ...).
        x: Centres in [0, 1], of the same shape.
        eps: Radius, or one a sample of shape (batch, 1, ...).
    """
    eps = eps.flatten(1).double() if isinstance(eps, Tensor) else eps
    centre = x.flatten(1).double()
    d = point.flatten(1).double() - centre
    size = d.abs()
    room = torch.where(d > 0, 1 - centre, centre)
    breaks = torch.where(size > 0, room / size, torch.inf)
    breaks, order = breaks.sort(1)
    room, size = room.gather(1, order), size.gather(1, order)
    # at a t between breaks k-1 and k, entries before k are clipped and the others move freely
    clipped = (room.square().cumsum(1)) - room.square()
    free = size.square().flip(1).cumsum(1).flip(1)
    reached = clipped + breaks.clamp(max=1).square() * free
    k = (reached >= eps * eps).to(torch.int8).argmax(1, keepdim=True)
    left = (eps * eps - clipped.gather(1, k)).clamp(min=0)
    t = (left / free.gather(1, k).clamp(min=torch.finfo(d.dtype).tiny)).sqrt()
    moved = d.clamp(-centre, 1 - centre)
    outside = torch.linalg.vector_norm(moved, dim=1, keepdim=True) > eps
    t = torch.where(outside, t.clamp(max=1), 1.0)
    return (centre + t * d).clamp(0, 1).to(point.dtype).reshape(point.shape)
