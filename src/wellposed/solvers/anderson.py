"""Anderson acceleration with a short orthogonal history and a safeguard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from wellposed.core.maps import Map
from wellposed.core.peel import plain
from wellposed.errors import ConfigError
from wellposed.solvers.base import Solver
from wellposed.solvers.safeguard import Guard, judge


class History(NamedTuple):
    """Pairs (change of residual, change of image), one row a sample.

    Args:
        basis: ``q_j``, shape (samples, window, n), orthogonal to each other; zero if unused.
        images: ``w_j``: what the same combination of changes did to ``f(z)``.
        inverse: ``1 / |q_j|^2``, regularised.
        last_residual: ``f(z) - z`` of the iterate before.
        last_image: ``f(z)`` of the iterate before.
        guard: The safeguard's memory.
        used: How many changes have been stored.
    """

    basis: Tensor
    images: Tensor
    inverse: Tensor
    last_residual: Tensor
    last_image: Tensor
    guard: Guard
    used: int


@final
@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration, type II, on the canonical form of the map [1], [2].

    With residuals ``g = f(z) - z`` the next iterate is ``f(z) - W c`` where ``c`` minimises
    ``|g - Q c|_2`` and the columns of ``Q``, ``W`` span the latest changes of ``g`` and ``f(z)``.
    Each new change is orthogonalised against the `window` before it and then stored, so that the
    minimiser is ``c = Q^T g / |q|^2``: no factorisation. On a linear equation with symmetric
    matrix this short recurrence equals the method with unlimited memory, hence GMRES [2].

    Each sample has its own history; a step that fails is taken back (`solvers.safeguard`).

    Args:
        window: How many changes are kept; 2 `window` states of memory.
        ridge: Relative regularisation: a change whose component outside the history is below
            ``sqrt(ridge)`` of its length has little effect. `None`: 1e-10 in float64, else 1e-6.
        safeguard: Whether failed steps are taken back.

    References:
        [1] Walker, Ni. Anderson acceleration for fixed-point iterations. SIAM J. Numer. Anal.
        49(4), 2011.
        [2] Tang, Xu, He, Saad, Xi. Anderson acceleration with truncated Gram-Schmidt. SIAM J.
        Matrix Anal. Appl. 45(4), 2024.
    """

    window: int = 5
    ridge: float | None = None
    safeguard: bool = True

    def __post_init__(self) -> None:
        check_window("window", self.window)
        if self.ridge is not None and not 0 <= self.ridge < 1:
            raise ConfigError(f"`ridge` must lie in [0, 1), got {self.ridge}.")

    @override
    def prepare(self, map_: Map) -> Map:
        return map_.canonical()

    @override
    def propose(
        self, map_: Map, z: Tensor, fz: Tensor, state: History | None
    ) -> tuple[Tensor, History]:
        return accelerate(z, fz, state, self.window, ridge=self.ridge, safeguard=self.safeguard)


def check_window(name: str, value: int) -> None:
    """Refuse a history length below 1."""
    if value < 1:
        raise ConfigError(f"`{name}` must be at least 1, got {value}.")


def accelerate(
    z: Tensor,
    fz: Tensor,
    history: History | None,
    window: int,
    *,
    ridge: float | None = None,
    safeguard: bool = True,
    limit: int = 0,
) -> tuple[Tensor, History]:
    """One step of Anderson acceleration: the next iterate and the history.

    Args:
        z: Iterates, batch first.
        fz: Their images.
        history: Of the steps before; `None` at the first.
        window: Length of the history.
        ridge: See `Anderson`.
        safeguard: See `Anderson`.
        limit: The history doubles up to this length while progress is poor.
    """
    dtype = z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float32
    image = fz.flatten(1).to(dtype)
    residual = image - z.flatten(1)
    size = torch.linalg.vector_norm(residual, dim=1)
    if history is None:
        room = residual.new_zeros(*residual.shape[:1], window, residual.shape[1])
        inverse = residual.new_zeros(len(residual), 1, window)
        guard = Guard.start(size)
        return fz, History(room, room.clone(), inverse, residual, image, guard, 0)
    basis, images, inverse, last_residual, last_image, guard, used = history
    if ridge is None:
        ridge = 1e-10 if dtype == torch.float64 else 1e-6

    # rows times matrices, one at a time: stacking them, or matrices times columns, is 2-4x slower
    change = residual - last_residual
    ahead = torch.bmm(change[:, None], basis.mT).mul_(inverse)
    weights = torch.bmm(residual[:, None], basis.mT).mul_(inverse)
    q = torch.baddbmm(change[:, None], ahead, basis, alpha=-1)[:, 0]
    w = torch.baddbmm((image - last_image)[:, None], ahead, images, alpha=-1)[:, 0]
    out = torch.baddbmm(image[:, None], weights, images, alpha=-1)[:, 0]
    length = torch.linalg.vecdot(q, q).add_(torch.linalg.vecdot(change, change), alpha=ridge)
    scale = length.clamp_min_(torch.finfo(dtype).tiny).reciprocal_()
    out = torch.addcmul(out, (torch.linalg.vecdot(q, residual) * scale)[:, None], w, value=-1)
    slot = used % basis.shape[1]
    basis[:, slot], images[:, slot], inverse[:, 0, slot] = q, w, scale
    now = History(basis, images, inverse, residual, image, guard, used + 1)
    if safeguard:
        out, now = _guarded(out, now, history, size, limit)
    return out.reshape(z.shape).to(z.dtype), now


def _guarded(
    out: Tensor, now: History, before: History, size: Tensor, limit: int
) -> tuple[Tensor, History]:
    """Take failed steps back, let resting samples step plainly, lengthen a short history."""
    window = now.basis.shape[1]
    longer = min(2 * window, limit)
    full = longer > window and now.used % window == 0
    poor = full and bool(plain(size > 0.1 * before.guard.mark).any())
    (refused, resting), guard = judge(before.guard, size, patient=longer > window)
    now = now._replace(guard=guard)
    if resting is not None:
        out = torch.where(resting[:, None], now.last_image, out)
    if refused is not None:
        row = refused[:, None]
        out = torch.where(row, before.last_image, out)
        now = now._replace(
            basis=torch.where(row[:, None], 0.0, now.basis),
            images=torch.where(row[:, None], 0.0, now.images),
            inverse=torch.where(row[:, None], 0.0, now.inverse),
            last_residual=torch.where(row, before.last_residual, now.last_residual),
            last_image=torch.where(row, before.last_image, now.last_image),
        )
    if poor:
        now = now._replace(
            basis=_lengthen(now.basis, longer),
            images=_lengthen(now.images, longer),
            inverse=_lengthen(now.inverse.mT, longer).mT.contiguous(),
            used=window,
        )
    return out, now


def _lengthen(X: Tensor, length: int) -> Tensor:
    more = X.new_zeros(X.shape[0], length - X.shape[1], X.shape[2])
    return torch.cat([X, more], 1)
