"""A differentiable linear bound of margins over an equilibrium layer, for mixed training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellposed.cells.base import AffineCell
from wellposed.core.activations import ReLU
from wellposed.core.maps import AffineMap
from wellposed.core.operators import Dense
from wellposed.errors import ConfigError
from wellposed.nn.equilibrium import Equilibrium
from wellposed.training.interval import Interval, embedded_box, folded_margins, interval

STEPS = 12
"""Products of the multiplier's iteration; it may stop anywhere, the bound holds for any."""


def crown_margins(
    model: nn.Sequential, box: Interval, labels: Tensor, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Lower bounds of the margins by intervals, and by fixed-point CROWN [1] over intervals.

    With ``z = relu(v)``, ``v = A z + B u + b`` (canonical form), ``v`` in ``[l, h]`` and ``u`` in a
    box, a row ``r = C_y - C_j`` has for every multiplier ``p``, with ``lam = r + A^T p``,

    ``r.z >= p.b + min_u (B^T p).u + sum_i min_{v in [l_i, h_i]} ( lam_i relu(v) - p_i v )``

    by weak duality. ``p`` is that of CROWN, ``p = sigma(lam)`` with the slopes of the relaxed ReLU,
    iterated off the tape from 0; the last step is on it.

    Args:
        model: Ends in an equilibrium layer with dense weights and ReLU, and `nn.Linear`; what
            comes before is bounded by intervals.
        box: Of inputs.
        labels: ``y``.
        steps: Of the iteration of ``p``.

    Returns:
        Both bounds, shape (batch, classes), 0 at ``j = y``.

    Raises:
        ConfigError: The model ends otherwise.

    References:
        [1] Zhang et al. Towards stable and efficient training of verifiably robust neural
        networks. ICLR 2020. arXiv 1906.06316, for the mixture.
    """
    match list(model):
        case [*front, Equilibrium(cell=AffineCell() as cell) as layer, nn.Linear() as head]:
            affine = cell.explicit().canonical()
        case layers:
            raise ConfigError(
                f"The last layers are {[type(part).__name__ for part in layers[-2:]]}, expected "
                "an equilibrium layer with explicit weights and nn.Linear."
            )
    for part in front:
        box = interval(part, box)
    if not isinstance(affine.A, Dense) or not isinstance(affine.activation, ReLU):
        raise ConfigError(
            "The linear bound of training needs dense weights and ReLU, got "
            f"{type(affine.A).__name__} and {affine.activation.name}."
        )
    state, map_ = embedded_box(layer, box)
    plain = folded_margins(head, state, labels)
    low, high = _preactivations(map_, state)
    rows = head.weight[labels][:, None] - head.weight[None]
    A, B = affine.A.matrix, affine.B
    shape = (len(labels) * head.out_features, *B.in_shape)

    with torch.no_grad():
        p = torch.zeros_like(rows)
        for _ in range(steps):
            p = _multiplier(rows + p @ A, low, high)
    p = _multiplier(rows + p @ A, low, high)
    lam = rows + p @ A
    through = B.adjoint(p.flatten(0, 1)).reshape(shape).reshape(*rows.shape[:2], -1)
    centre, radius = box.centre.flatten(1), box.radius.flatten(1)
    moved = (through * centre[:, None]).sum(2) - (through.abs() * radius[:, None]).sum(2)
    bound = p @ affine.bias + moved + _inner(lam, p, low, high).sum(2)
    if head.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        bound = bound + head.bias[labels][:, None] - head.bias
    return plain, bound.scatter(1, labels[:, None], 0.0)


def _preactivations(map_: AffineMap, state: Interval) -> tuple[Tensor, Tensor]:
    """Bounds of ``v``, shape (batch, 1, n) to go with rows."""
    v = map_.operator.apply(torch.cat([state.lower, state.upper], 1), map_.offset)
    low, high = v.chunk(2, 1)
    return low[:, None], torch.maximum(low, high)[:, None]


def _multiplier(lam: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``sigma(lam)``: the slope of the line below (``lam >= 0``) or above the ReLU, times `lam`."""
    below = (high > -low).to(lam)  # the better of the slopes 0 and 1; exact where it is stable
    above = high.clamp(min=0) / (high.clamp(min=0) - low.clamp(max=0)).clamp(min=1e-12)
    return torch.where(lam >= 0, lam * below, lam * above)


def _inner(lam: Tensor, p: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``min_{v in [low, high]} ( lam relu(v) - p v )``: at an end, or at the kink."""
    ends = torch.minimum(
        lam * low.clamp(min=0) - p * low,
        lam * high.clamp(min=0) - p * high,
    )
    return torch.where((low < 0) & (high > 0), ends.clamp(max=0), ends)
